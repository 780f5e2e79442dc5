"""COCO 2017's validation set: images and boxes found and checked, and mAP over them.

The folder is as it is published: ``annotations/instances_val2017.json`` and the images in ``val2017/``,
as MLPerf's reference reads them (mlcommons/inference, vision/classification_and_detection/python/coco.py,
``Coco``). A folder without ``annotations`` is plain images, without labels.

Imports neither torch nor Pillow nor pycocotools at module level, so that the launcher can use it.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workloads import images
from workloads.answers import in_order
from workloads.labelled import Score
from workloads.protocol import WorkloadError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ANNOTATIONS = "annotations/instances_val2017.json"
PICTURES = "val2017"

NOT_USED = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
CATEGORIES = tuple(identifier for identifier in range(1, 91) if identifier not in NOT_USED)
"""The ids of COCO's 80 categories, in the file's order; of 1 to 90 ten are not used."""

COLUMNS = 7
"""Of an answer's row: sample index, ymin, xmin, ymax, xmax, score, label."""

MOST_PIXELS = 1e12
"""No box and no area of a real image is larger; nor is it NaN, which JSON as Python reads it may hold."""

NAMED = 5
"""How many missing files a message spells out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image as the annotations describe it."""

    identifier: int
    file: Path
    width: int
    height: int
    objects: int
    """Annotations that name it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coco:
    """The images of one data set, in the order of their indices: that of the annotations' ``images``."""

    folder: Path
    annotations: Path
    pictures: tuple[Picture, ...]
    decoded: int = 0
    """Of ``pictures``, how many were decoded in full by ``inspect``."""

    def with_objects(self) -> "Coco":
        """Without the images that show nothing of the 80 categories (48 of the 5000)."""
        return replace(self, pictures=tuple(picture for picture in self.pictures if picture.objects))


class MeanAveragePrecision:
    """Boxes to judge by (labelled.py).

    An answer is rows of seven float32, as MLPerf logs them (``PostProcessCocoPt``): sample index, ymin,
    xmin, ymax, xmax as shares of the image, score, label.
    """

    def __init__(self, data: Coco, category_of: Sequence[int]) -> None:
        """``category_of[label]`` is the category that the model means by a label; 0 is the background."""
        self._data = data
        self._category_of = tuple(category_of)
        self.sample_count = len(data.pictures)

    def score(self, answers: Mapping[int, bytes]) -> Score:
        """COCO's mAP over IoU 0.50 to 0.95, by pycocotools, from the same rows that MLPerf gives it
        (mlcommons/inference, vision/classification_and_detection/tools/accuracy-coco.py, ``main``).

        Raises:
            WorkloadError: answers are missing, or no rows of detections.
        """
        import numpy as np

        rows = [self._rows(index, each) for index, each in enumerate(in_order(answers, self.sample_count))]
        stats = self._evaluate(np.concatenate(rows))
        return Score(
            metric="mAP",
            value=100 * stats[0],
            unit="%",
            samples=self.sample_count,
            details={"AP50": 100 * stats[1], "AP75": 100 * stats[2]},
        )

    def _rows(self, index: int, answer: bytes) -> "npt.NDArray[np.float64]":
        """As pycocotools wants them: image id, left, top, width, height in pixels, score, category."""
        import numpy as np

        if len(answer) % (COLUMNS * 4):
            raise WorkloadError(
                f"the answer to sample {index} has {len(answer)} bytes, no whole rows of {COLUMNS} float32"
            )

        found = np.frombuffer(answer, dtype=np.float32).reshape(-1, COLUMNS)
        labels = found[:, 6]
        known = (labels >= 1) & (labels < len(self._category_of)) & (labels == np.floor(labels))
        if not (found[:, 0] == index).all() or not known.all():
            raise WorkloadError(
                f"the answer to sample {index} has rows of another sample, or labels other than 1 to "
                f"{len(self._category_of) - 1}; are these the answers of this model to this data?"
            )

        picture = self._data.pictures[index]
        top, bottom = found[:, 1] * picture.height, found[:, 3] * picture.height
        left, right = found[:, 2] * picture.width, found[:, 4] * picture.width
        categories = np.array(self._category_of)[labels.astype(np.int64)]
        identifiers = np.full(len(found), picture.identifier)
        columns = (identifiers, left, top, right - left, bottom - top, found[:, 5], categories)
        return np.stack([column.astype(np.float64) for column in columns], axis=1)

    def _evaluate(self, rows: "npt.NDArray[np.float64]") -> list[float]:
        """COCOeval's first three figures, as shares: mAP, and AP at IoU 0.50 and at 0.75."""
        if not len(rows):
            return [0.0] * 3  # pycocotools cannot load no detections; nothing found is nothing right

        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with redirect_stdout(io.StringIO()):  # it reports its progress by print
            truth: Any = COCO()
            truth.dataset = _without_masks(_read(self._data.annotations))
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(_results(rows)), iouType="bbox")
            evaluation.params.imgIds = [picture.identifier for picture in self._data.pictures]
            # Objects of all sizes alone: small, medium and large ones by themselves would be three quarters
            # of the work and of the memory, for figures that nobody asks for.
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()

        return [float(share) for share in evaluation.stats[:3]]


