"""LibriSpeech: both layouts, the front end against torch.stft and one utterance at a time, WER, malformed kinds."""

import json
import math
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workloads.librispeech import (
    RATE,
    VOCABULARY,
    SpeechLabels,
    inspect,
    normalize,
    read,
    word_errors,
)
from workloads.protocol import WorkloadError, WorkloadOptions, output_bytes
from workloads.rnnt import Rnnt
from workloads.rnnt_features import FrontEnd, frames, mel_filters
from workloads.rnnt_network import SYMBOLS

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=1, threads=2, memory_mib=2048
)
SAID = {
    "84-121123-0000": (1.0, "GO DO YOU HEAR"),
    "84-121123-0001": (0.7, "BUT IN LESS THAN FIVE MINUTES"),
    "84-121123-0002": (15.5, "THIS ONE IS TOO LONG"),
    "84-121123-0003": (1.3, "AT THIS MOMENT'S NOTICE"),
}


@cache
def sound(seconds: float) -> npt.NDArray[np.int16]:
    random = np.random.default_rng(round(seconds * 1000))
    return (random.standard_normal(round(seconds * RATE)) * 2_000).astype(np.int16)


def write_wav(
    path: Path, samples: npt.NDArray[Any], *, rate: int = RATE, channels: int = 1, width: int = 2
) -> None:
    with wave.open(str(path), "wb") as opened:
        opened.setframerate(rate)
        opened.setnchannels(channels)
        opened.setsampwidth(width)
        opened.writeframes(samples.tobytes())


def write_transcripts(folder: Path, suffix: str = ".wav") -> Path:
    chapter = folder / "84" / "121123"
    chapter.mkdir(parents=True)
    for name, (seconds, _) in SAID.items():
        path = chapter / (name + suffix)
        if suffix == ".wav":
            write_wav(path, sound(seconds))
        else:
            soundfile.write(path, sound(seconds), RATE)

    lines = [f"{name} {text}\n" for name, (_, text) in SAID.items()]
    (chapter / "84-121123.trans.txt").write_text("".join(lines))
    return folder


def entry(name: str, seconds: float, text: str) -> dict[str, Any]:
    file = {"fname": f"dev-clean-wav/{name}.wav", "duration": seconds, "sample_rate": 16000.0, "speed": 1}
    return {"files": [file], "original_duration": seconds, "transcript": text.lower()}


def write_manifest(folder: Path, name: str = "dev-clean-wav.json") -> Path:
    (folder / "dev-clean-wav").mkdir(parents=True)
    for stem, (seconds, _) in SAID.items():
        write_wav(folder / "dev-clean-wav" / f"{stem}.wav", sound(seconds))

    entries = [entry(stem, seconds, text) for stem, (seconds, text) in reversed(SAID.items())]
    (folder / name).write_text(json.dumps(entries))
    return folder


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_librispeechs_own_layout_is_read_in_the_order_of_names(tmp_path: Path, suffix: str):
    speech = inspect(write_transcripts(tmp_path / "LibriSpeech", suffix))
    assert speech.manifest is None
    assert speech.too_long == 1
    assert [each.transcript for each in speech.utterances] == [
        "go do you hear",
        "but in less than five minutes",
        "at this moment's notice",
    ]
    assert [each.seconds for each in speech.utterances] == [1.0, 0.7, 1.3]
    for each, seconds in zip(speech.utterances, (1.0, 0.7, 1.3), strict=True):
        assert np.array_equal(read(each), sound(seconds))


@pytest.mark.parametrize("name", ["dev-clean-wav.json", "mine.json"])
def test_mlperfs_manifest_is_read_in_its_own_order(tmp_path: Path, name: str):
    speech = inspect(write_manifest(tmp_path / "local_data", name))
    assert speech.manifest == tmp_path / "local_data" / name
    assert speech.too_long == 1
    assert [each.seconds for each in speech.utterances] == [1.3, 0.7, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HE WOULD HAVE TO PAY", "he would have to pay"),
        ("Mr. Smith's  wife -- Mrs. Smith,\tof St. Paul", "mister smith's wife misess smith of saint paul"),
        ("you & me + him", "you and me plus him"),
        ("café", "cafe"),
        ("costs", "costs"),
        ("  a_b  ", "a b"),
    ],
)
def test_transcripts_are_normalised_as_by_the_reference(text: str, expected: str):
    assert normalize(text) == expected


