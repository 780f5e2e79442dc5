"""Samples for a transformers folder's model: synthetic, or of a text or a folder of images.

Text is cut into samples of one length, so that none has padding: what is measured is the model on whole samples.
"""

import json
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import transformers
from torch import Tensor, from_numpy

from workloads import images
from workloads.hf_config import HfConfig
from workloads.protocol import WorkloadError, WorkloadOptions
from workloads.samples import SyntheticImages

SAMPLES = 1024
"""Synthetic ones."""

MASKED_SHARE = 0.15
"""Of a sample's tokens, in masked language modelling, as in BERT's training (arXiv:1810.04805, section 3.1)."""

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""As images.read normalises."""

Ids = npt.NDArray[np.int64]


def padding_of(config: HfConfig) -> int:
    """A token id that no synthetic sample has."""
    return min(config.special_tokens, default=0)


def make_tokens(config: HfConfig, options: WorkloadOptions) -> tuple[Ids, Ids]:
    """Token ids [SAMPLES, tokens], none of them special but the masks, and where the masks are [SAMPLES, masks]."""
    rng = np.random.default_rng(options.seed)
    special = config.special_tokens | {padding_of(config)}
    plain = np.setdiff1d(np.arange(config.vocabulary), np.array(sorted(special), dtype=np.int64))
    tokens = plain[rng.integers(0, len(plain), (SAMPLES, config.tokens(options.size)))]
    return tokens, _masked(config, tokens, config.mask_token, (), rng)


def read_tokens(config: HfConfig, options: WorkloadOptions, data: Path) -> tuple[Ids, Ids]:
    """The same of a text: as many samples as it fills, each with the tokenizer's special tokens around it.

    Args:
        data: a UTF-8 text file, or a folder of ``.txt`` files, which are read in the order of their paths.

    Raises:
        WorkloadError: no text, not UTF-8, no tokenizer in the model's folder, or not the model's; names file or folder.
    """
    text = _read_text(data)
    tokenizer = _tokenizer(config.folder)
    count = config.tokens(options.size)
    windows = tokenizer(
        text, truncation=True, max_length=count, return_overflowing_tokens=True, verbose=False
    )["input_ids"]
    whole = [window for window in windows if len(window) == count]
    if not whole:
        raise WorkloadError(f"data {data} has too little text: a sample of this model is {count} tokens long")

    tokens = np.array(whole, dtype=np.int64)
    if tokens.max() >= config.vocabulary:
        raise WorkloadError(
            f"{config.folder}: its tokenizer gives token {tokens.max()}, its config.json has vocab_size "
            f"{config.vocabulary}; are they of one model?"
        )

    mask = tokenizer.mask_token_id
    if mask is None and config.task == "masked language modelling":
        raise WorkloadError(f"{config.folder}: its tokenizer has no mask token, which {config.task} needs")

    rng = np.random.default_rng(options.seed)
    return tokens, _masked(config, tokens, mask, tokenizer.all_special_ids, rng)


def _masked(
    config: HfConfig, tokens: Ids, mask: int, special: Collection[int], rng: np.random.Generator
) -> Ids:
    """Put masks into ``tokens`` where the task is to fill them in; where they are, in order, [samples, masks]."""
    samples, count = tokens.shape
    if config.task != "masked language modelling":
        return np.zeros((samples, 0), dtype=np.int64)

    drawn = rng.random((samples, count))
    drawn[np.isin(tokens, list(special))] = np.inf  # last of all
    where = np.sort(drawn.argsort(axis=1)[:, : max(1, round(MASKED_SHARE * count))], axis=1)
    np.put_along_axis(tokens, where, mask, axis=1)
    return where


def _read_text(data: Path) -> str:
    files = sorted(data.rglob("*.txt")) if data.is_dir() else [data]
    texts: list[str] = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise WorkloadError(f"data {file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise WorkloadError(f"data {file} is not UTF-8: {error.reason} at byte {error.start}") from error

    if not any(text.strip() for text in texts):
        raise WorkloadError(
            f"data {data} has no text: a UTF-8 text file, or a folder of .txt files is wanted"
        )

    return "\n".join(texts)


def _tokenizer(folder: Path) -> "transformers.PreTrainedTokenizerBase":
    wanted = "--data needs one there, as save_pretrained writes it"
    try:
        found = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        told = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise WorkloadError(
            f"{folder} has no tokenizer that transformers can load ({told}); {wanted}"
        ) from error

    # Of a folder without any, transformers 5 makes a tokenizer that knows no word.
    files = {"tokenizer.json", *found.vocab_files_names.values()}
    if not any((folder / file).exists() for file in files):
        raise WorkloadError(f"{folder} has no tokenizer, none of {', '.join(sorted(files))}; {wanted}")

    return found


def pictures(config: HfConfig, options: WorkloadOptions) -> tuple[int, Callable[[int, Tensor], object], str]:
    """How many images there are, what writes one into a row [side, side, 3], and what they are.

    Images of a folder are cut as images.read does, then normalised as the model's ``preprocessor_config.json``
    says, or as for ImageNet.

    Raises:
        WorkloadError: no images in the folder, or no numbers in that file.
    """
    if options.data is None:
        synthetic = SyntheticImages(seed=options.seed, side=config.side)
        return SAMPLES, synthetic.fill, f"{SAMPLES} synthetic images, seed {options.seed}"

    files = images.find(options.data).files
    mean, deviation = _normalisation(config.folder)
    had_mean, had_deviation = (
        np.array(each, dtype=np.float32) for each in (IMAGENET_MEAN, IMAGENET_DEVIATION)
    )

    def fill(index: int, row: Tensor) -> None:
        pixels = images.read(files[index], config.side) * had_deviation + had_mean
        row.copy_(from_numpy((pixels - mean) / deviation))

    return len(files), fill, f"{len(files)} images of {options.data}"


def _normalisation(folder: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    path = folder / "preprocessor_config.json"
    told = {}
    if path.is_file():
        try:
            told = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise WorkloadError(f"{path} cannot be read: {error}") from error

    found: list[npt.NDArray[np.float32]] = []
    for name, usual in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_DEVIATION)):
        try:
            numbers = np.array(told.get(name, usual), dtype=np.float32)
        except (ValueError, TypeError):
            numbers = np.zeros(0, dtype=np.float32)

        if numbers.shape != (3,) or (name == "image_std" and not (numbers > 0).all()):
            raise WorkloadError(f"{path}: {name} is {told.get(name)}; three numbers are wanted")

        found.append(numbers)

    return found[0], found[1]