def find(folder: Path) -> Coco | images.Images:
    """What ``folder`` holds, by its names and its annotations alone; no image is opened.

    Raises:
        WorkloadError: no such folder, no images in it, or annotations that are malformed or name images
            that are not there; names file and field.
    """
    if not (folder / "annotations").is_dir():
        return images.find(folder)

    path = folder / ANNOTATIONS
    if not path.is_file():
        raise WorkloadError(
            f"data folder {folder} has annotations/, but no {ANNOTATIONS}; add it, or take annotations/ "
            "away to use the images without labels"
        )

    document = _read(path)
    if [category.get("id") for category in _records(path, document, "categories")] != list(CATEGORIES):
        raise WorkloadError(
            f"annotations {path}: categories are not COCO's 80 in their order (ids 1 to 90 without ten), "
            "which the model's labels stand for; take the file as it is published"
        )

    objects = _objects(path, document)
    pictures = _pictures(path, document, folder, objects)
    missing = [picture.file.name for picture in pictures if not picture.file.is_file()]
    if missing:
        raise WorkloadError(
            f"annotations {path} name {len(missing)} of {len(pictures)} images that are not in "
            f"{folder / PICTURES} ({_some(missing)}); add them, or take them out of the annotations' images"
        )

    return Coco(folder=folder, annotations=path, pictures=pictures)


def inspect(folder: Path, *, most_decoded: int = images.MOST_DECODED) -> Coco | images.Images:
    """Find it and open every image, before anything starts.

    Raises:
        WorkloadError: as ``find``; or images that are empty, truncated or no images, the first few by name,
            or of another size than the annotations say.
    """
    found = find(folder)
    if isinstance(found, images.Images):
        return images.check(found, most_decoded=most_decoded)

    files = tuple(picture.file for picture in found.pictures)
    checked = images.check(images.Images(folder=folder, files=files, ignored=0), most_decoded=most_decoded)
    _check_sizes(found)
    return replace(found, decoded=checked.decoded)


