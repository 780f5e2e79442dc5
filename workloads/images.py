"""Folders of real images: found, checked before anything starts, decoded as MLPerf does.

Imports neither torch nor Pillow at module level, so that the launcher can use it.
"""

import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from workloads.protocol import WorkloadError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
FORMATS = ("JPEG", "PNG")
"""Pillow's names; JPEG covers MPO, the JPEG of telephones with further pictures behind the first."""

MOST_DECODED = 2000
"""``inspect`` decodes this many files in full, evenly spaced; of the others it reads the header."""

NAMED = 5
"""How many bad files a message spells out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images of one folder, in the order of their indices."""

    folder: Path
    files: tuple[Path, ...]
    """Sorted by path below the folder: the same on every machine."""
    ignored: int
    """Files that are no images by their name; hidden files too."""
    decoded: int = 0
    """Of ``files``, how many were decoded in full by ``inspect``."""


def find(folder: Path) -> Images:
    """All JPEG and PNG files below ``folder``, flat or in sub-folders, by their names alone.

    Raises:
        WorkloadError: no such folder, not readable, or no images in it.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WorkloadError(f"data folder {folder} {what}; name a folder of JPEG or PNG files with --data")

    found: list[Path] = []
    ignored = 0
    try:
        for parent, _, names in os.walk(folder, onerror=_raise):
            for name in names:
                path = Path(parent, name)
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    found.append(path)
                else:
                    ignored += 1
    except OSError as error:
        raise WorkloadError(
            f"data folder {folder} cannot be read: {error.strerror}: {error.filename}"
        ) from error

    if not found:
        others = f", only {ignored} other files" if ignored else ": it is empty"
        raise WorkloadError(f"data folder {folder} holds no .jpg, .jpeg or .png file{others}; name another")

    found.sort(key=lambda path: path.relative_to(folder).as_posix())
    return Images(folder=folder, files=tuple(found), ignored=ignored)


def inspect(folder: Path, *, most_decoded: int = MOST_DECODED) -> Images:
    """Find the images of ``folder`` and open every one of them, before anything starts.

    Raises:
        WorkloadError: as ``find``; or files that are empty, truncated or no images, the first few by name.
    """
    return check(find(folder), most_decoded=most_decoded)


def check(images: Images, *, most_decoded: int = MOST_DECODED) -> Images:
    """Open every one of these images, whoever found them; ``decoded`` is then how many in full.

    Raises:
        WorkloadError: files that are missing, empty, truncated or no images, the first few by name.
    """
    folder, files = images.folder, images.files
    in_full = _evenly_spaced(len(files), most_decoded)
    checks: list[Callable[[Path], str | None]] = [
        _fault_in_pixels if index in in_full else _fault_in_header for index in range(len(files))
    ]
    with ThreadPoolExecutor(max(2, os.cpu_count() or 1)) as pool:
        faults = list(pool.map(lambda check, path: check(path), checks, files))

    bad = [f"{file.relative_to(folder)}: {fault}" for file, fault in zip(files, faults, strict=True) if fault]
    if bad:
        raise WorkloadError(_complaint(folder, bad, len(files)))

    return Images(folder=folder, files=files, ignored=images.ignored, decoded=len(in_full))


def read(path: Path, side: int) -> "npt.NDArray[np.float32]":
    """One image as the network wants it: ``[side, side, 3]`` RGB, normalised.

    As MLPerf's reference prepares ImageNet for PyTorch (mlcommons/inference, vision/
    classification_and_detection/python/dataset.py, ``pre_process_imagenet_pytorch``): short side to 256
    (in proportion for other sides) with PIL's bilinear filter, centre 224×224, /255, minus mean, by
    deviation: what torchvision's weights are trained on. (The TensorFlow and ONNX models take
    ``pre_process_vgg`` instead: short side by area, means of 0-255, no deviation.) EXIF orientation is
    honoured, as cv2.imread does there.

    Raises:
        WorkloadError: the file cannot be decoded.
    """
    import numpy as np
    from PIL import Image

    image = upright(path)
    short = short_side(side)
    width, height = image.size
    narrow = min(width, height)
    size = (int(short * width / narrow), int(short * height / narrow))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = round((size[0] - side) / 2), round((size[1] - side) / 2)
    image = image.crop((left, top, left + side, top + side))
    pixels = np.asarray(image, dtype=np.float32) / 255.0
    mean = np.array([0.485, 0.456, 0.406], dtype=np.float32)
    deviation = np.array([0.229, 0.224, 0.225], dtype=np.float32)
    normalised: npt.NDArray[np.float32] = (pixels - mean) / deviation
    return normalised


def upright(path: Path) -> "Image":
    """The picture as RGB, turned as its EXIF says: what cv2.imread gives MLPerf's reference.

    Raises:
        WorkloadError: the file cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=FORMATS) as opened:
            return _upright_rgb(opened)
    except _decode_errors() as error:
        raise WorkloadError(f"image {path} cannot be decoded: {_why(error)}") from error


def short_side(side: int) -> int:
    """To what the short side is scaled before the centre is cut out: 256 for 224, in proportion else."""
    return round(side * 256 / 224)


def _upright_rgb(image: "Image") -> "Image":
    """Turned as its EXIF says, and RGB whatever it was: grey, 16 bit, palette, CMYK, with alpha."""
    from PIL import ImageOps

    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, struct.error):
        pass  # damaged EXIF says nothing of the pixels, which are sound: taken as upright, as cv2 does

    if image.mode.startswith("I"):  # 16 bits: convert() would clip them to white
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB, Pillow warns

    return image if image.mode == "RGB" else image.convert("RGB")


def _fault_in_pixels(path: Path) -> str | None:
    """What is wrong with the file after decoding all of it; None if nothing is.

    JPEG's draft mode decodes at an eighth of the size: every byte is read, most arithmetic is saved.
    """
    return _fault(path, lambda image: (image.draft("RGB", (1, 1)), image.load()))


def _fault_in_header(path: Path) -> str | None:
    return _fault(path, lambda image: image.size)


def _fault(path: Path, look: "Callable[[Image], object]") -> str | None:
    from PIL import Image

    try:
        if path.stat().st_size == 0:
            return "empty file"

        with Image.open(path, formats=FORMATS) as image:
            look(image)
    except _decode_errors() as error:
        return _why(error)

    return None


def _decode_errors() -> tuple[type[Exception], ...]:
    """What Pillow raises for files that are no good (its PNG reader: SyntaxError)."""
    from PIL import Image

    return (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)


def _why(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG or PNG image, whatever its name says"

    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()  # permission denied, no such file (a dangling link)

    return f"damaged: {error}"


def _complaint(folder: Path, bad: Sequence[str], total: int) -> str:
    lines = [f"data folder {folder}: {len(bad)} of {total} image files cannot be used"]
    lines += [f"  {line}" for line in bad[:NAMED]]
    if len(bad) > NAMED:
        lines.append(f"  … and {len(bad) - NAMED} more")

    lines.append("replace or remove them, or name another folder with --data")
    return "\n".join(lines)


def _evenly_spaced(count: int, most: int) -> frozenset[int]:
    """At most ``most`` of ``range(count)``, the first among them."""
    if count <= most:
        return frozenset(range(count))

    return frozenset(step * count // most for step in range(most))


def _raise(error: OSError) -> None:
    raise error
