"""What the workloads refuse before they compute."""

from pathlib import Path

import pytest

from workloads.catalog import build
from workloads.protocol import WorkloadError, WorkloadOptions

NAMES = ["bert", "dlrm", "3d-unet", "rnnt"]


@pytest.mark.parametrize("name", NAMES)
def test_fp16_on_a_cpu_is_refused_with_the_reason(name: str):
    options = WorkloadOptions(
        size="small", device="cpu", precision="fp16", batch_size=1, seed=1, threads=1, memory_mib=1024
    )
    with pytest.raises(WorkloadError, match=r"fp16 on a CPU.*slower than fp32.*fp32 or bf16"):
        build(name, options)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_the_data_set_is_refused_by_name(name: str, tmp_path: Path):
    options = WorkloadOptions(
        size="small",
        device="cpu",
        precision="fp32",
        batch_size=1,
        seed=1,
        threads=1,
        memory_mib=1024,
        data=tmp_path,
    )
    with pytest.raises(WorkloadError, match=rf"{tmp_path}.* holds n"):
        build(name, options).load()
