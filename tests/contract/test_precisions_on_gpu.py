"""On a GPU: TF32 and 8 bits, by the kernels that are there, beside the fp32 reference; else refused."""

import numpy as np
import pytest
import torch

from workloads.catalog import CATALOG, build
from workloads.fidelity import by_kind
from workloads.precision import CAPABILITY, without_tf32
from workloads.protocol import EngineName, Precision, WorkloadError, WorkloadOptions, output_bytes
from workloads.quantised import Form, ScaledLinear, quantised

pytestmark = pytest.mark.gpu

QUANTISED = [name for name, entry in CATALOG.items() if "int8" in entry.precisions]


def options(precision: Precision, engine: EngineName = "auto") -> WorkloadOptions:
    return WorkloadOptions(
        **{"size": "small", "device": "cuda", "precision": precision, "engine": engine},
        **{"batch_size": 8, "seed": 1, "threads": 4, "memory_mib": 8192},
    )


def asked(precision: Precision) -> None:
    """Go on where the GPU has it; else see that it is refused."""
    if torch.cuda.get_device_capability() < CAPABILITY[precision]:
        with pytest.raises(WorkloadError, match="compute capability"):
            build("bert", options(precision))

        pytest.skip(f"this GPU has no {precision}")


@pytest.mark.parametrize("form", ["int8", "fp8"])
@pytest.mark.parametrize("rows", [1, 16, 17, 100])
def test_the_kernels_product_is_that_of_what_was_quantised(form: Form, rows: int):
    asked(form)
    torch.manual_seed(0)
    weight, bias, x = (torch.randn(*shape, device="cuda") for shape in ((48, 64), (48,), (rows, 64)))
    (x_rows, x_scale), (w_rows, w_scale) = quantised(x, form), quantised(weight, form)
    with without_tf32():
        by_hand = (x_rows.float() * x_scale) @ (w_rows.float() * w_scale).t() + bias

    torch.testing.assert_close(ScaledLinear(weight, bias, form)(x), by_hand, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("precision", ["tf32", "fp8", "int8"])
@pytest.mark.parametrize("engine", ["graph", "compile"])
@pytest.mark.parametrize("name", QUANTISED)
def test_it_answers_nearly_as_the_reference(name: str, engine: EngineName, precision: Precision):
    asked(precision)
    workload = build(name, options(precision, engine))
    workload.load()
    samples = list(range(8))
    workload.load_samples(samples)
    answers = output_bytes(workload.predict(samples))
    with without_tf32():
        references = workload.reference(samples)

    told = getattr(workload, "fidelity", by_kind)(zip(answers, references, strict=True))
    assert told.value > (99 if precision == "tf32" else 80)


@pytest.mark.parametrize("name", ["resnet50", "rnnt", "dlrm", "3d-unet"])
def test_tf32_is_fp32_but_for_its_products(name: str):
    asked("tf32")
    workload = build(name, options("tf32"))
    workload.load()
    workload.load_samples([0, 1])
    answers = workload.predict([0])
    with without_tf32():
        references = workload.reference([0])

    assert len(answers) == len(references)
    assert np.isfinite(np.asarray(answers[0], dtype=np.float64)).all()
