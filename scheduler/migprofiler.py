"""MIGProfiler's arguments, as its README writes them, and what they are here. Pure.

``"model_name=vision_transformer" "workload=cv_infer" "gpu_i_id=2"``, and what its configs/single_instance.yaml holds
besides, overridden in hydra's manner: ``benchmark_plan.fixed_time=60``, ``benchmark_plan.batch_sizes=[1,2,4]``.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.errors import SpecError
from scheduler.sweep import GROUPS

KEYS = ("model_name", "workload", "gpu_i_id", "fixed_time", "batch_sizes", "sequence_lengths", "save_dir")
SAME = {
    "batch_size": "batch_sizes",
    "default_batchsize": "batch_sizes",
    "seq_length": "sequence_lengths",
    "default_seqlenth": "sequence_lengths",
    "result_dir": "save_dir",
}
"""Names of other versions of its configuration; ``seqlenth`` is its own spelling."""
MODELS = {
    "vision_transformer": "vision-transformer",
    "swin_transformer": "swin-transformer",
    "resnet50": "resnet50",
    "bert-base": "bert-base",
    "bert-base-cased": "bert-base",
    "distil_v1": "distilbert",
    "distil_v2": "distilbert",
    "distilbert": "distilbert",
    "minilm": "minilm",
    "mpnet": "mpnet",
}
FIXED_TIME_S = "60"
BATCH_SIZES = "1,2,4,8,16,32"
SEQUENCE_LENGTH = "64"
"""Of its single_instance.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """The same in our words."""

    workloads: tuple[str, ...]
    options: Mapping[str, Any]
    """By parameter of ``profile``, as it converts them."""
    command: str
    """What follows ``hetero-mig profile``."""
    notes: tuple[str, ...]


def is_meant(words: Sequence[str]) -> bool:
    """Whether these are MIGProfiler's arguments: ``model_name=`` or ``workload=`` is among them."""
    return any(word.partition("=")[0] in ("model_name", "workload") and "=" in word for word in words)


def translated(words: Sequence[str]) -> Translated:
    """What they ask for, as workloads and options of ``profile``.

    Raises:
        SpecError: a key or a value that has no counterpart here.
    """
    given = _by_key(words)
    model, group = given.get("model_name", "vision_transformer"), given.get("workload", "cv_infer").strip()
    if group not in GROUPS:
        raise _refused(f"workload={group}", "MIGProfiler has no such workload", f"take {', '.join(GROUPS)}")

    workload = MODELS.get(model, MODELS.get(model.lower(), model)) + (
        ":train" if group.endswith("train") else ""
    )
    if workload not in GROUPS[group]:
        raise _refused(
            f"model_name={model} workload={group}",
            f"{group} has {', '.join(GROUPS[group])}",
            "name one of them: hetero-mig profile WORKLOAD",
        )

    lists = {"batch_sizes": _list(given.get("batch_sizes", BATCH_SIZES))}
    notes = []
    if group == "nlp_infer":
        lists["sequence_lengths"] = _list(given.get("sequence_lengths", SEQUENCE_LENGTH))
        if "sequence_lengths" not in given:
            notes.append(
                "MIGProfiler then goes through sequence lengths 32 to 512 at batch size 32: profile that apart"
            )

    seconds = str(_above_0(given.get("fixed_time", FIXED_TIME_S), "fixed_time"))
    options: dict[str, str] = {f"--{name.replace('_', '-')}": text for name, text in lists.items()}
    options["--seconds"] = seconds
    if "gpu_i_id" in given:
        options["--slices"] = f"gpu0:gi{_whole(given['gpu_i_id'], 'gpu_i_id')}:ci0"
        notes.append("gpu_i_id is taken as a GPU instance of GPU 0; see `hetero-mig slices`")

    if "save_dir" in given:
        options["--output"] = given["save_dir"]

    return Translated(
        workloads=(workload,),
        options=_converted(options),
        command=shlex.join([workload, *(part for pair in options.items() for part in pair)]),
        notes=tuple(notes),
    )


def _by_key(words: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.partition("=")
        name = key.removeprefix("benchmark_plan.")
        name = SAME.get(name, name)
        if name.startswith("hydra."):
            continue

        if name not in KEYS or not value:
            raise _refused(
                word, "it has no counterpart here", f"leave it out; these are taken: {', '.join(KEYS)}"
            )

        given[name] = value

    return given


def _list(text: str) -> str:
    """``[1, 2,4]`` or ``1,2,4`` → ``1,2,4``, each once."""
    numbers = [_above_0(word, "a list") for word in text.strip("[] ").split(",")]
    return ",".join(str(number) for number in dict.fromkeys(numbers))


def _above_0(text: str, what: str) -> int:
    number = _whole(text, what)
    if not number:
        raise _refused(f"{what}: {text}", "nothing can be measured so", "ask for 1 or more")

    return number


def _whole(text: str, what: str) -> int:
    if not text.strip().isdecimal():
        raise _refused(f"{what}: {text}", "it is not a whole number", "write it as 2, and a list as [1,2,4]")

    return int(text)


def _converted(options: Mapping[str, str]) -> dict[str, Any]:
    """As click hands them over."""
    found: dict[str, Any] = {}
    for option, text in options.items():
        name = option.removeprefix("--").replace("-", "_")
        if name in ("batch_sizes", "sequence_lengths"):
            found[name] = tuple(int(word) for word in text.split(","))
        elif name == "seconds":
            found[name] = float(text)
        else:
            found[name] = Path(text) if name == "output" else text

    return found


def _refused(asked: str, found: str, do: str) -> SpecError:
    return SpecError(asked=f"MIGProfiler's {asked}", found=found, do=do)
