"""KiTS19 as MLPerf preprocesses it: volumes and segmentations found, checked, read one by one, and DICE.

Two kinds of folder, told apart by what is in them:

- of mlcommons/inference, vision/medical_imaging/3d-unet-kits19/preprocess.py, ``Preprocessor.save``:
  ``case_XXXXX.pkl``, each a pickle of [image, label], and ``preprocessed_files.pkl``, which lists the cases;
- of mlcommons/training, image_segmentation/pytorch, ``preprocess_dataset.py``: ``case_XXXXX_x.npy`` and
  ``case_XXXXX_y.npy``.

An image is float32 and a label uint8, both [1, depth, height, width]; classes are 0 background, 1 kidney,
2 tumour. Pickles are read by an unpickler that builds numpy arrays and nothing else. Imports neither torch
nor numpy at module level, so that the launcher can use it.
"""

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads.answers import in_order, of_size
from workloads.labelled import Score
from workloads.protocol import WorkloadError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CLASSES = ("background", "kidney", "tumour")
LIST = "preprocessed_files.pkl"
CASE = re.compile(r"case_\d{5}")
PADDING = -2.2
"""Of images, to a whole number of windows: MLPerf's PADDING_VAL (global_vars.py). Of labels: 0."""

SMOOTH = 1e-6
"""Added to both sides of DICE's fraction (accuracy_kits.py, ``get_dice_score``)."""

NAMED = 5
"""How many missing files a message spells out."""

UNPICKLED = frozenset(
    (module, name)
    for module, names in {
        "numpy": ("dtype", "ndarray"),
        "numpy._core.multiarray": ("_reconstruct", "scalar"),
        "numpy._core.numeric": ("_frombuffer",),
        "_codecs": ("encode",),
    }.items()
    for name in names
)
"""What a pickle of arrays names, in any of pickle's protocols. None of these runs what the file says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One patient: where volume and segmentation lie."""

    name: str
    image: Path
    label: Path | None
    """The same file as ``image`` where both are in one pickle; None without a label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kits19:
    """The cases of one folder, in the order of their indices."""

    folder: Path
    cases: tuple[Case, ...]
    made_by: str
    """Whose preprocessing wrote the folder."""

    @property
    def has_labels(self) -> bool:
        return all(case.label is not None for case in self.cases)


class MeanDice:
    """Segmentations to judge by (labelled.py); an answer is a uint8 class a voxel, in the order of the volume.

    Labels are read when they are needed, one case at a time.
    """

    def __init__(self, data: Kits19, window: int) -> None:
        self._data = data
        self._window = window
        self.sample_count = len(data.cases)

    def score(self, answers: Mapping[int, bytes]) -> Score:
        """DICE of kidney and of tumour, each case's mean of the two, and the mean over the cases, as MLPerf
        has it (mlcommons/inference, vision/medical_imaging/3d-unet-kits19/accuracy_kits.py).

        Raises:
            WorkloadError: answers are missing, or not of their volume's size or classes; or a label cannot
                be read any more.
        """
        import numpy as np

        shares = np.array(
            [self._dice(index, answer) for index, answer in enumerate(in_order(answers, self.sample_count))]
        )
        kidney, tumour = (float(share) for share in shares.mean(axis=0))
        return Score(
            metric="DICE",
            value=(kidney + tumour) / 2,
            unit="",
            samples=self.sample_count,
            details={"kidney": kidney, "tumour": tumour},
        )

    def _dice(self, index: int, answer: bytes) -> list[float]:
        import numpy as np

        case = self._data.cases[index]
        label = fitted(read_label(case), self._window, 0)
        what = f"the classes of {case.name}'s {'×'.join(map(str, label.shape))} voxels"
        found = np.frombuffer(of_size(answer, index, prod(label.shape), what), dtype=np.uint8)
        if found.max() >= len(CLASSES):
            raise WorkloadError(
                f"the answer to sample {index} ({case.name}) has class {found.max()}; classes are 0 to 2"
            )

        wanted = label.ravel()
        return [_dice_of_class(found == number, wanted == number) for number in range(1, len(CLASSES))]


def _dice_of_class(found: "npt.NDArray[np.bool_]", wanted: "npt.NDArray[np.bool_]") -> float:
    both, either = int((found & wanted).sum()), int(found.sum()) + int(wanted.sum())
    return (2 * both + SMOOTH) / (either + SMOOTH)


def find(folder: Path) -> Kits19:
    """The cases of ``folder``, by its names and its list alone; no volume is read.

    Raises:
        WorkloadError: no such folder, no preprocessed cases in it, or some of them incomplete; names files.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WorkloadError(f"data folder {folder} {what}; name a folder of preprocessed KiTS19 with --data")

    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise WorkloadError(f"data folder {folder} cannot be read: {error.strerror}") from error

    pickled = _cases(names, ".pkl")
    if LIST in names or pickled:
        return _pickled(folder, _listed(folder / LIST) if LIST in names else pickled)

    arrays = _cases(names, "_x.npy")
    if arrays:
        return _arrays(folder, arrays, names)

    raw = any((folder / name / "imaging.nii.gz").exists() for name in sorted(names))
    raise WorkloadError(
        f"data folder {folder} holds neither case_XXXXX.pkl nor case_XXXXX_x.npy"
        + (": this is KiTS19 before preprocessing" if raw else "")
        + "; make them with MLPerf's 3d-unet-kits19/preprocess.py, and name its results folder with --data"
    )


