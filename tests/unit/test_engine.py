"""Which engine runs a network, and which batch sizes it computes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode

from workloads.catalog import build
from workloads.engine import Eager, bucket_of, chosen, engine_for
from workloads.fused import Block, ConvRelu, fused
from workloads.pipeline import Pipelined, begin_of, depth_of
from workloads.protocol import EngineName, WorkloadError, WorkloadOptions
from workloads.resnet50 import network

CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=10, seed=4, threads=1, memory_mib=1024
)


@pytest.mark.parametrize(
    ("asked", "device", "found"),
    [
        ("auto", "cpu", "eager"),
        ("auto", "cuda", "graph"),
        ("eager", "cuda", "eager"),
        ("compile", "cpu", "compile"),
        ("compile", "cuda", "compile"),
        ("graph", "cuda", "graph"),
    ],
)
def test_the_engine_of_each_device(asked: EngineName, device: str, found: str):
    assert chosen(replace(CPU, engine=asked, device=device)) == found


@pytest.mark.parametrize("name", ["resnet50", "bert", "dlrm", "rnnt", "ssd-mobilenet"])
def test_graphs_are_refused_on_a_cpu(name: str):
    with pytest.raises(WorkloadError, match="engine graph on a CPU slice"):
        build(name, replace(CPU, engine="graph")).load()


@pytest.mark.parametrize(
    ("count", "captured", "seen", "expected"),
    [
        (10, (), (), 10),  # the first: a whole batch
        (7, (10,), (), 10),  # an odd last batch goes into it
        (4, (10,), (), 10),  # so does a size met for the first time
        (4, (10,), (4,), 4),  # one that comes again gets its own
        (3, (4, 10), (), 4),
        (9, (4, 10), (9,), 10),
        (3, (), (), 4),  # nothing captured yet: the power of two above
    ],
)
def test_the_rows_that_are_computed_for_a_batch(
    count: int, captured: tuple[int, ...], seen: tuple[int, ...], expected: int
):
    assert bucket_of(count, 10, captured, seen) == expected


def test_on_a_cpu_the_function_is_called_as_it_is_and_the_notes_say_so():
    notes: list[str] = []
    engine = engine_for(lambda count: torch.arange(count), CPU, notes)
    assert isinstance(engine, Eager)
    assert engine.run(3).tolist() == [0, 1, 2]
    assert notes == ["engine: eager"]


def test_a_workload_on_a_cpu_has_one_batch_in_flight():
    workload = build("resnet50", CPU)
    assert isinstance(workload, Pipelined)
    assert (depth_of(workload), begin_of(workload)) == (1, None)
    workload.load()
    workload.load_samples(range(4))
    assert np.array_equal(workload.begin([2, 1]).result(), workload.predict([2, 1]))


class Made(TorchDispatchMode):
    """Notes the tensors that are made of Python's numbers: copied from pageable memory, which a CUDA graph refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.lift_fresh.default:
            self.seen.append(str(args[0].tolist()))

        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["ssd-mobilenet", "retinanet", "mpnet", "minilm", "swin-transformer"])
def test_what_a_graph_is_to_capture_makes_no_tensor_of_numbers(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)  # transformers asks
    workload: Any = build(name, CPU)
    workload.load()
    workload.load_samples(range(2))
    workload.predict(range(2))
    with torch.inference_mode(), Made() as made:
        torch.tensor(0.0)
        workload.engine.run(2)

    assert made.seen == ["0.0"]  # ours, by which its noting is seen


def test_fusing_finds_every_normalisation_and_relu_of_resnet50():
    whole = fused(network().eval())
    kinds = [type(each) for each in whole.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.ReLU not in kinds
    assert kinds.count(Block) == 16
    assert kinds.count(ConvRelu) == 49  # 3 of each block, and the stem
    assert kinds.count(nn.Conv2d) == 4  # the downsamplings, whose sum is the blocks' epilogue


def test_a_fused_convolution_has_the_normalisation_in_its_weights():
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    nn.init.normal_(norm.running_mean)
    run = nn.Sequential(conv, norm, nn.ReLU()).eval()
    (joined,) = fused(run).children()
    folded = fuse_conv_bn_eval(conv, norm)
    assert isinstance(joined, ConvRelu)
    assert torch.equal(joined.weight, folded.weight)
    assert torch.equal(joined.bias, folded.bias)
    assert conv.bias is None  # the network given is as it was
