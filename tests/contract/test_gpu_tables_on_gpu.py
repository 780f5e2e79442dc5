"""The built-in tables against the boards of this machine. Read only."""

import pytest

from scheduler import nvml
from scheduler.gpu_tables import of_gpu
from scheduler.nvml_mig import NvmlMig

pytestmark = pytest.mark.gpu


def test_the_built_in_table_is_what_the_driver_says():
    """Of every GPU here that knows MIG and has a table: names, ids, slices, placements, counts, MiB, SMs, engines."""
    with nvml.open() as gpus:
        memory_mib = {gpu.uuid: gpu.memory_mib for gpu in gpus.gpus()}
        read = [gpu for gpu in NvmlMig(gpus).gpus() if gpu.geometry is not None]

    told = [(gpu.geometry, of_gpu(gpu.name, memory_mib[gpu.uuid])) for gpu in read]
    compared = [
        (ours.profiles, theirs.profiles) for theirs, ours in told if ours is not None and theirs is not None
    ]
    if not compared:
        pytest.skip("no GPU here that has a built-in table")

    for ours, theirs in compared:
        assert ours == theirs
