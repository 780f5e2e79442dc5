"""Each of MLPerf's models on a real GPU: batched answers in fp32 are those of the reference, one at a time."""

import pytest

from workloads.catalog import MACROS, build
from workloads.protocol import WorkloadOptions, output_bytes
from workloads.quality import comparison_of

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", MACROS["all"])
def test_in_fp32_a_batch_is_faithful(name: str):
    options = WorkloadOptions(
        size="small", device="cuda", precision="fp32", batch_size=4, seed=1, threads=4, memory_mib=8192
    )
    workload = build(name, options)
    workload.load()
    indices = [3, 0, 2, 1]
    workload.load_samples(indices)
    answers = output_bytes(workload.predict(indices))
    references = [workload.reference([index])[0] for index in indices]
    assert comparison_of(workload)(zip(answers, references, strict=True)).value >= 99
