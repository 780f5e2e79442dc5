"""DLRM: the network against its definition, tables that fit, samples as MLPerf's trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from workloads.catalog import CATALOG
from workloads.dlrm import (
    CPU_ROWS,
    DENSE,
    ROWS,
    SAMPLES,
    SMALL_ROWS,
    WIDTH,
    Dlrm,
    Network,
    Tables,
    affordable_cap,
    build_meta,
    flops_per_sample,
    row_cap,
    sample_pairs,
)
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.weights import seeded

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=1, threads=1, memory_mib=2048
)
INDICES = [17, 330_066, 0, 204_799]
CPU = torch.device("cpu")


def loaded(options: WorkloadOptions = SMALL) -> Dlrm:
    dlrm = Dlrm("dlrm", options)
    dlrm.load()
    return dlrm


@pytest.fixture(scope="module")
def dlrm() -> Dlrm:
    return loaded()


def test_the_network_is_dlrm_with_dot_interaction():
    rows = [3, 5, 2]
    with seeded(1), torch.inference_mode():
        tables = Tables(rows, torch.float32, CPU, seed=1)
        network = Network("small", tables)
        dense, chosen = torch.randn(4, DENSE), torch.tensor([[0, 4, 1], [2, 0, 0], [1, 1, 1], [2, 4, 0]])
        answers = network(dense, chosen + torch.tensor([0, 3, 8]))
        for pair in range(4):
            x = network.bot_l(dense[pair])
            vectors = [x] + [tables[t].weight[chosen[pair, t]] for t in range(3)]
            products = [vectors[i] @ vectors[j] for i in range(4) for j in range(i)]
            expected = network.top_l(torch.cat((x, torch.stack(products))))
            torch.testing.assert_close(answers[pair], expected[0])


def test_a_batch_answers_as_each_sample_alone(dlrm: Dlrm):
    together, alone = dlrm.predict(INDICES), dlrm.reference(INDICES)
    for one, other in zip(together, alone, strict=True):
        assert one.dtype == np.float32
        assert one.flags.c_contiguous
        assert len(one) in range(100, 701, 100)
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_answers_are_probabilities_that_differ(dlrm: Dlrm):
    answers = np.concatenate(dlrm.predict(INDICES))
    assert ((answers > 0) & (answers < 1)).all()
    assert answers.std() > 1e-3


def test_samples_are_as_in_mlperfs_trace(dlrm: Dlrm):
    pairs = sample_pairs(np.random.default_rng(SMALL.seed))
    assert dlrm.total_sample_count == len(pairs) == SAMPLES == 330_067
    assert pairs.mean() == pytest.approx(270, rel=0.01)
    assert (pairs.min(), pairs.max(), np.median(pairs)) == (100, 700, 200)
    assert [len(answer) for answer in dlrm.predict(INDICES)] == pairs[INDICES].tolist()


def test_the_whole_performance_set_costs_no_memory(dlrm: Dlrm):
    dlrm.load_samples(range(204_800))
    assert dlrm._samples.dense.nbytes + dlrm._samples.rows.nbytes < 64e6
    dlrm.unload_samples(range(204_800))


def test_every_row_asked_for_is_in_its_own_table(dlrm: Dlrm):
    rows = [min(count, SMALL_ROWS) for count in ROWS]
    first = np.concatenate(([0], np.cumsum(rows)))
    chosen = dlrm._samples.rows.numpy()
    assert (chosen >= first[:-1]).all()
    assert (chosen < first[1:]).all()
    assert chosen[:, 0].max() - first[0] > 0.99 * SMALL_ROWS


def test_the_same_seed_gives_the_same_bytes(dlrm: Dlrm):
    assert loaded().predict([0])[0].tobytes() == dlrm.predict([0])[0].tobytes()
    other = loaded(replace(SMALL, seed=2))
    other_answer, answer = other.predict([0])[0], dlrm.predict([0])[0]
    assert other_answer.tobytes() != answer.tobytes()


def test_bf16_stays_close_to_the_reference():
    dlrm = loaded(replace(SMALL, precision="bf16"))
    for half, exact in zip(dlrm.predict(INDICES), dlrm.reference(INDICES), strict=True):
        assert not np.array_equal(half, exact)
        np.testing.assert_allclose(half, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("memory_mib", [16_384, 71_424, 143_360])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_tables_take_at_most_half_and_nearly_that(memory_mib: int, dtype: torch.dtype):
    cap = affordable_cap(memory_mib, dtype)
    taken = sum(min(rows, cap) for rows in ROWS) * WIDTH * dtype.itemsize
    half = memory_mib * 2**20 // 2
    assert taken <= half
    assert cap == max(ROWS) or taken > 0.99 * half


def test_a_whole_h200_holds_mlperfs_tables_in_fp16_alone():
    whole = WorkloadOptions(
        size="full", device="cuda", precision="fp16", batch_size=8, seed=1, threads=1, memory_mib=143_360
    )
    assert row_cap(whole)[0] == max(ROWS)
    assert row_cap(replace(whole, precision="fp32"))[0] < max(ROWS)


def test_caps_on_a_cpu_and_for_small():
    full = replace(SMALL, size="full")
    assert row_cap(full)[0] == CPU_ROWS
    assert row_cap(SMALL)[0] == SMALL_ROWS
    assert row_cap(replace(full, memory_mib=64))[0] < CPU_ROWS
    assert row_cap(replace(full, memory_mib=0))[0] == 1


def test_notes_say_what_was_capped(dlrm: Dlrm):
    notes = "\n".join(dlrm.notes)
    assert "capped at 4,000 rows each (the cap of size small)" in notes
    assert "of MLPerf's 187,767,399 embedding rows" in notes
    assert "mean 270" in notes
    assert "starts in host memory" in notes


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_catalogue_counts_it_right(size: Size):
    assert CATALOG["dlrm"].parameters[size] == sum(each.numel() for each in build_meta(size).parameters())
    assert CATALOG["dlrm"].flops_per_sample[size] == flops_per_sample(size)


def test_full_has_mlperfs_mlps():
    network = build_meta("full")
    mlps = [*network.bot_l.parameters(), *network.top_l.parameters()]
    bottom = 13 * 512 + 512 + 512 * 256 + 256 + 256 * 128 + 128
    top = 479 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 * 512 + 512 + 512 * 256 + 256 + 256 + 1
    assert sum(each.numel() for each in mlps) == bottom + top


def test_weights_from_a_file_fill_tables_and_mlps(tmp_path: Path, dlrm: Dlrm):
    other = loaded(replace(SMALL, seed=9))
    path = tmp_path / "dlrm.pt"
    state = {key: value.clone() for key, value in other._exact.state_dict().items()}
    torch.save({"state_dict": state}, path)
    from_file = loaded(replace(SMALL, weights=path))
    assert from_file.predict([0])[0].tobytes() != dlrm.predict([0])[0].tobytes()
    assert torch.equal(from_file._exact.emb_l.together, other._exact.emb_l.together)
    assert torch.equal(from_file._exact.top_l[0].weight, other._exact.top_l[0].weight)

    state["emb_l.0.weight"] = torch.zeros(39_000, WIDTH)
    torch.save(state, path)
    with pytest.raises(
        WorkloadError, match=r"emb_l\.0\.weight is \[39000, 128\], the model has \[4000, 128\]"
    ):
        loaded(replace(SMALL, weights=path))


def test_a_checkpoint_of_the_reference_holds_numpys_numbers_too(tmp_path: Path, dlrm: Dlrm):
    """dlrm_s_pytorch.py saves accuracies, numpy scalars, beside the weights."""
    path = tmp_path / "tb00_40M.pt"
    state = {key: value.clone() for key, value in loaded(replace(SMALL, seed=9))._exact.state_dict().items()}
    checkpoint = {"iter": 5, "state_dict": state, "test_acc": np.float64(0.81), "train_acc": np.float32(0.8)}
    torch.save(checkpoint | {"opt_state_dict": {"state": {}}, "nbatches": np.int64(9)}, path)
    from_file = loaded(replace(SMALL, weights=path))
    assert from_file.predict([0])[0].tobytes() != dlrm.predict([0])[0].tobytes()


@pytest.mark.parametrize("wrong", ["cut short", "another network's"])
def test_capped_tables_are_not_blamed_for_what_is_wrong_otherwise(tmp_path: Path, dlrm: Dlrm, wrong: str):
    path = tmp_path / "weights.pt"
    torch.save(dlrm._exact.state_dict() if wrong == "cut short" else {"conv1.weight": torch.zeros(1)}, path)
    if wrong == "cut short":
        path.write_bytes(path.read_bytes()[:-2000])

    with pytest.raises(WorkloadError, match=r"weights\.pt") as caught:
        loaded(replace(SMALL, weights=path))

    assert "tables here are capped" not in str(caught.value)


def test_weights_of_whole_tables_do_not_fit_capped_ones(tmp_path: Path, dlrm: Dlrm):
    path = tmp_path / "tb00_40M.pt"
    state = {key: value.clone() for key, value in dlrm._exact.state_dict().items()}
    state["emb_l.1.weight"] = torch.zeros(ROWS[1], WIDTH)
    torch.save({"state_dict": state}, path)
    with pytest.raises(WorkloadError, match=r"tb00_40M\.pt .*emb_l\.1\.weight is .*capped at 4,000 rows"):
        loaded(replace(SMALL, weights=path))
