"""RNN-T: batched greedy decoding against the plain one; lengths and symbol rates as of speech."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads.catalog import CATALOG
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.rnnt import FRAMES_PER_S, SAMPLES, Rnnt, flops_per_sample, utterance_frames
from workloads.rnnt_network import BLANK, FEATURES, MAX_SYMBOLS_PER_STEP, Network, build, greedy_decode
from workloads.rnnt_speech import speak
from workloads.weights import seeded

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=1, threads=1, memory_mib=2048
)
INDICES = [5, 2_512, 0, 41]


def loaded(options: WorkloadOptions = SMALL) -> Rnnt:
    rnnt = Rnnt("rnnt", options)
    rnnt.load()
    return rnnt


@pytest.fixture(scope="module")
def rnnt() -> Rnnt:
    return loaded()


def one_at_a_time(network: Network, encoded: Tensor) -> list[int]:
    """Graves 2012's greedy search as written: one utterance [time, width], the joint's inputs side by side."""
    symbols: list[int] = []
    state = torch.zeros(2, 2, 1, network.prediction.dec_rnn.lstm.hidden_size)
    for frame in encoded:
        for _ in range(MAX_SYMBOLS_PER_STEP):
            latest = torch.tensor([symbols[-1] if symbols else -1])
            after = network.prediction.step(latest, state)
            best = int(network.joint.net(torch.cat((frame[None], after[-1, 0]), dim=1)).argmax())
            if best == BLANK:
                break

            symbols.append(best)
            state = after

    return symbols


def assert_decodes_as_each_alone(network: Network, encoded: Tensor, lengths: Tensor) -> list[int]:
    """Returns how many symbols each utterance got."""
    symbols, counts = greedy_decode(network, encoded, lengths)
    for lane, length in enumerate(lengths):
        expected = one_at_a_time(network, encoded[:length, lane])
        assert symbols[lane, : counts[lane]].tolist() == expected

    return counts.tolist()


def test_decoding_a_batch_is_decoding_each():
    with seeded(3), torch.inference_mode():
        network = build("small")
        speak(network)
        lengths = torch.tensor([60, 1, 33, 48])
        encoded = network.encoder(torch.randn(120, 4, FEATURES), 2 * lengths)
        counts = assert_decodes_as_each_alone(network, encoded, lengths)
        assert len(set(counts)) == 4


@pytest.mark.parametrize(("blank_bias", "symbols_per_step"), [(-99.0, MAX_SYMBOLS_PER_STEP), (99.0, 0)])
def test_decoding_stops_at_thirty_symbols_a_step_and_at_none(blank_bias: float, symbols_per_step: int):
    with seeded(3), torch.inference_mode():
        network = build("small")
        network.joint.last.bias[BLANK] = blank_bias
        lengths = torch.tensor([4, 1, 3])
        counts = assert_decodes_as_each_alone(network, torch.randn(4, 3, 256), lengths)
        assert counts == (symbols_per_step * lengths).tolist()


def test_prediction_steps_are_the_lstms_own():
    with seeded(4), torch.inference_mode():
        prediction = build("small").prediction
        symbols = torch.tensor([[4, 0], [27, 27], [1, 9]])
        state = torch.zeros(2, 2, 2, 80)
        steps = []
        for row in symbols:
            state = prediction.step(row, state)
            steps.append(state[-1, 0])

        torch.testing.assert_close(torch.stack(steps), prediction.dec_rnn(prediction.embed(symbols)))


def test_padding_does_not_reach_an_utterance():
    with seeded(5), torch.inference_mode():
        encoder = build("small").encoder
        features = torch.randn(12, 2, FEATURES)
        together = encoder(features, torch.tensor([12, 7]))
        alone = encoder(features[:7, 1:], torch.tensor([7]))
        assert alone.shape[0] == 4
        torch.testing.assert_close(together[:4, 1:], alone)


def test_a_batch_answers_as_each_sample_alone(rnnt: Rnnt):
    together, alone = rnnt.predict(INDICES), rnnt.reference(INDICES)
    assert [each.dtype for each in together] == [np.int64] * len(INDICES)
    assert [each.tolist() for each in together] == [each.tolist() for each in alone]
    assert len({len(each) for each in together}) > 1


@pytest.mark.parametrize("seed", [1, 2])
def test_it_writes_as_many_symbols_as_people_speak(seed: int):
    rnnt = loaded(replace(SMALL, seed=seed))
    indices = range(16)
    answers = rnnt.predict(indices)
    frames = utterance_frames(np.random.default_rng(seed))[list(indices)]
    seconds = frames / FRAMES_PER_S
    rates = [len(answer) / length for answer, length in zip(answers, seconds, strict=True)]
    assert 10 < np.mean(rates) < 20
    assert 5 < min(rates) <= max(rates) < 30
    assert len(set(np.concatenate(answers).tolist())) > 14


def test_the_same_seed_gives_the_same_symbols(rnnt: Rnnt):
    again, other = loaded(), loaded(replace(SMALL, seed=2))
    assert [each.tolist() for each in again.predict(INDICES)] == [
        each.tolist() for each in rnnt.predict(INDICES)
    ]
    assert other.predict([0])[0].tolist() != rnnt.predict([0])[0].tolist()


def test_bf16_writes_nearly_as_much():
    rnnt = loaded(replace(SMALL, precision="bf16"))
    exact, half = rnnt.reference(INDICES), rnnt.predict(INDICES)
    assert sum(map(len, half)) == pytest.approx(sum(map(len, exact)), rel=0.1)


def test_lengths_are_librispeechs():
    seconds = utterance_frames(np.random.default_rng(0)) / FRAMES_PER_S
    assert len(seconds) == SAMPLES == 2_513
    assert seconds.mean() == pytest.approx(6.25, rel=0.03)
    assert 1.4 <= seconds.min() < seconds.max() <= 15.03


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_catalogue_counts_it_right(size: Size):
    with torch.device("meta"):
        parameters = sum(each.numel() for each in build(size).parameters())

    assert CATALOG["rnnt"].parameters[size] == parameters
    assert CATALOG["rnnt"].flops_per_sample[size] == flops_per_sample(size)


def test_full_is_mlperfs():
    shapes = {key: list(value.shape) for key, value in build("full").state_dict().items()}
    assert shapes["encoder.pre_rnn.lstm.weight_ih_l0"] == [4096, 240]
    assert shapes["encoder.post_rnn.lstm.weight_ih_l0"] == [4096, 2048]
    assert shapes["encoder.post_rnn.lstm.weight_hh_l2"] == [4096, 1024]
    assert shapes["prediction.embed.weight"] == [28, 320]
    assert shapes["prediction.dec_rnn.lstm.weight_ih_l1"] == [1280, 320]
    assert shapes["joint.net.0.weight"] == [512, 1344]
    assert shapes["joint.net.3.weight"] == [29, 512]


def test_weights_from_a_file_answer_for_the_seed(tmp_path: Path, rnnt: Rnnt):
    other = loaded(replace(SMALL, seed=9))._network.state_dict()
    path = tmp_path / "rnnt.pt"
    torch.save({"state_dict": other}, path)
    from_file = loaded(replace(SMALL, weights=path))
    assert from_file.predict([0])[0].tolist() != rnnt.predict([0])[0].tolist()
    assert any(str(path) in note for note in from_file.notes)

    other["joint.net.9.bias"] = other.pop("joint.net.3.bias")
    torch.save(other, path)
    with pytest.raises(WorkloadError, match=r"joint\.net\.3\.bias.*joint\.net\.9\.bias"):
        loaded(replace(SMALL, weights=path))


def test_mlperfs_checkpoint_has_its_own_names(tmp_path: Path):
    with seeded(9):
        weights = build("small").state_dict()

    published = {key.replace("joint.net.", "joint_net."): value for key, value in weights.items()}
    assert "joint_net.3.weight" in published
    published["audio_preprocessor.featurizer.fb"] = torch.zeros(1, 80, 257)
    published["audio_preprocessor.featurizer.window"] = torch.zeros(320)
    path = tmp_path / "rnnt.pt"
    torch.save({"epoch": 3, "state_dict": published}, path)
    read = loaded(replace(SMALL, weights=path))._network.state_dict()
    assert all(torch.equal(read[key], value) for key, value in weights.items())

    published["joint_net.0.bias"] = torch.zeros(7)
    torch.save({"state_dict": published}, path)
    with pytest.raises(
        WorkloadError, match=r"rnnt\.pt .*joint\.net\.0\.bias is \[7\], the model has \[128\]"
    ):
        loaded(replace(SMALL, weights=path))


def test_notes_say_where_everything_came_from(rnnt: Rnnt):
    notes = "\n".join(rnnt.notes)
    assert "random, seed 1" in notes
    assert "14.5 symbols a second" in notes
    assert "2513 utterances" in notes
    assert "starts in host memory" in notes
