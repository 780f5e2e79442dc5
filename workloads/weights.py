"""Weights: read from a file or folder and fitted to a module, or random from a seed."""

import json
import math
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from workloads.pickled_module import read_module
from workloads.protocol import DeviceKind, WorkloadError, WorkloadOptions

FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers' ``save_pretrained`` writes, in the order it prefers them."""

WRAPPERS = ("state_dict", "model", "model_state_dict", "best_model_state_dict")
"""Keys under which training scripts store the state_dict in a checkpoint; the last is MLPerf's 3D U-Net's
(mlcommons/inference, vision/medical_imaging/3d-unet-kits19/pytorch_checkpoint_SUT.py)."""

_SCALAR = np.float64(0).__reduce__()[0]
NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]
"""What a pickle of numpy's plain numbers names, by numpy's old and new paths; they run no code. Training
scripts keep losses and accuracies beside the weights, as facebookresearch/dlrm's does."""

WRONG_SHAPE = "wrong shape"
KEYS_NAMED = 3
"""How many keys of each kind a message spells out; the others are counted."""


class WrongShape(WorkloadError):
    """Every key is there, and some have another shape."""


@contextmanager
def seeded(seed: int, device: DeviceKind = "cpu") -> Iterator[None]:
    """Within it, torch makes tensors on ``device``, and its generator there starts from ``seed``; afterwards both are
    as before.

    Build the module inside: bert's weights take one core 3 s to draw. The same seed gives the same weights on every
    CPU; a GPU's generator gives others, and others again with another number of SMs.
    """
    if device == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield

        return

    with torch.random.fork_rng(devices=[torch.cuda.current_device()]), torch.device(device):
        torch.default_generator.manual_seed(seed)
        torch.cuda.manual_seed(seed)
        yield


def told_weights(options: WorkloadOptions, of_random: str = "") -> str:
    """Where the weights are from, as a note: the file, or ``seeded``, with what is to be said of such ones."""
    if options.weights is not None:
        return f"weights: {options.weights}"

    drawn = ", drawn on the GPU" if options.device == "cuda" else ""
    return f"weights: random, seed {options.seed}{drawn}{of_random}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from a safetensors file, a ``torch.save`` file or a transformers folder.

    A ``state_dict``/``model`` wrapper and the ``module.`` prefix of DataParallel are taken off. Pickles are
    read with ``weights_only=True``: a file that wants to run code is refused. Of a module pickled as a whole
    the tensors are taken, and nothing of its code (pickled_module.py).

    Raises:
        WorkloadError: nothing there, unreadable, damaged or of another kind; names the file.
    """
    if path.is_dir():
        return _read_folder(path)

    if not path.is_file():
        raise WorkloadError(f"weights {path}: no such file or folder; name one with --weights")

    if path.suffix == ".safetensors":
        return _read_safetensors(path)

    return _read_pickle(path)


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    unused: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Fill ``module`` with the weights at ``path``, every key, each cast to the module's dtype.

    Keys that begin with one of ``unused`` are passed over: parts of a checkpoint the network does not have.
    ``renamed`` maps pieces of names as checkpoints have them to the module's: ``LayerNorm.gamma`` …

    Raises:
        WrongShape: keys of another shape, and no other misfit; names file and keys.
        WorkloadError: unreadable; keys missing, unexpected, of another kind of number, or with values that are not
            finite; names file and keys.
    """
    found = {}
    for key, value in read_state_dict(path).items():
        if not key.startswith(unused):
            for theirs, ours in (renamed or {}).items():
                key = key.replace(theirs, ours)

            found[key] = value

    wanted = module.state_dict()
    # Checkpoints from before PyTorch 0.4.1 lack this counter, which inference does not read.
    for key in wanted.keys() - found.keys():
        if key.endswith(".num_batches_tracked"):
            found[key] = wanted[key]

    misfits = _misfits(wanted, found)
    if misfits:
        kind = WrongShape if list(misfits) == [WRONG_SHAPE] else WorkloadError
        complaint = "; ".join(f"{what} {_some(keys)}" for what, keys in misfits.items())
        raise kind(f"weights {path} do not fit {type(module).__name__}: {complaint}")

    check_finite(path, found)
    module.load_state_dict(found)


