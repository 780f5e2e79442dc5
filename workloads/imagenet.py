"""ImageNet 2012's validation set, or any folder of images: found, checked, and top-1 over it.

Three kinds of folder, told apart by what is in them: with ``val_map.txt``, as MLPerf's reference wants it
(mlcommons/inference, vision/classification_and_detection/python/imagenet.py, ``Imagenet``); one folder for
each of the 1000 classes, as torchvision's ``ImageFolder``; plain images, without labels.

Imports neither torch nor Pillow at module level, so that the launcher can use it.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from workloads import images
from workloads.answers import in_order, of_size
from workloads.labelled import Score
from workloads.protocol import WorkloadError

CLASSES = 1000
MAP = "val_map.txt"
"""A line an image: its path below the folder, white space, its label from 0 to 999."""

CLASS_FOLDER = re.compile(r"n\d{8}")
"""A WordNet id. torchvision's labels, and those of its weights, are the places of the 1000 ids sorted."""

NAMED = 5
"""How many missing files a message spells out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageNet:
    """The images of one folder, in the order of their indices, and their labels if known."""

    images: images.Images
    labels: tuple[int, ...] | None
    """0 to 999, one an image; None where the folder says none."""
    said_by: str
    """Where the labels come from, or why there are none."""


class Top1:
    """Labels to judge by (labelled.py); an answer is one int64, the label that was found."""

    def __init__(self, labels: Sequence[int]) -> None:
        self._labels = tuple(labels)
        self.sample_count = len(self._labels)

    def score(self, answers: Mapping[int, bytes]) -> Score:
        """The share of images whose label was found, as MLPerf counts it (mlcommons/inference, vision/
        classification_and_detection/tools/accuracy-imagenet.py, ``main``).

        Raises:
            WorkloadError: answers are missing, or are no int64.
        """
        good = 0
        for index, answer in enumerate(in_order(answers, self.sample_count)):
            found = int.from_bytes(of_size(answer, index, 8, "an int64 label"), "little", signed=True)
            good += found == self._labels[index]

        return Score(
            metric="top-1",
            value=100 * good / self.sample_count,
            unit="%",
            samples=self.sample_count,
            details={"good": float(good)},
        )


def find(folder: Path) -> ImageNet:
    """The images and labels of ``folder``, by its names and its map alone; no image is opened.

    Raises:
        WorkloadError: no such folder, no images in it, or a map that is malformed or names files that are
            not there; names file and line.
    """
    if (folder / MAP).is_file():
        return _mapped(folder)

    found = images.find(folder)
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if len(classes) != CLASSES or not all(map(CLASS_FOLDER.fullmatch, classes)):
        why = f"no {MAP}, and {len(classes)} sub-folders, not one for each of the {CLASSES} classes (n01440764 …)"
        return ImageNet(images=found, labels=None, said_by=why)

    label_of = {name: label for label, name in enumerate(classes)}
    below = [path.relative_to(folder).parts for path in found.files]
    stray = ["/".join(parts) for parts in below if parts[0] not in label_of]
    if stray:
        raise WorkloadError(
            f"data folder {folder}: {len(stray)} images lie in none of its {CLASSES} class folders "
            f"({_some(stray)}); move them into their classes, or out"
        )

    labels = tuple(label_of[parts[0]] for parts in below)
    return ImageNet(images=found, labels=labels, said_by=f"the {CLASSES} class folders")


def inspect(folder: Path, *, most_decoded: int = images.MOST_DECODED) -> ImageNet:
    """Find them and open every image, before anything starts.

    Raises:
        WorkloadError: as ``find``; or files that are empty, truncated or no images, the first few by name.
    """
    found = find(folder)
    return replace(found, images=images.check(found.images, most_decoded=most_decoded))


def _mapped(folder: Path) -> ImageNet:
    path = folder / MAP
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"label map {path} cannot be read as text: {error}; take MLPerf's") from error

    labels: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, label = _entry(path, number, line)
            if name in labels:
                raise WorkloadError(f"label map {path}, line {number}: {name} a second time; remove one")

            labels[name] = label

    if not labels:
        raise WorkloadError(f"label map {path} is empty; a line is an image's name and its label")

    missing = [name for name in labels if not (folder / name).is_file()]
    if missing:
        raise WorkloadError(
            f"label map {path} names {len(missing)} of {len(labels)} images that are not in the folder "
            f"({_some(missing)}); add them, or take their lines out"
        )

    files = tuple(folder / name for name in labels)
    below = sum(len(names) for _, _, names in os.walk(folder))
    found = images.Images(folder=folder, files=files, ignored=below - len(files))
    return ImageNet(images=found, labels=tuple(labels.values()), said_by=MAP)


def _entry(path: Path, number: int, line: str) -> tuple[str, int]:
    words = line.split()
    if len(words) != 2:
        raise WorkloadError(
            f"label map {path}, line {number}: found {line.strip()[:80]!r}; a line is an image's name and its label"
        )

    name, text = words
    if not text.isascii() or not text.isdigit() or int(text) >= CLASSES:
        hint = "; does the map count from 1?" if text == str(CLASSES) else ""
        raise WorkloadError(
            f"label map {path}, line {number}: label {text[:40]!r} of {name}; labels are 0 to {CLASSES - 1}{hint}"
        )

    return name, int(text)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
