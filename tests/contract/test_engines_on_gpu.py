"""Engines on a real GPU: what a captured graph answers is what the eager network answers."""

from collections import deque
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from workloads import llama_decoding
from workloads.bert import Bert
from workloads.catalog import build
from workloads.dlrm import Dlrm
from workloads.dlrm_gpu import interact
from workloads.engine import Eager, Graphs, engine_for
from workloads.pipeline import Pipelined
from workloads.protocol import EngineName, WorkloadError, WorkloadOptions
from workloads.suppression import by_torchvision, in_one_kernel
from workloads.vision import ImageWorkload

pytestmark = pytest.mark.gpu
OPTIONS = WorkloadOptions(
    size="small", device="cuda", precision="fp16", batch_size=8, seed=3, threads=4, memory_mib=8192
)


def loaded(engine: EngineName, **changed: object) -> ImageWorkload:
    workload = build("resnet50", replace(OPTIONS, engine=engine, **changed))
    assert isinstance(workload, ImageWorkload)
    workload.load()
    workload.load_samples(range(64))
    return workload


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_graphs_answer_as_eager_does(precision: str):
    graph, eager = loaded("graph", precision=precision), loaded("eager", precision=precision)
    assert isinstance(graph.engine, Graphs)
    assert isinstance(eager.engine, Eager)
    alike = []
    for start, count in ((0, 8), (8, 8), (16, 3), (19, 1), (20, 1), (21, 5), (26, 8)):
        indices = range(start, start + count)
        alike += list(np.asarray(graph.predict(indices)) == np.asarray(eager.predict(indices)))

    assert np.mean(alike) >= (1.0 if precision == "fp32" else 0.9)
    assert graph.engine.buckets == [1, 8]


@pytest.mark.parametrize(("name", "batch_size"), [("minilm", 8), ("bert", 128)])
def test_compiling_leaves_no_process_behind(name: str, batch_size: int):
    """Of bert's 128 samples the tokens have no graph."""
    workload = build(name, replace(OPTIONS, engine="compile", batch_size=batch_size))
    workload.load()
    workload.load_samples(range(batch_size))
    workload.predict(range(batch_size))
    assert "engine: compile" in "; ".join(workload.notes)
    children = psutil.Process().children(recursive=True)
    assert [child.cmdline() for child in children if "compile_worker" in " ".join(child.cmdline())] == []


def test_windows_of_a_volume_are_segmented_as_eagerly():
    """Groups of windows that do not fill the graph's batch among them."""
    answers = {}
    for engine in ("graph", "eager"):
        workload = build("3d-unet", replace(OPTIONS, engine=engine, precision="fp32", batch_size=1))
        workload.load()
        assert f"engine: {engine}" in "; ".join(workload.notes)
        workload.load_samples([0, 1])
        answers[engine] = workload.predict([0, 1])

    for graph, eager in zip(answers["graph"], answers["eager"], strict=True):
        assert np.mean(np.asarray(graph) == np.asarray(eager)) > 0.9999


def test_batches_in_flight_end_in_the_order_they_began():
    workload = loaded("graph")
    assert isinstance(workload, Pipelined)
    assert workload.depth == 2
    expected = [np.array(workload.predict(range(at, at + 8))) for at in range(0, 56, 8)]
    pending, found = [], []
    for at in range(0, 56, 8):
        if len(pending) == workload.depth:
            found.append(np.array(pending.pop(0).result()))

        pending.append(workload.begin(range(at, at + 8)))

    found += [np.array(one.result()) for one in pending]
    assert np.array_equal(np.stack(found), np.stack(expected))