@pytest.mark.parametrize("text", ["at 8 o'clock", "日本"])
def test_what_the_reference_spells_out_with_libraries_is_refused(text: str):
    with pytest.raises(ValueError, match="write it out"):
        normalize(text)


# ---------------------------------------------------------------------- features


def test_mel_filters_are_librosas():
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(257, 80, 0.0, 8_000.0, RATE, norm="slaney", mel_scale="slaney").T
    np.testing.assert_allclose(mel_filters(), theirs, rtol=0, atol=1e-7)


def features_alone(samples: npt.NDArray[np.int16]) -> Tensor:
    """One utterance, [frames, 240]: centred STFT, three frames side by side, each feature normalised."""
    x = torch.from_numpy(samples / np.float32(2**15)).float()
    x = torch.cat((x[:1], x[1:] - 0.97 * x[:-1]))
    window = torch.hann_window(320, periodic=False)
    power = torch.stft(x, 512, 160, 320, window, center=True, return_complex=True).abs() ** 2 + 1e-10
    mel = torch.log(torch.from_numpy(mel_filters()) @ power + 1e-20).T
    zeros = torch.zeros(1, 80)
    spliced = torch.stack(
        [
            torch.cat([mel[at + n] if at + n < len(mel) else zeros[0] for n in range(3)])
            for at in range(0, len(mel), 3)
        ]
    )
    spliced = spliced[: math.ceil(math.ceil(len(samples) / 160) / 3)]
    return (spliced - spliced.mean(0)) / (spliced.std(0) + 1e-5)


def test_a_batch_has_the_features_of_each_utterance_alone():
    counts = [1_600, 15_999, 16_000, 16_001, 480 * 40, 480 * 40 + 1, 480 * 40 + 161, *range(9_000, 9_012)]
    waves = [sound(2.0)[start : start + count] for start, count in enumerate(counts)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(each) for each in waves], batch_first=True)
    features, lengths = FrontEnd(torch.device("cpu"))(padded, torch.tensor(counts))
    assert features.shape == (int(lengths.max()), len(counts), 240)
    for lane, each in enumerate(waves):
        expected = features_alone(each)
        assert len(expected) == lengths[lane]
        torch.testing.assert_close(features[: lengths[lane], lane], expected, rtol=0, atol=1e-4)
        assert not features[lengths[lane] :, lane].any()


def test_fifteen_seconds_are_500_frames():
    assert frames(torch.tensor([15 * RATE, 1])).tolist() == [500, 1]


# ---------------------------------------------------------------------- score


@pytest.mark.parametrize(
    ("heard", "said", "expected"),
    [
        ("a b c", "a b c", 0),
        ("", "a b", 2),
        ("a x c", "a b c", 1),
        ("a c", "a b c", 1),
        ("b c d", "a b c", 2),
    ],
)
def test_word_errors_by_hand(heard: str, said: str, expected: int):
    assert word_errors(heard.split(), said.split()) == expected


@given(*[st.lists(st.sampled_from("abc"), max_size=8)] * 3)
def test_word_errors_are_a_distance(one: list[str], other: list[str], third: list[str]):
    assert word_errors(one, other) == word_errors(other, one)
    assert (word_errors(one, other) == 0) == (one == other)
    assert word_errors(one, third) <= word_errors(one, other) + word_errors(other, third)
    assert abs(len(one) - len(other)) <= word_errors(one, other) <= max(len(one), len(other))


def symbols(text: str) -> bytes:
    return np.array([VOCABULARY.index(char) for char in text], dtype=np.int64).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transcripts(tmp_path_factory.mktemp("speech") / "dev-clean")


