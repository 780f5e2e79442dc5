"""Tiny labelled data sets in their real formats, one for each workload of MLPerf's."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit import test_coco, test_criteo, test_kits19, test_librispeech, test_squad


def imagenet(folder: Path) -> Path:
    """Six images and a val_map.txt."""
    folder.mkdir()
    lines = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        lines.append(f"{number}.jpg {number * 100}\n")

    (folder / "val_map.txt").write_text("".join(lines))
    return folder


def coco(folder: Path) -> Path:
    """Four images, one of them without objects."""
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    document = test_coco.document()
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    for seed, record in enumerate(document["images"]):
        pixels = np.random.default_rng(seed).integers(0, 255, (100, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "val2017" / record["file_name"])

    return folder


def squad(folder: Path) -> Path:
    """Questions and a vocabulary."""
    folder.mkdir()
    return test_squad.write(folder, test_squad.tree())


def criteo(folder: Path) -> Path:
    """A thousand user-item pairs."""
    return test_criteo.write_binary(folder, test_criteo.pairs())


def kits19(folder: Path) -> Path:
    """Two cases with segmentations."""
    folder.mkdir()
    return test_kits19.make_arrays(folder)


def librispeech(folder: Path) -> Path:
    """Three utterances of at most 15 s."""
    return test_librispeech.write_transcripts(folder)


OF = {
    "resnet50": imagenet,
    "ssd-resnet34": coco,
    "ssd-mobilenet": coco,
    "bert": squad,
    "dlrm": criteo,
    "3d-unet": kits19,
    "rnnt": librispeech,
}
"""By workload: makes a folder for ``--data``, which must not be there yet."""