def _check_sizes(data: Coco) -> None:
    from PIL import Image

    for picture in data.pictures:
        with Image.open(picture.file, formats=images.FORMATS) as image:
            width, height = image.size

        # Turned by EXIF, width and height may stand for each other.
        if {width, height} != {picture.width, picture.height}:
            raise WorkloadError(
                f"annotations {data.annotations}: {picture.file.name} is {picture.width}×{picture.height} by its "
                f"width and height, the file is {width}×{height}; boxes would lie elsewhere: take the originals"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        document: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WorkloadError(
            f"annotations {path} cannot be read as JSON ({error}); is the copy complete?"
        ) from error

    if not isinstance(document, dict):
        raise WorkloadError(f"annotations {path} hold a JSON {type(document).__name__}, not COCO's object")

    return document


def _records(path: Path, document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    records = document.get(key)
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise WorkloadError(
            f"annotations {path}: no list of objects under {key!r}; is it a COCO instances file?"
        )

    if not records:
        raise WorkloadError(f"annotations {path}: {key!r} is empty; take the file as it is published")

    return records


def _objects(path: Path, document: dict[str, Any]) -> dict[int, int]:
    """How many annotations each image id has, every one of them checked."""
    known = {record.get("id") for record in _records(path, document, "images")}
    records = _records(path, document, "annotations")
    counts: dict[int, int] = {}
    seen: set[int] = set()
    for place, record in enumerate(records):
        where = f"annotations {path}: annotations[{place}]"
        identifier = _integer(record, "id", where)
        if identifier in seen:
            raise WorkloadError(f"{where}: id {identifier} a second time; ids of annotations are unique")

        seen.add(identifier)
        image = _integer(record, "image_id", where, least=0)
        if image not in known:
            raise WorkloadError(f"{where}: image_id {image} is none of the file's images; mend or remove it")

        category = _integer(record, "category_id", where)
        if category not in CATEGORIES:
            raise WorkloadError(f"{where}: category_id {category} is none of COCO's 80 categories")

        if record.get("iscrowd") not in (0, 1):
            raise WorkloadError(f"{where}: iscrowd is {record.get('iscrowd')!r}, not 0 or 1")

        box = record.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, [*box, record.get("area")])):
            raise WorkloadError(
                f"{where}: bbox {box!r} and area {record.get('area')!r}; want [left, top, width, height] and a number"
            )

        counts[image] = counts.get(image, 0) + 1

    if all(record["iscrowd"] for record in records):
        raise WorkloadError(
            f"annotations {path}: every object is a crowd (iscrowd 1), which mAP does not count"
        )

    return counts


def _pictures(
    path: Path, document: dict[str, Any], folder: Path, objects: Mapping[int, int]
) -> tuple[Picture, ...]:
    pictures: dict[int, Picture] = {}
    for place, record in enumerate(_records(path, document, "images")):
        where = f"annotations {path}: images[{place}]"
        identifier = _integer(record, "id", where, least=0)
        name = record.get("file_name")
        if not isinstance(name, str) or Path(name).name != name:
            raise WorkloadError(f"{where}: file_name is {name!r}; want the name of a file in {PICTURES}/")

        if identifier in pictures:
            raise WorkloadError(f"{where}: id {identifier} a second time; ids of images are unique")

        pictures[identifier] = Picture(
            identifier=identifier,
            file=folder / PICTURES / name,
            width=_integer(record, "width", where),
            height=_integer(record, "height", where),
            objects=objects.get(identifier, 0),
        )

    return tuple(pictures.values())


def _integer(record: dict[str, Any], key: str, where: str, *, least: int = 1) -> int:
    value = record.get(key)
    if type(value) is not int or value < least:
        found = "is missing" if value is None else f"is {value!r}"
        raise WorkloadError(f"{where}: {key} {found}; want a whole number, {least} or more")

    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MOST_PIXELS


def _results(rows: "npt.NDArray[np.float64]") -> list[dict[str, Any]]:
    """As loadRes takes them. It would give each an outline besides, which boxes do not need, if it had none."""
    return [
        {
            "image_id": int(image),
            "category_id": int(category),
            "bbox": box,
            "score": score,
            "segmentation": (),
        }
        for image, *box, score, category in rows.tolist()
    ]


def _without_masks(document: dict[str, Any]) -> dict[str, Any]:
    """Boxes need no outlines, which are most of the file."""
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = [{key: record[key] for key in keys} for record in document["annotations"]]
    return {"images": document["images"], "categories": document["categories"], "annotations": annotations}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