def test_errors_are_counted_over_all_words(folder: Path):
    labels = SpeechLabels(inspect(folder))
    right = ["go do you hear", "but in less than five minutes", "at this moment's notice"]
    score = labels.score({index: symbols(text) for index, text in enumerate(right)})
    assert (score.metric, score.value, score.unit, score.samples) == ("1-WER", 100.0, "%", 3)

    heard = [
        "go you here",
        "but in less than five minutes",
        "",
    ]  # 1 gone and 1 other; 0; 4 gone: 6 of 14 words
    score = labels.score({index: symbols(text) for index, text in enumerate(heard)})
    assert score.value == pytest.approx(100 * (1 - 6 / 14))
    assert score.details == {"wer": pytest.approx(100 * 6 / 14), "errors": 6.0, "words": 14.0}


def test_the_vocabulary_is_the_networks():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == SYMBOLS


@pytest.mark.parametrize(
    ("answer", "complaint"), [(b"12345", "has 5 bytes"), (np.array([3, 28]).tobytes(), "symbols 3 to 28")]
)
def test_answers_that_are_no_symbols_are_refused(folder: Path, answer: bytes, complaint: str):
    labels = SpeechLabels(inspect(folder))
    with pytest.raises(WorkloadError, match=f"sample 1 has {complaint}|sample 1 {complaint}"):
        labels.score({0: b"", 1: answer, 2: b""})

    with pytest.raises(WorkloadError, match="missing"):
        labels.score({0: b""})


# ---------------------------------------------------------------------- malformed

CHAPTER = "84/121123"
FIRST = f"{CHAPTER}/84-121123-0000"


def cut(suffix: str, share: float = 0.5) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / (FIRST + suffix)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return apply


def recording(**form: Any) -> Callable[[Path], None]:
    return lambda folder: write_wav(folder / (FIRST + ".wav"), form.pop("samples", sound(1.0)), **form)


def transcripts(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / CHAPTER / "84-121123.trans.txt").write_text(text) and None


@pytest.mark.parametrize(
    ("suffix", "spoil", "complaint"),
    [
        (".wav", cut(".wav"), r"0000\.wav: truncated: 16,022 bytes for 16,000 samples"),
        (".flac", cut(".flac"), r"0000\.flac: damaged"),
        (".wav", cut(".wav", 0), r"0000\.wav: damaged, or of another kind: it ends too early"),
        (".flac", cut(".flac", 0), r"0000\.flac: damaged"),
        (".wav", recording(samples=np.zeros(0, np.int16)), r"0000\.wav: 0\.000 s of audio"),
        (".wav", recording(rate=8_000), r"0000\.wav: 8000 Hz with 1 channels"),
        (".wav", recording(channels=2), r"16000 Hz with 2 channels"),
        (".wav", recording(samples=np.zeros(16_000, np.uint8), width=1), r"8 bits a sample, 16 are needed"),
        (
            ".wav",
            lambda folder: (folder / (FIRST + ".wav")).unlink(),
            r"trans\.txt, line 1: no 84-121123-0000\.wav",
        ),
        (".wav", transcripts(""), r"are all empty"),
        (".wav", transcripts("84-121123-0000 A\n84-121123-0000 B"), r"line 2: .* has a transcript already"),
        (".wav", transcripts("84-121123-0000"), r"line 1: the transcript is empty"),
        (
            ".wav",
            transcripts("84-121123-0001 A\n84-121123-0000 ROOM 101"),
            r"line 2: the transcript holds '1'",
        ),
        (".wav", transcripts("84-121123-0002 ALL TOO LONG"), r"none of at most 15 s"),
        (
            ".wav",
            lambda folder: (folder / CHAPTER / "84-121123.trans.txt").unlink(),
            r"holds neither dev-clean-wav\.json nor \*\.trans\.txt",
        ),
    ],
)
def test_a_malformed_folder_is_named(
    tmp_path: Path, suffix: str, spoil: Callable[[Path], None], complaint: str
):
    folder = write_transcripts(tmp_path / "dev-clean", suffix)
    spoil(folder)
    with pytest.raises(WorkloadError, match=complaint):
        inspect(folder)


