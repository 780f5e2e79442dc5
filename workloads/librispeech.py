"""LibriSpeech dev-clean: found, checked before anything starts, read by utterance, and scored.

As MLPerf's reference does it (mlcommons/inference, retired_benchmarks/speech_recognition/rnnt, below
``pytorch/`` where nothing else is said). Imports no torch, so that the launcher can use it.
"""

import json
import re
import string
import unicodedata
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from workloads.answers import in_order
from workloads.labelled import Score
from workloads.protocol import WorkloadError

RATE = 16_000
LONGEST_S, SHORTEST_S = 15.0, 0.1
"""Longer utterances are left out (QSL.py, ``max_duration``); shorter ones have too few frames to normalise."""

VOCABULARY = " abcdefghijklmnopqrstuvwxyz'"
"""configs/rnnt.toml, ``labels``; the blank comes after them."""

MANIFEST = "dev-clean-wav.json"
"""What the reference's convert_librispeech.py writes."""

TRANSCRIPTS = "*.trans.txt"
SUFFIXES = (".wav", ".flac")
MOST_DECODED = 500
"""``inspect`` decodes this many flac files in full, evenly spaced; of the others it reads the header."""

DURATION_SLACK_S = 0.05
NAMED = 5
"""How many bad files a message spells out."""

