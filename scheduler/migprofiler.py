"""MIGProfiler's arguments, as its README writes them, and what they are here. Pure.

``"model_name=vision_transformer" "workload=cv_infer" "gpu_i_id=2"``, and what its configs/single_instance.yaml holds
besides, overridden in hydra's manner: ``benchmark_plan.fixed_time=60``, ``benchmark_plan.batch_sizes=[1,2,4]``.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
    "distil": "distilbert",
    "distil_v1": "distilbert",
    "distil_v2": "distilbert",
    "distilbert": "distilbert",
    "minilm": "minilm",
    "mpnet": "mpnet",
}
KEY_OF = {
    "--batch-sizes": "batch_sizes",
    "--sequence-lengths": "sequence_lengths",
    "--seconds": "fixed_time",
    "--slices": "gpu_i_id",
    "--output": "save_dir",
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
    """By parameter of ``profile``, as it converts them; those that were given beside the words are not among them."""
    command: str
    """What follows ``hetero-mig profile``: these options and those that were given."""
    notes: tuple[str, ...]


def is_meant(words: Sequence[str]) -> bool:
    """Whether these are MIGProfiler's arguments: ``model_name=`` or ``workload=`` is among them."""
    return any(word.partition("=")[0] in ("model_name", "workload") and "=" in word for word in words)


def translated(
    words: Sequence[str], given: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> Translated:
    """What they ask for, as workloads and options of ``profile``.

    Args:
        given: the options beside them, by name (``--slices``), each with its values, none of a flag. They hold in
            place of MIGProfiler's defaults.

    Raises:
        SpecError: a key or a value that has no counterpart here, or an option that says something else than a word.
    """
    said = _by_key(words)
    group = said.get("workload", "cv_infer").strip()
    workload = _workload(said.get("model_name", "vision_transformer"), group)
    options = {"--batch-sizes": _list(said.get("batch_sizes", BATCH_SIZES))}
    notes = []
    if group == "nlp_infer":
        options["--sequence-lengths"] = _list(said.get("sequence_lengths", SEQUENCE_LENGTH))
        if "sequence_lengths" not in said and "--sequence-lengths" not in given:
            notes.append(
                "MIGProfiler then goes through sequence lengths 32 to 512 at batch size 32: profile that apart"
            )
    elif "sequence_lengths" in said:
        notes.append(f"sequence_lengths is left out: {workload} cannot choose the length")

    options["--seconds"] = str(_above_0(said.get("fixed_time", FIXED_TIME_S), "fixed_time"))
    if "gpu_i_id" in said:
        options["--slices"] = f"gpu0:gi{_whole(said['gpu_i_id'], 'gpu_i_id')}:ci0"
        notes.append("gpu_i_id is taken as a GPU instance of GPU 0; see `hetero-mig slices`")

    if "save_dir" in said:
        options["--output"] = said["save_dir"]

    for option, text in options.items():
        _agree(option, text, said, given)

    return Translated(
        workloads=(workload,),
        options=_converted({option: text for option, text in options.items() if option not in given}),
        command=_command(workload, {option: (text,) for option, text in options.items()} | dict(given)),
        notes=tuple(notes),
    )


def _workload(model: str, group: str) -> str:
    if group not in GROUPS:
        raise _refused(f"workload={group}", "MIGProfiler has no such workload", f"take {', '.join(GROUPS)}")

    kind = ":train" if group.endswith("train") else ""
    workload = MODELS.get(model, MODELS.get(model.lower(), model)) + kind
    if workload in GROUPS[group]:
        return workload

    its_names = {ours: its for its, ours in reversed(MODELS.items())}  # of several the first
    its = [its_names.get(name.removesuffix(kind), name.removesuffix(kind)) for name in GROUPS[group]]
    raise _refused(
        f"model_name={model} workload={group}",
        f"{group} has {', '.join(GROUPS[group])} and no other",
        f"hetero-mig profile model_name={its[0]} workload={group}; in this program's words: "
        f"hetero-mig profile {GROUPS[group][0]}" + ("; or another of them" if len(its) > 1 else ""),
    )


def _agree(option: str, text: str, said: Mapping[str, str], given: Mapping[str, tuple[str, ...]]) -> None:
    key = KEY_OF[option]
    same = Path if option == "--output" else str
    if key in said and option in given and tuple(map(same, given[option])) != (same(text),):
        raise SpecError(
            asked=f"{key}={said[key]} and {option} {' '.join(given[option])}",
            found=f"{key}={said[key]} is {option} {text}, so they contradict each other",
            do="leave one of the two out",
        )


def _command(workload: str, options: Mapping[str, tuple[str, ...]]) -> str:
    words = [workload]
    for option, values in options.items():
        words += [word for value in values for word in (option, value)] if values else [option]

    return shlex.join(words)


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
