"""What a local transformers folder says of its model: ``config.json``, read as JSON. Imports no torch.

Which architectures there are is transformers' to say, in the worker; here it is only decided what the model is
for, and so what goes in and what comes out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workloads.protocol import Size, WorkloadError

Task = Literal[
    "sequence classification",
    "question answering",
    "masked language modelling",
    "causal language modelling",
    "image classification",
]

TASKS: dict[str, Task] = {
    "ForSequenceClassification": "sequence classification",
    "ForQuestionAnswering": "question answering",
    "ForMaskedLM": "masked language modelling",
    "ForCausalLM": "causal language modelling",
    "LMHeadModel": "causal language modelling",
    "ForImageClassification": "image classification",
}
"""By what the name of the architecture ends in, as transformers names its classes."""

SEQUENCE: dict[Size, int] = {"full": 384, "small": 128}
"""Tokens of a sample, where the model has as many positions."""

POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
"""Names by which configurations tell how many positions there are."""

POSITIONS_AFTER_PADDING = {
    "camembert",
    "esm",
    "longformer",
    "mpnet",
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
}
"""Model types that number positions from the padding token's id + 1, and so have as many fewer."""

SIDE = 224
"""Pixels, of a model for images that says nothing of their size (convolutions take any)."""

SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")
"""``…_token_id`` in a configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HfConfig:
    """A folder's configuration, as far as inputs and outputs go."""

    folder: Path
    architecture: str
    task: Task
    vocabulary: int
    """Token ids are below it; 0 for images."""
    positions: int | None
    """The longest sequence; None: no limit is told."""
    side: int
    """Pixels of an image's side; 0 for text."""
    special_tokens: frozenset[int]
    mask_token: int
    """What stands where a token is to be found; the highest id, where the configuration tells none."""

    def tokens(self, size: Size) -> int:
        """Tokens of each sample."""
        return SEQUENCE[size] if self.positions is None else min(SEQUENCE[size], self.positions)


def read_config(folder: Path) -> HfConfig:
    """The model in a folder as transformers' ``save_pretrained`` writes it.

    Raises:
        WorkloadError: no folder, no readable ``config.json``, or a model for something else; names file and field.
    """
    path = folder / "config.json"
    if not path.is_file():
        found = "has no config.json" if folder.is_dir() else "is no folder"
        raise WorkloadError(
            f"{folder} {found}; hf: wants a folder as transformers' save_pretrained writes it"
        )

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkloadError(f"{path} cannot be read: {error}") from error

    names = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise WorkloadError(f"{path} names no architectures; the first of them tells what the model is for")

    architecture = names[0]
    task = next((task for ending, task in TASKS.items() if architecture.endswith(ending)), None)
    if task is None:
        raise WorkloadError(
            f"{path}: architectures has {architecture}, which is none of …{', …'.join(TASKS)}; wrap the model in a "
            "class of your own (docs/own-model.md)"
        )

    if config.get("is_encoder_decoder"):
        raise WorkloadError(
            f"{path}: is_encoder_decoder: {architecture} has inputs of two kinds; wrap the model in a class of your "
            "own (docs/own-model.md)"
        )

    if "auto_map" in config:
        raise WorkloadError(
            f"{path}: auto_map: the model's code is in the folder itself, which hf: does not run; wrap the model in "
            "a class of your own (docs/own-model.md)"
        )

    images = task == "image classification"
    special = _special_tokens(config)
    return HfConfig(
        folder=folder,
        architecture=architecture,
        task=task,
        vocabulary=0 if images else _vocabulary(path, config, special),
        positions=None if images else _positions(path, config),
        side=_side(path, config) if images else 0,
        special_tokens=special,
        mask_token=_mask_token(config),
    )


def _special_tokens(config: dict[str, Any]) -> frozenset[int]:
    """Those of them that are in the vocabulary; configurations made by hand often keep ids beyond it."""
    found = [config.get(f"{name}_token_id") for name in SPECIAL]
    flat = [one for each in found for one in (each if isinstance(each, list) else [each])]
    size = config.get("vocab_size")
    return frozenset(one for one in flat if type(one) is int and type(size) is int and 0 <= one < size)


def _mask_token(config: dict[str, Any]) -> int:
    told, size = config.get("mask_token_id"), config.get("vocab_size")
    if type(told) is int:
        return told

    return size - 1 if type(size) is int else 0


def _vocabulary(path: Path, config: dict[str, Any], special: frozenset[int]) -> int:
    size = config.get("vocab_size")
    if type(size) is not int or len(set(range(min(size, 64))) - special) < 2:
        raise WorkloadError(f"{path}: vocab_size is {size}; the number of token ids is wanted")

    return size


def _positions(path: Path, config: dict[str, Any]) -> int | None:
    told = next((config[name] for name in POSITIONS if config.get(name) is not None), None)
    if told is None:
        return None

    padding = config.get("pad_token_id")
    after = config.get("model_type") in POSITIONS_AFTER_PADDING
    positions = told - (padding + 1 if after and type(padding) is int else 0) if type(told) is int else 0
    if positions < 1:
        raise WorkloadError(f"{path}: {told} positions; at least 1 is wanted")

    return positions


def _side(path: Path, config: dict[str, Any]) -> int:
    size = config.get("image_size", SIDE)
    sides = set(size) if isinstance(size, list) else {size}
    side = sides.pop() if len(sides) == 1 else None
    if type(side) is not int or side < 1:
        raise WorkloadError(f"{path}: image_size is {size}; hf: makes square images only")

    if config.get("num_channels", 3) != 3:
        raise WorkloadError(f"{path}: num_channels is {config['num_channels']}; hf: makes RGB images only")

    return side
