"""BERT without padding computes what BERT with padding does."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from workloads.bert import Bert
from workloads.bert_packed import LADDER, Packed, PackedNetwork, fill, step_for
from workloads.protocol import WorkloadOptions

CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=4, threads=1, memory_mib=1024
)


def test_packed_samples_get_the_logits_of_padded_ones():
    bert = Bert("bert", CPU)
    bert.load()
    indices = [5, 0, 77, 5, 9]
    batch = bert.packed(indices)
    with torch.inference_mode():
        network = PackedNetwork(bert._build(torch.float32), 128)
        logits = network.forward(torch.from_numpy(batch.words), torch.from_numpy(batch.bounds)).numpy()

    expected = bert.predict(indices)
    for row, (start, stop) in enumerate(zip(batch.bounds[:-1], batch.bounds[1:], strict=True)):
        assert np.allclose(logits[start:stop], expected[row, : stop - start], atol=1e-5)


def test_packing_lays_out_the_same_words_as_padding_does():
    bert = Bert("bert", CPU)
    bert.load()
    batch = bert.packed([3, 1])
    tokens, segments, mask = (each.numpy() for each in bert._batch([3, 1]))
    lengths = mask.sum(axis=1)
    assert batch.tokens == lengths.sum()
    assert batch.words[0].tolist() == [*tokens[0, : lengths[0]], *tokens[1, : lengths[1]]]
    assert batch.words[1].tolist() == [*segments[0, : lengths[0]], *segments[1, : lengths[1]]]
    assert batch.words[2].tolist() == [*range(lengths[0]), *range(lengths[1])]


def test_tokens_too_many_are_sequences_of_their_own():
    batch = Packed(np.arange(1, 16, dtype=np.int32).reshape(3, 5), np.array([0, 2, 5], np.int32))
    staged = np.full(3 * 16 + 8, -1, np.int32)
    fill(staged, batch, 16, 7, longest=4)
    words = staged[:48].reshape(3, 16)
    assert words[:, :5].tolist() == batch.words.tolist()
    assert not words[:, 5:].any()
    assert staged[48:55].tolist() == [0, 2, 5, 9, 13, 16, 16]
    assert staged[55] == -1


@given(st.integers(1, 5000), st.integers(256, 5000))
def test_a_step_holds_the_tokens_and_has_room(tokens: int, most: int):
    """1025 tokens of nine short samples: the next step, 1536, is more than a batch of nine has room for."""
    step = step_for(tokens, most)
    assert step is None or tokens <= step <= most
    assert step == min((each for each in LADDER if tokens <= each <= most), default=None)
    assert step_for(1025, 9 * 128 + 128) is None