def test_what_cannot_be_captured_runs_eagerly_and_says_so():
    def waits(count: int) -> Tensor:
        rows = torch.arange(count, device="cuda")
        return rows * int(rows.sum().item())  # the host waits here, which a capture forbids

    notes: list[str] = []
    stream = torch.cuda.current_stream()
    engine = engine_for(waits, OPTIONS, notes)
    assert isinstance(engine, Eager)
    assert "CUDA graphs failed" in notes[0]
    assert engine.run(3).tolist() == [0, 3, 6]
    with pytest.raises(WorkloadError, match="cannot be captured"):
        engine_for(waits, replace(OPTIONS, engine="graph"), [])

    assert torch.cuda.current_stream() == stream
    assert torch.rand(3, device="cuda").shape == (3,)  # a reference's weights are drawn after it


def test_packed_bert_in_graphs_answers_as_the_reference_does():
    bert = Bert("bert", OPTIONS)
    bert.load()
    for indices in (range(8), range(8, 11), [11]):  # each of other tokens
        found, expected = bert.predict(indices), bert.reference(indices)
        there = expected > -9_000
        assert np.array_equal(there, found > -9_000)
        assert np.abs(found - expected)[there].max() < 0.02 * np.abs(expected[there]).max()


def test_coalesced_dlrm_rates_as_the_reference_does():
    dlrm = Dlrm("dlrm", OPTIONS)
    dlrm.load()
    pending = [dlrm.begin(range(at, at + 8)) for at in (0, 8)]
    found = [rated for one in pending for rated in one.result()]
    for rated, expected in zip(found, dlrm.reference(range(16)), strict=True):
        assert np.allclose(rated, expected, atol=5e-3)

    assert dlrm._coalesced is not None
    handed = dlrm._coalesced.begin([dlrm._samples[index] for index in range(16, 21)])  # as recorded ones are
    for rated, expected in zip(handed.result(), dlrm.reference(range(16, 21)), strict=True):
        assert np.allclose(rated, expected, atol=5e-3)


