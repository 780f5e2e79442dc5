"""Every workload of the catalogue on a real GPU, as a background benchmark would run it."""

import pytest

from workloads.catalog import CATALOG, build
from workloads.protocol import Precision, WorkloadOptions, output_bytes

pytestmark = pytest.mark.gpu

OWN_KERNELS = ("bert", "dlrm", "rnnt", "ssd-resnet34", "retinanet", "llama", "bert:train")
"""Of those that compute otherwise in 16 bits than in 32, or by kernels that are compiled for each dtype."""
ASKED: list[tuple[str, Precision]] = [
    *((name, "fp16") for name in CATALOG),
    *((name, "bf16") for name in OWN_KERNELS),
    *((name, "fp32") for name in ("resnet50", "3d-unet", "ssd-mobilenet", "minilm", "matmul", *OWN_KERNELS)),
]
"""The default of all; other precisions of one of each kind. (A reference is in fp32 anyway.)"""


@pytest.mark.filterwarnings("ignore:RNN module weights are not part")  # torch has bf16 LSTMs compacted a call
@pytest.mark.parametrize(("name", "precision"), ASKED)
def test_a_batch_is_answered(name: str, precision: Precision):
    options = WorkloadOptions(
        size="small", device="cuda", precision=precision, batch_size=4, seed=1, threads=4, memory_mib=8192
    )
    workload = build(name, options)
    workload.load()
    indices = [0, 3, 1, 2]
    workload.load_samples(indices)
    answers = output_bytes(workload.predict(indices))
    assert len(answers) == len(indices)
    learns = name.endswith(":train")  # its losses fall
    assert answers == output_bytes(workload.predict(indices)) or precision != "fp32" or learns
    references = output_bytes(workload.reference(indices))
    assert len(references) == len(indices)