def inspect(folder: Path) -> Kits19:
    """Find the cases and read every one of them, one at a time, before anything starts.

    Raises:
        WorkloadError: as ``find``; or a file that is damaged or holds something else; names the first.
    """
    data = find(folder)
    for case in data.cases:
        image, label = _read(case)
        volume = _checked_image(image, case.image)
        if case.label is not None and (segmented := _checked_label(label, case.label)).shape != volume.shape:
            raise WorkloadError(
                f"volume {case.label}: the label is {_shape(segmented)} and the image {_shape(volume)}; "
                "preprocess the case again"
            )

    return data


def read_image(case: Case) -> "npt.NDArray[np.float32]":
    """Its volume, [depth, height, width].

    Raises:
        WorkloadError: it cannot be read, or is no volume of finite floats.
    """
    image, _ = _read(case, with_label=False)
    return _checked_image(image, case.image)


def read_label(case: Case) -> "npt.NDArray[np.uint8]":
    """Its segmentation, [depth, height, width].

    Raises:
        WorkloadError: there is none, it cannot be read, or has other classes than 0, 1 and 2.
    """
    if case.label is None:
        raise WorkloadError(f"{case.name} has no label beside {case.image}")

    _, label = _read(case, with_image=False)
    return _checked_label(label, case.label)