# parts/text/cleaners.py
_SHORT_FORMS = {
    **{"mrs": "misess", "mr": "mister", "dr": "doctor", "st": "saint", "co": "company", "jr": "junior"},
    **{"maj": "major", "gen": "general", "drs": "doctors", "rev": "reverend", "lt": "lieutenant"},
    **{"hon": "honorable", "sgt": "sergeant", "capt": "captain", "esq": "esquire", "ltd": "limited"},
    **{"col": "colonel", "ft": "fort"},
}
_SHORT_FORM = re.compile(rf"\b({'|'.join(_SHORT_FORMS)})\.")
_PUNCTUATION = str.maketrans(dict.fromkeys(set(string.punctuation) - set("+&'"), " "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One recording and what is said in it."""

    audio: Path
    transcript: str
    """Normalised: of ``VOCABULARY`` alone."""
    where: str
    """Line or entry that names it."""
    seconds: float | None = None
    """None until the recording has been looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """The utterances of one folder that are at most 15 s long, in order."""

    folder: Path
    manifest: Path | None
    """None: LibriSpeech's own layout, in the order of its utterances' names."""
    utterances: tuple[Utterance, ...]
    too_long: int
    """Utterances left out."""


def inspect(folder: Path, *, most_decoded: int = MOST_DECODED) -> Speech:
    """Read the manifest, or else all transcripts below ``folder``, and open every recording they name.

    Raises:
        WorkloadError: nothing there, a field or a file missing, a transcript that is not of the vocabulary, a
            recording that is truncated, empty or not 16 kHz mono; names file and line, and what to do.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WorkloadError(f"data folder {folder} {what}; name a folder of LibriSpeech with --data")

    manifest = _find_manifest(folder)
    named = _of_manifest(folder, manifest) if manifest else _of_transcripts(folder)
    in_time = [each for each in named if each.seconds is None or each.seconds <= LONGEST_S]
    in_full = {step * len(in_time) // most_decoded for step in range(most_decoded)}
    checks: list[Callable[[Utterance], Utterance | str]] = [
        _check_in_full if index in in_full else _check_header for index in range(len(in_time))
    ]
    with ThreadPoolExecutor() as pool:
        seen = list(pool.map(lambda check, each: check(each), checks, in_time))

    bad = [each for each in seen if isinstance(each, str)]
    if bad:
        lines = [f"data folder {folder}: {len(bad)} of {len(seen)} recordings cannot be used"]
        lines += [f"  {line}" for line in bad[:NAMED]]
        lines += [f"  … and {len(bad) - NAMED} more"] * (len(bad) > NAMED)
        raise WorkloadError("\n".join([*lines, "copy them again, or name another folder with --data"]))

    kept = tuple(each for each in seen if isinstance(each, Utterance) and (each.seconds or 0) <= LONGEST_S)
    if not kept:
        raise WorkloadError(
            f"data folder {folder} names {len(named)} utterances, none of at most {LONGEST_S:g} s; take dev-clean"
        )

    return Speech(folder=folder, manifest=manifest, utterances=kept, too_long=len(named) - len(kept))


def read(utterance: Utterance) -> npt.NDArray[np.int16]:
    """The recording's samples.

    Raises:
        WorkloadError: it cannot be read any more, or is cut short.
    """
    try:
        return _samples(utterance.audio)
    except _Unusable as error:
        raise WorkloadError(f"recording {utterance.audio}: {error}") from error


def normalize(text: str) -> str:
    """Lower case, short forms spelled out, no punctuation but the apostrophe (parts/manifest.py,
    ``normalize_string``; parts/text/cleaners.py, ``english_cleaners``).

    Raises:
        ValueError: numerals, or letters that are not Latin ones: the reference spells them out with the
            libraries inflect and Unidecode, and LibriSpeech has none.
    """
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    strange = next((char for char in plain if char.isdecimal() or not char.isascii()), None)
    if strange is not None:
        raise ValueError(
            f"holds {strange!r}; LibriSpeech's transcripts are of letters and apostrophes, write it out"
        )

    plain = _SHORT_FORM.sub(lambda found: _SHORT_FORMS[found[1]], plain.lower())
    plain = plain.translate(_PUNCTUATION).replace("&", " and ").replace("+", " plus ")
    return " ".join(plain.split())


# ---------------------------------------------------------------------- what names the recordings


def _find_manifest(folder: Path) -> Path | None:
    if (folder / MANIFEST).is_file():
        return folder / MANIFEST

    if next(folder.rglob(TRANSCRIPTS), None) is not None:
        return None

    found = sorted(folder.glob("*.json"))
    if len(found) == 1:
        return found[0]

    what = f"{len(found)} .json files" if found else f"neither {MANIFEST} nor {TRANSCRIPTS}"
    raise WorkloadError(
        f"data folder {folder} holds {what}: LibriSpeech dev-clean as it is unpacked, or MLPerf's manifest "
        "beside the folder of its recordings; name such a folder with --data"
    )


def _of_manifest(folder: Path, manifest: Path) -> list[Utterance]:
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise WorkloadError(
            f"{manifest}, line {error.lineno}, column {error.colno}: no JSON ({error.msg}); is the copy complete?"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{manifest} cannot be read: {error}") from error

    if not isinstance(entries, list) or not entries:
        raise WorkloadError(
            f"{manifest} holds no list of utterances; take the one convert_librispeech.py writes"
        )

    return [_of_entry(folder, manifest, number, entry) for number, entry in enumerate(entries)]


def _of_entry(folder: Path, manifest: Path, number: int, entry: Any) -> Utterance:
    where = f"{manifest}, entry {number}"
    try:
        text, seconds = entry["transcript"], float(entry["original_duration"])
        name = next(str(each["fname"]) for each in entry["files"] if float(each.get("speed", 1)) == 1.0)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise WorkloadError(
            f"{where}: lacks transcript, original_duration or files[].fname of speed 1 ({type(error).__name__}: "
            f"{error}); take the manifest that convert_librispeech.py writes"
        ) from error

    return _utterance(folder / name, text, where, seconds)


def _of_transcripts(folder: Path) -> list[Utterance]:
    found: dict[str, Utterance] = {}
    for file in sorted(folder.rglob(TRANSCRIPTS)):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise WorkloadError(f"transcripts {file} cannot be read: {error}") from error

        for number, line in enumerate(lines, 1):
            where = f"{file}, line {number}"
            name, _, text = line.partition(" ")
            audio = next((path for end in SUFFIXES if (path := file.parent / (name + end)).is_file()), None)
            if audio is None:
                raise WorkloadError(f"{where}: no {name}.wav or {name}.flac beside it; is the copy complete?")

            if name in found:
                raise WorkloadError(
                    f"{where}: {name} has a transcript already ({found[name].where}); remove one"
                )

            found[name] = _utterance(audio, text, where, None)

    if not found:
        raise WorkloadError(f"data folder {folder}: its {TRANSCRIPTS} are all empty; is the copy complete?")

    return list(found.values())


def _utterance(audio: Path, text: object, where: str, seconds: float | None) -> Utterance:
    if not isinstance(text, str):
        raise WorkloadError(f"{where}: the transcript is a {type(text).__name__}, not text")

    try:
        transcript = normalize(text)
    except ValueError as error:
        raise WorkloadError(f"{where}: the transcript {error}") from error

    if not transcript:
        raise WorkloadError(f"{where}: the transcript is empty; is the copy complete?")

    return Utterance(audio=audio, transcript=transcript, where=where, seconds=seconds)


# ---------------------------------------------------------------------- recordings


class _Unusable(Exception):
    """What is wrong with a recording, in words."""


def _check_header(each: Utterance) -> Utterance | str:
    return _checked(each, _measured)


def _check_in_full(each: Utterance) -> Utterance | str:
    return _checked(each, lambda path: len(_samples(path)) if path.suffix == ".flac" else _measured(path))


def _checked(each: Utterance, count: Callable[[Path], int]) -> Utterance | str:
    try:
        seconds = count(each.audio) / RATE
        if seconds < SHORTEST_S:
            raise _Unusable(f"{seconds:.3f} s of audio, at least {SHORTEST_S} s are needed")

        if each.seconds is not None and abs(seconds - each.seconds) > DURATION_SLACK_S:
            raise _Unusable(
                f"{seconds:.2f} s of audio, {each.where} says {each.seconds:.2f} s: mixed up or cut short"
            )
    except _Unusable as error:
        return f"{each.audio}: {error}"

    return replace(each, seconds=seconds)


def _measured(path: Path) -> int:
    """Samples by the header; a .wav's is held against the file's size."""
    if path.suffix == ".flac":
        with _decoder(path) as flac:
            return int(flac.frames)

    with _wav(path) as opened:
        count = opened.getnframes()
        if path.stat().st_size < count * 2:
            raise _Unusable(f"truncated: {path.stat().st_size:,} bytes for {count:,} samples of 2 bytes")

        return count


def _samples(path: Path) -> npt.NDArray[np.int16]:
    if path.suffix == ".flac":
        with _decoder(path) as flac:
            decoded: npt.NDArray[np.int16] = flac.read(dtype="int16")
            if len(decoded) < flac.frames:
                raise _Unusable(f"truncated: {len(decoded):,} of {flac.frames:,} samples")

            return decoded

    with _wav(path) as opened:
        count = opened.getnframes()
        raw = opened.readframes(count)
        if len(raw) < 2 * count:
            raise _Unusable(f"truncated: {len(raw) // 2:,} of {count:,} samples")

        return np.frombuffer(raw, dtype="<i2").astype(np.int16)


@contextmanager
def _wav(path: Path) -> Iterator[wave.Wave_read]:
    try:
        with wave.open(str(path)) as opened:
            _check_format(opened.getframerate(), opened.getnchannels())
            if opened.getsampwidth() != 2:
                raise _Unusable(f"{8 * opened.getsampwidth()} bits a sample, 16 are needed")

            yield opened
    except (wave.Error, EOFError, OSError) as error:
        raise _Unusable(_why(error)) from error


@contextmanager
def _decoder(path: Path) -> Iterator[Any]:
    try:
        soundfile: Any = import_module("soundfile")
    except (ImportError, OSError) as error:
        raise WorkloadError(
            f"recording {path}: flac is read with the package soundfile, which cannot be imported ({error}); "
            "install it, or convert the recordings to .wav"
        ) from error

    try:
        with path.open("rb") as file, soundfile.SoundFile(file) as opened:
            _check_format(opened.samplerate, opened.channels)
            yield opened
    except (soundfile.SoundFileError, OSError) as error:
        raise _Unusable(_why(error)) from error


def _check_format(rate: int, channels: int) -> None:
    if rate != RATE or channels != 1:
        raise _Unusable(f"{rate} Hz with {channels} channels, LibriSpeech has {RATE} Hz with one")


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()

    return f"damaged, or of another kind: {str(error) or 'it ends too early'}"


# ---------------------------------------------------------------------- score


class SpeechLabels:
    """Word accuracy of decoded symbols."""

    def __init__(self, speech: Speech) -> None:
        self._utterances = speech.utterances
        self.sample_count = len(speech.utterances)

    def score(self, answers: Mapping[int, bytes]) -> Score:
        """1 - WER in %, each answer int64 symbols of ``VOCABULARY`` (accuracy_eval.py; metrics.py,
        ``word_error_rate``: errors of all utterances over words of all). Below 0 if there are more errors
        than words.

        Raises:
            WorkloadError: answers are missing, or are no symbols.
        """
        errors = words = 0
        for index, answer in enumerate(in_order(answers, self.sample_count)):
            said = self._utterances[index].transcript.split()
            words += len(said)
            errors += word_errors(spelled(answer, index).split(), said)

        return Score(
            metric="1-WER",
            value=100 * (1 - errors / words),
            unit="%",
            samples=self.sample_count,
            details={"wer": 100 * errors / words, "errors": float(errors), "words": float(words)},
        )


def spelled(answer: bytes, index: int) -> str:
    """The text that the symbols of one answer spell.

    Raises:
        WorkloadError: they are not int64, or not of the vocabulary.
    """
    if len(answer) % 8:
        raise WorkloadError(f"the answer to sample {index} has {len(answer)} bytes, not 8 for each symbol")

    symbols = np.frombuffer(answer, dtype=np.int64)
    if len(symbols) and (symbols.min() < 0 or symbols.max() >= len(VOCABULARY)):
        raise WorkloadError(
            f"the answer to sample {index} has symbols {symbols.min()} to {symbols.max()}; "
            f"there are 0 to {len(VOCABULARY) - 1}"
        )

    return "".join(VOCABULARY[symbol] for symbol in symbols)


def word_errors(heard: Sequence[str], said: Sequence[str]) -> int:
    """The fewest insertions, deletions and substitutions that make one of the other (Levenshtein)."""
    costs = list(range(len(said) + 1))
    for row, word in enumerate(heard, 1):
        before, costs = costs, [row]
        for column, other in enumerate(said, 1):
            costs.append(min(before[column] + 1, costs[-1] + 1, before[column - 1] + (word != other)))

    return costs[-1]