def manifest(text: object) -> Callable[[Path], None]:
    content = text if isinstance(text, str) else json.dumps(text)
    return lambda folder: (folder / "dev-clean-wav.json").write_text(content) and None


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (manifest('[{"files": ['), r"dev-clean-wav\.json, line 1, column \d+: no JSON .*copy complete"),
        (manifest([]), "holds no list of utterances"),
        (manifest({"a": 1}), "holds no list of utterances"),
        (manifest([{"transcript": "a", "original_duration": 1.0}]), "entry 0: lacks .*KeyError: 'files'"),
        (manifest([entry("84-121123-0000", 1.0, "GO"), 7]), "entry 1: lacks .*TypeError"),
        (
            manifest([{**entry("84-121123-0000", 1.0, ""), "transcript": None}]),
            "entry 0: the transcript is a NoneType",
        ),
        (manifest([entry("84-121123-0000", 1.0, "")]), "entry 0: the transcript is empty"),
        (manifest([entry("84-121123-0000", 2.0, "GO")]), r"1\.00 s of audio, .*entry 0 says 2\.00 s"),
        (manifest([entry("gone", 2.0, "GO")]), r"gone\.wav: no such file"),
    ],
)
def test_a_malformed_manifest_is_named(tmp_path: Path, spoil: Callable[[Path], None], complaint: str):
    folder = write_manifest(tmp_path / "local_data")
    spoil(folder)
    with pytest.raises(WorkloadError, match=complaint):
        inspect(folder)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(WorkloadError, match="does not exist"):
        inspect(tmp_path / "nowhere")


def test_without_soundfile_flac_ends_in_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_transcripts(tmp_path / "dev-clean", ".flac")
    monkeypatch.setitem(sys.modules, "soundfile", None)  # as Python does for what cannot be imported
    with pytest.raises(
        WorkloadError, match=r"flac is read with the package soundfile.*install it, or convert"
    ):
        inspect(folder)


def test_of_many_bad_recordings_a_few_are_named(tmp_path: Path):
    folder = write_transcripts(tmp_path / "dev-clean")
    for name in SAID:
        (folder / CHAPTER / f"{name}.wav").write_bytes(b"")

    with pytest.raises(WorkloadError, match="4 of 4 recordings cannot be used"):
        inspect(folder)


def test_a_recording_damaged_since_is_named_when_it_is_loaded(tmp_path: Path):
    folder = write_transcripts(tmp_path / "dev-clean")
    rnnt = Rnnt("rnnt", replace(SMALL, data=folder))
    rnnt.load()
    cut(".wav")(folder)
    with pytest.raises(WorkloadError, match=r"recording .*0000\.wav: truncated: 7,989 of 16,000 samples"):
        rnnt.load_samples([0, 1])


# ---------------------------------------------------------------------- the workload


def test_rnnt_transcribes_recordings_and_is_scored(folder: Path):
    rnnt = Rnnt("rnnt", replace(SMALL, data=folder))
    rnnt.load()
    assert rnnt.total_sample_count == 3
    rnnt.load_samples([0, 1, 2])
    together, alone = rnnt.predict([0, 1, 2]), rnnt.reference([0, 1, 2])
    assert [each.tolist() for each in together] == [each.tolist() for each in alone]
    assert rnnt.labelled is not None
    assert rnnt.labelled.score(dict(enumerate(output_bytes(together)))).value <= 100
    notes = "\n".join(rnnt.notes)
    assert "labelled: 3 utterances of 0.7 to 1.3 s" in notes
    assert "1 of more than 15 s left out" in notes
    assert "MLPerf's data set has 2513 such utterances" in notes
    assert "front end is computed in the measured time" in notes
    rnnt.unload_samples([1])
    rnnt.predict([0, 2])
    with pytest.raises(KeyError):
        rnnt.predict([1])