def fitted(volume: "npt.NDArray[Any]", window: int, padding: float) -> "npt.NDArray[Any]":
    """Cut or padded so that windows overlapping by half fill each axis: itself if they do already.

    As MLPerf's preprocess.py, ``pad_to_min_shape`` and ``adjust_shape_for_sliding_window``, after which its
    own cases stay as they are. What is less than half a stride too long is cut, anything else padded, both
    on either side.
    """
    import numpy as np

    stride = window // 2
    short = [max(0, window - length) for length in volume.shape]
    if any(short):
        volume = np.pad(volume, _on_either_side(short), mode="edge")

    over = [length % stride if length % stride < stride // 2 else 0 for length in volume.shape]
    margins = zip(_on_either_side(over), volume.shape, strict=True)
    volume = volume[tuple(slice(before, length - after) for (before, after), length in margins)]
    under = [-length % stride for length in volume.shape]
    if any(under):
        volume = np.pad(volume, _on_either_side(under), mode="constant", constant_values=padding)

    return volume


def _on_either_side(lengths: Sequence[int]) -> list[tuple[int, int]]:
    return [(length // 2, length - length // 2) for length in lengths]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays, and what plain Python they lie in; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        # numpy 1 named its innards numpy.core; MLPerf's files were written with it.
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in UNPICKLED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}, and only arrays are read")

        return super().find_class(module, name)


def _cases(names: set[str], ending: str) -> list[str]:
    stems = (name.removesuffix(ending) for name in names if name.endswith(ending))
    return sorted(stem for stem in stems if CASE.fullmatch(stem))


def _listed(path: Path) -> list[str]:
    content = _loaded(path, _unpickled)
    cases = content.get("file_list") if isinstance(content, dict) else None
    if not isinstance(cases, list) or not cases:
        raise WorkloadError(f"case list {path} has no list under 'file_list'; preprocess the data again")

    strangers = [case for case in cases if not (isinstance(case, str) and CASE.fullmatch(case))]
    if strangers or len(set(cases)) < len(cases):
        found = f"{strangers[0]!r}" if strangers else "a case twice"
        raise WorkloadError(f"case list {path}, 'file_list': found {found}; want case_XXXXX, each once")

    return cases


def _pickled(folder: Path, names: list[str]) -> Kits19:
    paths = {name: folder / f"{name}.pkl" for name in names}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise WorkloadError(
            f"case list {folder / LIST} names {len(missing)} of {len(names)} cases that are not in the folder "
            f"({_some(missing)}); preprocess the data again, or remove the list to use what is there"
        )

    cases = tuple(Case(name=name, image=path, label=path) for name, path in paths.items())
    return Kits19(folder=folder, cases=cases, made_by="MLPerf inference's preprocess.py")


def _arrays(folder: Path, names: list[str], found: set[str]) -> Kits19:
    missing = [f"{name}_y.npy" for name in names if f"{name}_y.npy" not in found]
    if missing and len(missing) < len(names):
        raise WorkloadError(
            f"data folder {folder}: {len(missing)} of {len(names)} volumes lack their label "
            f"({_some(missing)}); add them, or remove all labels"
        )

    cases = tuple(
        Case(
            name=name,
            image=folder / f"{name}_x.npy",
            label=None if missing else folder / f"{name}_y.npy",
        )
        for name in names
    )
    return Kits19(folder=folder, cases=cases, made_by="MLPerf training's preprocess_dataset.py")


def _read(case: Case, *, with_image: bool = True, with_label: bool = True) -> tuple[Any, Any]:
    """What the case's files hold as image and as label; None for what is not asked for, or not there.

    A pickle is read as a whole whatever is asked for.
    """
    if case.image.suffix == ".npy":
        image = _loaded(case.image, _array) if with_image else None
        label = _loaded(case.label, _array) if with_label and case.label is not None else None
        return image, label

    pair = _loaded(case.image, _unpickled)
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise WorkloadError(
            f"volume {case.image} holds a {type(pair).__name__}, not [image, label]; preprocess the case again"
        )

    return pair[0], pair[1]


def _checked_image(array: Any, path: Path) -> "npt.NDArray[np.float32]":
    import numpy as np

    image = _squeezed(array, path, "image")
    if image.dtype.kind != "f" or not np.isfinite(image).all():
        raise WorkloadError(
            f"volume {path}: the image is of {image.dtype}"
            + (" with values that are not finite" if image.dtype.kind == "f" else "")
            + "; want finite float32: preprocess the case again"
        )

    return image.astype(np.float32, copy=False)


def _checked_label(array: Any, path: Path) -> "npt.NDArray[np.uint8]":
    import numpy as np

    label = _squeezed(array, path, "label")
    if label.dtype.kind not in "ui":
        raise WorkloadError(f"volume {path}: the label is of {label.dtype}; want uint8")

    if label.min() < 0 or label.max() >= len(CLASSES):
        raise WorkloadError(
            f"volume {path}: the label has values {label.min()} to {label.max()}; "
            "classes are 0 background, 1 kidney, 2 tumour"
        )

    return label.astype(np.uint8, copy=False)


def _array(path: Path) -> Any:
    import numpy as np

    return np.load(path, allow_pickle=False)


def _unpickled(path: Path) -> Any:
    with path.open("rb") as stream:
        return _ArrayUnpickler(stream).load()


def _loaded(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path)
    except pickle.UnpicklingError as error:
        raise WorkloadError(
            f"{path} is no pickle of arrays, or is damaged ({error}); copy it or preprocess the case again"
        ) from error
    except (
        *(OSError, EOFError, MemoryError, OverflowError, RecursionError),
        *(AttributeError, ImportError, LookupError, TypeError, ValueError),
    ) as error:  # what damaged pickles and arrays end in
        raise WorkloadError(
            f"{path} cannot be read ({error}); copy it or preprocess the case again"
        ) from error


def _squeezed(array: Any, path: Path, what: str) -> "npt.NDArray[Any]":
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise WorkloadError(f"volume {path}: the {what} is a {type(array).__name__}, not an array")

    if array.ndim != 4 or array.shape[0] != 1 or array.size == 0:
        raise WorkloadError(
            f"volume {path}: the {what} is {_shape(array)}; want [1, depth, height, width] and no empty side"
        )

    squeezed: npt.NDArray[Any] = array[0]
    return squeezed


def _shape(array: "npt.NDArray[Any]") -> str:
    return f"[{', '.join(map(str, array.shape))}]"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
