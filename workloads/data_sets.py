"""Folders of ``--data``: which module knows those of a workload, so that they are looked through before a run.

Imports neither torch nor LoadGen, so that the launcher can use it.
"""

from importlib import import_module
from pathlib import Path

_INSPECTED_BY = {
    "resnet50": "workloads.imagenet",
    "vision-transformer": "workloads.imagenet",
    "swin-transformer": "workloads.imagenet",
    "ssd-resnet34": "workloads.coco",
    "ssd-mobilenet": "workloads.coco",
    "retinanet": "workloads.images",
    "bert": "workloads.squad",
    "dlrm": "workloads.criteo",
    "3d-unet": "workloads.kits19",
    "rnnt": "workloads.librispeech",
}
"""Each with an ``inspect(folder)`` that opens what is there. Others look at their data when they load it."""


def inspect(workload: str, folder: Path) -> None:
    """Look through a folder of inputs for a workload of the catalogue, before anything starts.

    Raises:
        WorkloadError: what is in it cannot be used; names file, and field or line.
    """
    module = _INSPECTED_BY.get(workload)
    if module is not None:
        import_module(module).inspect(folder)