def check_finite(source: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that answer with no numbers, whatever they are asked.

    Raises:
        WorkloadError: values that are not finite; names ``source`` and keys.
    """
    broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise WorkloadError(
            f"weights {source} have values that are not finite in {_some(broken)}; the training or the copy went wrong"
        )


def check_config(weights: Path, wanted: Mapping[str, Any], network: str, size: str, source: str = "") -> None:
    """Hold a transformers folder's config.json, where there is one, against the network.

    Args:
        wanted: its fields, as the network has them.
        network: its name, with ``size`` for the message; so is ``source``, a checkpoint that has the shape.

    Raises:
        WorkloadError: unreadable, or of another shape; names file and field.
    """
    path = weights / "config.json"
    if not path.is_file():
        return

    try:
        found: dict[str, Any] = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WorkloadError(f"weights config {path} cannot be read: {error}") from error

    different = [
        f"{key} is {found.get(key)}, {size} has {value}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if different:
        hint = f"; it has the shape of {source}" if source else ""
        raise WorkloadError(f"weights config {path} is not of {network} {size}: {'; '.join(different)}{hint}")


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in FOLDER_FILES:
        path = folder / name
        if path.is_file() and path.suffix == ".json":
            return _read_shards(path)

        if path.is_file():
            return read_state_dict(path)

    raise WorkloadError(f"weights folder {folder} holds none of {', '.join(FOLDER_FILES)}")


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of all the files a transformers index names (``weight_map``: key → file)."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkloadError(f"weights index {index} cannot be read: {_first_line(error)}") from error

    tensors: dict[str, Tensor] = {}
    for shard in shards:
        tensors |= read_state_dict(index.parent / shard)

    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise WorkloadError(f"weights index {index} names keys that its files lack: {_some(missing)}")

    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return _without_prefix(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise WorkloadError(
            f"weights {path} cannot be read as safetensors ({_first_line(error)}); is the copy complete?"
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(NUMPY_NUMBERS):
            loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        tensors = _of_whole_module(path)
        if tensors:
            return _without_prefix(tensors)

        raise WorkloadError(
            f"weights {path} is no plain state_dict, or is damaged ({_first_line(error)}); "
            "save it again with torch.save(model.state_dict(), …) or as .safetensors"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, IndexError, BadZipFile) as error:
        if "TorchScript" in str(error):
            raise WorkloadError(
                f"weights {path} are a TorchScript archive, a program with its weights; take the checkpoint that "
                "it was made from (MLPerf publishes both), or save torch.jit.load(…).state_dict()"
            ) from error

        raise WorkloadError(
            f"weights {path} cannot be read ({_first_line(error)}); is the copy complete?"
        ) from error

    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break

    if not isinstance(loaded, Mapping) or not loaded:
        raise WorkloadError(f"weights {path} hold a {type(loaded).__name__}, not tensors by name")

    strangers = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    if strangers:
        raise WorkloadError(f"weights {path} hold things that are no tensors: {_some(strangers)}")

    return _without_prefix({str(key): value for key, value in loaded.items()})


def _of_whole_module(path: Path) -> dict[str, Tensor] | None:
    """None: the file holds no module, or cannot be read as one."""
    try:
        return read_module(path)
    except (
        *(pickle.UnpicklingError, OSError, EOFError, RuntimeError, BadZipFile, RecursionError),
        *(AttributeError, AssertionError, LookupError, TypeError, ValueError),
    ):  # what damaged files end in; the caller has torch's own word for it
        return None


def _without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): tensor for key, tensor in tensors.items()}

    return tensors


def _misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What does not fit, in words, and the keys; empty if all does."""
    shared = [(key, tensor, found[key]) for key, tensor in wanted.items() if key in found]
    misfits = {
        "missing": [key for key in wanted if key not in found],
        "unexpected": [key for key in found if key not in wanted],
        "no real numbers": [
            f"{key} is {theirs.dtype}".replace("torch.", "")
            for key, ours, theirs in shared
            if ours.is_floating_point() and not theirs.is_floating_point()
        ],
        WRONG_SHAPE: [
            f"{key} is {list(theirs.shape)}, the model has {list(ours.shape)}"
            for key, ours, theirs in shared
            if ours.shape != theirs.shape
        ],
    }
    return {what: keys for what, keys in misfits.items() if keys}


def _is_finite(tensor: Tensor) -> bool:
    """By their sum, 30 times as quick as by looking at each; one that is not finite may have overflowed."""
    return math.isfinite(float(tensor.sum())) or bool(tensor.float().isfinite().all())


def _some(names: list[str]) -> str:
    """``12 (a, b, c, …)``: the count, and the first few by name."""
    more = ", …" if len(names) > KEYS_NAMED else ""
    return f"{len(names)} ({', '.join(names[:KEYS_NAMED])}{more})"


def _first_line(error: BaseException) -> str:
    text, kind = str(error).strip(), type(error).__name__
    if isinstance(error, LookupError):  # whose text is the key alone
        return f"{kind}: {text}"

    return text.splitlines()[0] if text else kind
