"""A workload that is not ours, in its worker: imported, held to the Protocol at every step, blamed by file and line."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from workloads.own import ENTRY_POINT, FILE, module_spec
from workloads.own_class import METHODS
from workloads.protocol import Workload, WorkloadError, WorkloadOptions

if TYPE_CHECKING:
    from workloads.protocol import Outputs

OPTIONAL = ("labelled", "fidelity", "begin", "depth", "lengths")


class Guest:
    """A user's workload; whatever it gives is looked at before it goes on to LoadGen.

    Args:
        inner: the user's object.
        where: ``FILE:CLASS`` for messages.
        code_note: what code this was, for the result's reader.
    """

    def __init__(self, inner: Any, where: str, code_note: str) -> None:
        self._inner: Workload = inner
        self._where = where
        self._code_note = code_note
        self.notes: list[str] = []
        self.total_sample_count = 0

    def __getattr__(self, name: str) -> Any:
        """What a workload may have beside the Protocol (pipeline.py, quality.py), where the user's object has it."""
        if name not in OPTIONAL:
            raise AttributeError(name)

        found = getattr(self._inner, name)
        return self._begin if name == "begin" else found

    def _begin(self, indices: Sequence[int]) -> "_Checked":
        return _Checked(self._inner.begin(indices), len(indices), self._where)  # type: ignore[attr-defined]  # it has it

    def load(self) -> None:
        """Load the user's model.

        Raises:
            WorkloadError: total_sample_count or notes are not what the Protocol says.
        """
        self._inner.load()
        count, notes = (getattr(self._inner, name, None) for name in ("total_sample_count", "notes"))
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise WorkloadError(
                f"{self._where}: total_sample_count is {count!r} after load(); the size of the sample library is "
                "wanted, a whole number of at least 1"
            )

        if not isinstance(notes, list | tuple) or not all(isinstance(note, str) for note in notes):
            raise WorkloadError(
                f"{self._where}: notes is {notes!r} after load(); a list of sentences is wanted"
            )

        self.total_sample_count = count
        self.notes = [*notes, self._code_note]

    def load_samples(self, indices: Sequence[int]) -> None:
        self._inner.load_samples(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        self._inner.unload_samples(indices)

    def predict(self, indices: Sequence[int]) -> "Outputs":
        """What the user's predict gives.

        Raises:
            WorkloadError: it is not one C-contiguous numpy output a sample.
        """
        outputs = self._inner.predict(indices)
        complaint = _complaint(outputs, len(indices))
        if complaint:
            raise WorkloadError(f"{self._where}: predict {complaint}")

        return outputs

    def reference(self, indices: Sequence[int]) -> "Outputs":
        """As predict."""
        outputs = self._inner.reference(indices)
        complaint = _complaint(outputs, len(indices))
        if complaint:
            raise WorkloadError(f"{self._where}: reference {complaint}")

        return outputs


class _Checked:
    """A batch that has begun, whose outputs are looked at; a Pending (pipeline.py)."""

    def __init__(self, pending: Any, count: int, where: str) -> None:
        self._pending, self._count, self._where = pending, count, where

    def done(self) -> bool:
        return bool(self._pending.done())

    def result(self) -> "Outputs":
        outputs: Outputs = self._pending.result()
        complaint = _complaint(outputs, self._count)
        if complaint:
            raise WorkloadError(f"{self._where}: what begin began {complaint}")

        return outputs


def _complaint(outputs: Any, count: int) -> str:
    """What is wrong with the outputs of ``count`` samples; empty where nothing is."""
    wanted = f"for {count} samples; wanted is a numpy array whose first axis is {count}, or a list of {count} arrays"
    if type(outputs) is np.ndarray:
        if not outputs.ndim or len(outputs) != count:
            return f"gave an array of shape {outputs.shape} {wanted}"

        arrays: Sequence[Any] = (outputs,)
    elif type(outputs) is list:
        if len(outputs) != count:
            return f"gave a list of {len(outputs)} {wanted}"

        arrays = outputs
    else:
        hint = " (a tensor's is .cpu().numpy())" if type(outputs).__name__ == "Tensor" else ""
        return f"gave {_a(outputs)} {wanted}{hint}"

    for each in arrays:
        if not isinstance(each, np.ndarray):
            return f"gave a list with {_a(each)} in it {wanted}"

        if each.dtype.hasobject:
            return f"gave Python objects (dtype {each.dtype}) {wanted}; LoadGen logs their bytes"

        if not each.flags.c_contiguous:
            return f"gave an array of shape {each.shape} that is not C-contiguous {wanted}; see np.ascontiguousarray"

    return ""


def _a(thing: object) -> str:
    return "nothing" if thing is None else f"a {type(thing).__name__}"


# ---------------------------------------------------------------------- making it


def construct(code: str, name: str, options: WorkloadOptions) -> Guest:
    """Import the user's module and construct the class in it.

    Args:
        code: as own.Own has it, of a file or an entry point.

    Raises:
        WorkloadError: there is no such class, or it is no workload. What importing it raises goes through; blame()
            puts it into words.
    """
    kind, _, rest = code.partition(":")
    source, _, class_name = rest.rpartition(":")
    module = _imported_file(Path(source)) if kind == FILE else importlib.import_module(source)
    where = f"{source}:{class_name}"
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        what = "there is no such name" if found is None else f"it is a {type(found).__name__}"
        raise WorkloadError(f"{where} is not a class: {what} once {source} is imported")

    lacking = [method for method in METHODS if not callable(getattr(found, method, None))]
    if lacking:
        raise WorkloadError(
            f"{where} lacks {', '.join(lacking)}; a workload has the members of workloads.protocol.Workload"
        )

    try:
        inspect.signature(found).bind(name, options)
    except TypeError as error:
        raise WorkloadError(f"{where} is constructed with (name, options): {error}") from error

    return Guest(found(name, options), where, f"code: {where}{_digest(module)}")


def _imported_file(path: Path) -> ModuleType:
    """Import a file as Python runs a script, its folder first on the path; within a package, as part of it."""
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder, parts = folder.parent, [folder.name, *parts]

    sys.path.insert(0, str(folder))
    if len(parts) > 1:
        return importlib.import_module(".".join(parts))

    taken = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    name = f"own_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise WorkloadError(f"{path} cannot be imported: Python has no loader for it")

    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _digest(module: ModuleType) -> str:
    """The first digits of the file's SHA-256: which version of it this was."""
    try:
        content = Path(module.__file__ or "").read_bytes()
    except OSError:
        return ""

    return f", sha256 {sha256(content).hexdigest()[:16]}"


# ---------------------------------------------------------------------- whose fault it was


def blame(code: str, error: BaseException) -> str | None:
    """``FILE:LINE: in FUNCTION: TYPE: TEXT`` for an error that came out of the user's code; None for others'."""
    kind, _, rest = code.partition(":")
    if kind not in (FILE, ENTRY_POINT):
        return None

    folder = _folder_of(kind, rest.rpartition(":")[0])
    text = f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")
    if isinstance(error, SyntaxError) and error.filename and _is_theirs(error.filename, folder):
        return f"{error.filename}:{error.lineno or 1}: {type(error).__name__}: {error.msg}"

    frames = [each for each in traceback.extract_tb(error.__traceback__) if _is_theirs(each.filename, folder)]
    if not frames:
        return None

    last = frames[-1]
    within = "" if last.name.startswith("<") else f"in {last.name}: "
    return f"{last.filename}:{last.lineno}: {within}{text}"


def _folder_of(kind: str, source: str) -> Path | None:
    """Where the user's code is: the file's folder, or that of the entry point's whole package."""
    if kind == FILE:
        return Path(source).parent

    spec = module_spec(source.partition(".")[0])
    return Path(spec.origin).resolve().parent if spec is not None and spec.origin else None


def _is_theirs(file: str, folder: Path | None) -> bool:
    """Whether a file is below the folder and neither installed below it nor one of this program's."""
    path = Path(file).resolve()
    if folder is None or not path.is_relative_to(folder) or path.is_relative_to(Path(__file__).parent):
        return False

    return not {"site-packages", "dist-packages"} & set(path.relative_to(folder).parts)