def test_batches_of_dlrm_in_flight_do_not_meet():
    """Each is brought while the one before it is computed."""
    dlrm = Dlrm("dlrm", OPTIONS)
    dlrm.load()
    expected = [dlrm.predict(range(at, at + 8)) for at in range(0, 64, 8)]
    pending, found = [], []
    for at in range(0, 64, 8):
        if len(pending) == dlrm.depth:
            found.append([rated.copy() for rated in pending.pop(0).result()])

        pending.append(dlrm.begin(range(at, at + 8)))

    found += [list(one.result()) for one in pending]
    for some, others in zip(found, expected, strict=True):
        assert np.allclose(np.concatenate(some), np.concatenate(others), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pairs", [1, 270, 4099])
def test_dlrms_kernel_interacts_as_torch_does(dtype: torch.dtype, pairs: int):
    kernel = pytest.importorskip("workloads.dlrm_triton")
    rows = 2**31 // 128 + 1_000  # beyond 32 bits of offset
    tables = torch.empty(rows, 128, dtype=dtype, device="cuda").uniform_(-0.1, 0.1)
    x = torch.rand(pairs, 128, device="cuda").to(dtype) / 8
    chosen = torch.randint(rows, (pairs, 26), device="cuda", dtype=torch.int32)
    chosen[-1, :3] = torch.tensor([0, rows - 1, 0])
    exact = interact(x, tables, chosen, 480).float()
    for tile in (kernel.TILE, (1, 1, 1), (8, 3, 1), (8, 2, 2)):
        found = kernel.interact(x, tables, chosen, 480, tile)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_decoders_graph_transcribes_as_launching_its_steps_does(count: int):
    graph, eager = (
        build("rnnt", replace(OPTIONS, precision="fp32", engine=name)) for name in ("graph", "eager")
    )
    for workload in (graph, eager):
        workload.load()

    alike = []
    for start in (0, 40, 80):
        indices = range(start, start + count)
        for found, expected in zip(graph.predict(indices), eager.predict(indices), strict=True):
            alike.append(np.array_equal(found, expected))

    assert np.mean(alike) >= 0.8  # products of other shapes round otherwise, and a tie may fall the other way


@pytest.mark.parametrize("engine", ["graph", "eager"])
def test_utterances_in_flight_are_transcribed_as_one_batch_after_another(engine: EngineName):
    """Whoever asks whether a batch is done has it decoded on; one never asked for is decoded before those after it."""
    workload = build("rnnt", replace(OPTIONS, engine=engine))
    workload.load()
    assert isinstance(workload, Pipelined)
    batches = [range(at, min(at + 8, 61)) for at in range(0, 61, 8)]
    expected = [rows.tolist() for batch in batches for rows in workload.predict(batch)]
    found, former = [], None
    for batch in batches:
        pending = workload.begin(batch)
        if former is not None:
            while not former.done():
                pass

            found += former.result()

        former = pending

    assert former is not None
    forgotten, last = workload.begin(batches[0]), workload.begin(batches[1])
    assert not last.done()
    assert [rows.tolist() for rows in last.result()] == expected[8:16]
    assert forgotten.done()
    assert [rows.tolist() for rows in [*found, *former.result()]] == expected
    assert sum(map(len, expected)) > 61


@pytest.mark.parametrize("engine", ["graph", "eager"])
@pytest.mark.parametrize("name", ["ssd-mobilenet", "ssd-resnet34", "retinanet"])
def test_detections_in_flight_are_those_of_one_batch_after_another(name: str, engine: EngineName):
    """In their order, each answer its own sample's; a last batch that is not full among them, of three: they are always
    rows of the graph of four, where two would have a graph of their own the second time, and round otherwise."""
    workload = build(name, replace(OPTIONS, engine=engine, batch_size=4))
    workload.load()
    workload.load_samples(range(19))
    assert f"engine: {engine}" in "; ".join(workload.notes)
    assert in_one_kernel() is not None
    assert isinstance(workload, Pipelined)
    batches = [range(at, min(at + 4, 19)) for at in range(0, 19, 4)]
    expected = [rows for batch in batches for rows in workload.predict(batch)]
    pending, found = deque(), []
    for batch in batches:
        if len(pending) == workload.depth:
            found += pending.popleft().result()

        pending.append(workload.begin(batch))

    for one in pending:
        found += one.result()

    assert sum(map(len, found)) > 19
    for index, (rows, wanted) in enumerate(zip(found, expected, strict=True)):
        assert set(rows[:, 0]) <= {float(index)}
        assert np.array_equal(rows, wanted)


def test_suppression_on_the_gpu_keeps_what_it_does_on_the_cpu():
    """Groups of several tiles among them."""
    kernel = in_one_kernel()
    assert kernel is not None
    generator = torch.Generator().manual_seed(1)
    corner, size = (torch.rand(3000, 2, generator=generator) for _ in range(2))
    boxes, count = torch.cat((corner, corner + size), dim=1), torch.tensor([900, 0, 1, 256, 257, 40] * 2)
    first = count.cumsum(0) - count
    on_gpu = kernel(boxes.cuda(), first.cuda(), count.cuda(), 0.5).cpu()
    assert torch.equal(on_gpu, by_torchvision(boxes, first, count, 0.5))


def test_texts_decoded_by_a_graph_are_those_decoded_eagerly(monkeypatch: pytest.MonkeyPatch):
    """Batches that do not fill a graph's rows among them, and one that comes back after another size; several graphs,
    by how far the cache is read."""
    monkeypatch.setattr(llama_decoding, "READ_MULTIPLE", 8)
    texts = {}
    for engine in ("graph", "eager"):
        workload = build("llama", replace(OPTIONS, engine=engine, precision="fp32"))
        workload.load()
        assert f"engine: {engine}" in "; ".join(workload.notes)
        asked = (range(8), range(8, 11), [11], range(12, 20))
        texts[engine] = np.concatenate([np.asarray(workload.predict(list(each))) for each in asked])

    assert np.array_equal(texts["graph"], texts["eager"])
