"""An accuracy run: LoadGen's AccuracyOnly through the same SUT, then how good the answers are.

Two figures, never mixed up: *accuracy* in the task's own metric, where the data has labels, and *fidelity* to
the same weights in fp32, always. Which of them is judged, and by what target, is not decided here.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from workloads.accuracy_log import AccuracyLog
from workloads.fidelity import Compare, Fidelity, Pair, by_kind
from workloads.labelled import Labelled, Score
from workloads.loadgen import ACCURACY_LOG, Bench, Measured, OnError
from workloads.progress import Progress
from workloads.protocol import LoadgenSettings, Scenario, Workload

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SERVER_QPS = 20_000.0
"""LoadGen paces an accuracy run under Server too; at this rate 10 833 samples are issued in half a second."""

LOADED_TOGETHER = 32
"""Samples in memory while references are computed."""

FILE = "quality.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What ``quality.json`` holds: figures, without a judgement."""

    accuracy: Score | None
    """None: the data has no labels."""
    fidelity: Fidelity
    library: int
    """Samples of the data set."""
    answered: int
    """Of them, how many LoadGen asked for."""
    answers_sha256: str
    """Of LoadGen's accuracy log, which the figures were computed from."""


def answer_all(
    workload: Workload,
    settings: LoadgenSettings,
    batch_size: int,
    folder: Path,
    progress: Progress,
    on_issuing: Callable[[int], None],
    *,
    on_error: OnError,
) -> Measured:
    """Have LoadGen ask for every sample once (AccuracyOnly); its logs are in ``folder/loadgen``.

    LoadGen loads the library in parts of ``performance_sample_count``. Nothing is calibrated: neither rate nor
    duration count. Arguments and errors are those of loadgen.measure.
    """
    labelled = labels_of(workload)
    if labelled is not None:
        settings = replace(settings, accuracy_sample_count=None)
    elif settings.accuracy_sample_count is not None:
        fewest = min(settings.accuracy_sample_count, workload.total_sample_count)
        settings = replace(settings, accuracy_sample_count=fewest)

    if settings.scenario is Scenario.SERVER and settings.target_qps is None:
        settings = replace(settings, target_qps=SERVER_QPS)

    with Bench(workload, settings, batch_size, folder, on_error) as bench:
        batches = bench.batches(batch_size, progress, on_issuing)
        progress.test_started()
        with bench.sut(batches) as sut:
            effective = bench.run_test(settings, folder / "loadgen", batches, sut.issue)

        progress.test_completed()
        bench.unload()

    return Measured(
        begin_ns=batches.begin_ns,
        end_ns=batches.end_ns,
        effective=effective | {"batch_size": batch_size, "server_batch_wait_ns": bench.wait_ns},
        calibration=None,
        tests=1,
        notes=_notes(settings, workload.total_sample_count),
    )


def assess(workload: Workload, fidelity_samples: int, seed: int, folder: Path) -> Quality:
    """Score the answers that ``answer_all`` left in ``folder``, and write ``quality.json`` there.

    Args:
        fidelity_samples: how many of the answered samples are held against the reference: all if there are no
            more, else some drawn by ``seed``.

    Raises:
        WorkloadError: the answers are not what the workload gives, or cannot be scored.
    """
    answers = AccuracyLog(folder / "loadgen" / ACCURACY_LOG)
    chosen = sorted(Random(seed).sample(sorted(answers), min(fidelity_samples, len(answers))))
    labelled = labels_of(workload)
    quality = Quality(
        accuracy=None if labelled is None else labelled.score(answers),
        fidelity=comparison_of(workload)(_beside_reference(workload, chosen, answers)),
        library=workload.total_sample_count,
        answered=len(answers),
        answers_sha256=answers.sha256,
    )
    (folder / FILE).write_text(json.dumps(asdict(quality), indent=2) + "\n", encoding="utf-8")
    return quality


def labels_of(workload: Workload) -> Labelled | None:
    """The labels of its data, of a loaded workload; not every workload can have any."""
    return getattr(workload, "labelled", None)


def comparison_of(workload: Workload) -> Compare:
    """How its answers are compared: its own way, where it has one as ``fidelity``."""
    own: Compare = getattr(workload, "fidelity", by_kind)
    return own


def _beside_reference(workload: Workload, chosen: list[int], answers: AccuracyLog) -> Iterator[Pair]:
    """Each answer and what the reference gives, one sample at a time."""
    import numpy as np

    for start in range(0, len(chosen), LOADED_TOGETHER):
        together = chosen[start : start + LOADED_TOGETHER]
        workload.load_samples(together)
        for index in together:
            with _in_fp32():
                reference: Outputs = workload.reference([index])

            yield answers[index], np.ascontiguousarray(reference[0])

        workload.unload_samples(together)


def _in_fp32() -> AbstractContextManager[None]:
    """The reference is fp32 also where the test was in TF32."""
    if "torch" not in sys.modules:  # a workload without it is not to wait for its import
        return nullcontext()

    from workloads.precision import without_tf32

    return without_tf32()


def _notes(settings: LoadgenSettings, library: int) -> tuple[str, ...]:
    count = settings.accuracy_sample_count
    if count is None or count == library:
        return (f"accuracy run: all {library} samples of the library, each once",)

    return (f"accuracy run: the first {count} of the library's {library} samples, each once",)
