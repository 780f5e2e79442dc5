"""Linear layers in 8 bits: the same products as by hand, near enough to fp32, refused where there are none."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workloads.bert_packed import PackedNetwork
from workloads.catalog import CATALOG, build
from workloads.fidelity import by_kind
from workloads.passes import LARGEST, PLAIN, Form
from workloads.precision import compute_dtype, is_exact, without_tf32
from workloads.protocol import Precision, WorkloadError, WorkloadOptions, output_bytes
from workloads.quantised import ScaledLinear, fits, quantise

CPU = WorkloadOptions(
    size="small", device="cpu", precision="int8", batch_size=4, seed=1, threads=1, memory_mib=1024
)
FORMS: tuple[Form, ...] = ("int8", "fp8")
QUANTISED = [name for name, entry in CATALOG.items() if "int8" in entry.precisions]


def linear(inner: int, outer: int, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inner, outer).requires_grad_(False)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=20)
@given(rows=st.integers(1, 40), inner=st.integers(1, 8), outer=st.integers(1, 8), seed=st.integers(0, 99))
def test_the_8_bit_product_is_that_of_what_was_quantised(
    form: Form, rows: int, inner: int, outer: int, seed: int
):
    plain = linear(16 * inner, 16 * outer, seed)
    x = torch.randn(rows, 16 * inner)
    (x_rows, x_scale), (w_rows, w_scale) = PLAIN.quantised(x, form), PLAIN.quantised(plain.weight, form)
    by_hand = (x_rows.float() * x_scale) @ (w_rows.float() * w_scale).t() + plain.bias
    found = ScaledLinear(plain.weight, plain.bias, form)(x)
    assert found.shape == by_hand.shape
    assert found.dtype == x.dtype
    tolerance = {"int8": 1e-4, "fp8": 2e-2}[form]  # fp8's product is rounded to bf16
    torch.testing.assert_close(found, by_hand, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("form", "error"), [("int8", 1 / 254), ("fp8", 1 / 16)])
@settings(max_examples=20)
@given(factor=st.floats(1e-6, 1e6))
def test_a_quantised_row_is_within_half_a_step_whatever_its_size(form: Form, error: float, factor: float):
    matrix = torch.linspace(-factor, factor, 64).reshape(2, 32)
    rows, scale = PLAIN.quantised(matrix, form)
    assert rows.float().abs().max() <= LARGEST[form]
    largest = matrix.abs().amax(dim=1, keepdim=True)
    assert ((rows.float() * scale - matrix).abs() <= 1.001 * error * largest).all()


def test_a_row_of_zeros_is_one():
    rows, scale = PLAIN.quantised(torch.zeros(1, 16), "int8")
    assert not (rows.float() * scale).any()
    assert scale.isfinite().all()


def test_batches_of_any_shape_keep_theirs():
    layer = ScaledLinear(*(part.detach() for part in linear(32, 48, 0).parameters()), "int8")
    assert layer(torch.randn(2, 3, 32)).shape == (2, 3, 48)
    assert layer(torch.randn(2, 3, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_heads_of_odd_size_and_other_classes_stay_as_they_are():
    attention = nn.MultiheadAttention(32, 2)
    network = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 64)), nn.Linear(64, 2), attention)
    assert quantise(network, "int8") == 2
    kinds = [type(each).__name__ for each in network]
    assert kinds == ["ScaledLinear", "Sequential", "Linear", "MultiheadAttention"]
    assert not fits(network[2].weight)


@pytest.mark.parametrize("name", QUANTISED)
def test_a_network_in_int8_answers_nearly_as_in_fp32(name: str):
    workload = build(name, CPU)
    workload.load()
    samples = range(4)
    workload.load_samples(samples)
    answers, references = workload.predict(samples), workload.reference(samples)
    told = getattr(workload, "fidelity", by_kind)(zip(output_bytes(answers), references, strict=True))
    assert told.value > 80
    assert any("linear layers in int8" in note for note in workload.notes)
    if np.asarray(answers).dtype.kind == "f":  # not by the quantised network itself
        assert not np.array_equal(np.asarray(answers), np.asarray(references))


@pytest.mark.parametrize("form", FORMS)
def test_packed_bert_in_8_bits_is_near_the_plain_one(form: Form):
    from workloads.bert import build as build_bert

    torch.manual_seed(0)
    network = build_bert("small").requires_grad_(False)
    words = torch.stack((torch.arange(1000, 1024), torch.zeros(24).long(), torch.arange(24))).int()
    bounds = torch.tensor([0, 24]).int()
    plain, rough = (PackedNetwork(network, 128, each).forward(words, bounds) for each in (None, form))
    assert 0 < (plain - rough).abs().max() < 0.1 * plain.abs().max()


# ---------------------------------------------------------------------- where there is none


@pytest.mark.parametrize("precision", ["tf32", "fp8"])
def test_what_a_cpu_has_not_is_refused(precision: Precision):
    with pytest.raises(WorkloadError, match=f"precision {precision} on a CPU slice.*fp32, bf16 or int8"):
        compute_dtype(replace(CPU, precision=precision))


@pytest.mark.parametrize(
    ("precision", "capability", "needed"),
    [("fp8", (8, 6), "8.9"), ("tf32", (7, 5), "8.0"), ("int8", (7, 0), "7.5")],
)
def test_a_gpu_that_is_too_old_is_refused_by_its_name(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, capability: tuple[int, int], needed: str
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")
    with pytest.raises(
        WorkloadError, match=rf"{precision} needs .*{needed} or more; an old GPU has {capability[0]}"
    ):
        compute_dtype(replace(CPU, device="cuda", precision=precision))


def test_tf32_is_allowed_where_it_was_asked_for_and_never_to_the_reference(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    assert compute_dtype(replace(CPU, device="cuda", precision="tf32")) is torch.float32
    assert matmul.allow_tf32
    assert cudnn.allow_tf32
    with without_tf32():
        assert not (matmul.allow_tf32)
        assert not (cudnn.allow_tf32)

    assert matmul.allow_tf32
    assert cudnn.allow_tf32
    compute_dtype(replace(CPU, device="cuda", precision="fp32"))
    assert not (matmul.allow_tf32)
    assert not (cudnn.allow_tf32)


def test_the_dtypes_around_the_8_bit_products(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    on_gpu = replace(CPU, device="cuda")
    assert compute_dtype(CPU) is torch.float32
    assert compute_dtype(on_gpu) is torch.float16
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert compute_dtype(replace(on_gpu, precision="fp8")) is torch.float16
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert compute_dtype(replace(on_gpu, precision="fp8")) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert compute_dtype(replace(on_gpu, precision="fp8")) is torch.bfloat16
    assert [is_exact(replace(CPU, precision=each)) for each in ("fp32", "tf32", "int8")] == [
        True,
        True,
        False,
    ]
