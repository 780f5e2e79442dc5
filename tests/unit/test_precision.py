"""What the workloads refuse before they compute."""

from itertools import product
from pathlib import Path

import pytest
import torch

from workloads.catalog import build
from workloads.precision import without_tf32
from workloads.protocol import WorkloadError, WorkloadOptions

NAMES = ["bert", "dlrm", "3d-unet", "rnnt"]


@pytest.mark.parametrize("name", NAMES)
def test_fp16_on_a_cpu_is_refused_with_the_reason(name: str):
    options = WorkloadOptions(
        size="small", device="cpu", precision="fp16", batch_size=1, seed=1, threads=1, memory_mib=1024
    )
    with pytest.raises(WorkloadError, match=r"fp16 on a CPU.*slower than fp32.*fp32 or bf16"):
        build(name, options)


@pytest.mark.parametrize("allowed", list(product((False, True), repeat=2)))
def test_tf32_is_as_it_was_once_the_reference_is_computed(allowed: tuple[bool, bool]):
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    try:
        products.allow_tf32, convolutions.allow_tf32 = allowed
        with without_tf32():
            assert not products.allow_tf32
            assert not convolutions.allow_tf32

        assert (products.allow_tf32, convolutions.allow_tf32) == allowed
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


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
