"""The one door to LoadGen: settings in, tests run, logs left in a folder.

LoadGen (6.0.17) runs one test at a time in a process, cannot be aborted, and cannot survive an exception
in a callback; so every callback here is guarded, and whoever calls must be ready for the process to end.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec

import mlperf_loadgen as lg
import psutil

from workloads import kept_times
from workloads.calibration import (
    OFFLINE_MARGIN,
    Calibration,
    Timed,
    calibrate,
    digits,
    has_new,
    told,
    way,
    worth_filling,
)
from workloads.engine_cache import Lease
from workloads.kept_times import Earlier
from workloads.loadgen_settings import REPORTED, test_settings
from workloads.pipeline import begin_of, depth_of, generating, lengths_of
from workloads.progress import Progress
from workloads.protocol import LoadgenSettings, Scenario, Workload
from workloads.ragged import Ragged
from workloads.sizing import bounded, fit, was_through_early
from workloads.stopwatch import BATCHES_IN_TURN
from workloads.sut import Batches, InlineSut, Library, Nobody, QueueSut, Sut, Watcher

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from workloads.protocol import Outputs

P = ParamSpec("P")
OnError = Callable[[BaseException], NoReturn]
FAILED_EXIT_CODE = 70
"""Where ``on_error`` itself fails (EX_SOFTWARE of sysexits.h)."""

DETAIL_LOG = "mlperf_log_detail.txt"
ACCURACY_LOG, TRACE_LOG = "mlperf_log_accuracy.json", "mlperf_log_trace.json"
"""A performance test leaves the first without content, every test of the harness the second."""
SWITCH_INTERVAL_S = 1e-4
"""A busy Python thread beside LoadGen costs Server 5 ms of p50 at Python's own 5 ms, 0.4 ms at this."""
SERVER_WAIT_SHARE = 0.01
"""Of the latency limit, how long a Server batch waits for more. It only needs to gather one burst: for
services of a + b·n (four shapes, simulated) the rate held under the limit was best without any wait, less by
1 % or nothing at 0.01 (by 4 % where batching gains nothing), and by up to 40 % at 0.2."""
MOST_TESTS = 3
"""Of main, where a test was through early."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What ran. Whether it is VALID is for LoadGen's detail log to say."""

    begin_ns: int
    """First issue() of the first test."""
    end_ns: int
    """When the last QuerySamplesComplete returned."""
    effective: dict[str, Any]
    """LoadGen's settings as set (of the last test), and the harness's own."""
    calibration: Calibration | None
    """Of main; the background's tests are sized by the one before."""
    tests: int
    notes: tuple[str, ...]


def version() -> str:
    """LoadGen's version."""
    return metadata.version("mlcommons-loadgen")


def measure(
    workload: Workload,
    settings: LoadgenSettings,
    batch_size: int,
    folder: Path,
    progress: Progress,
    on_issuing: Callable[[int], None],
    *,
    on_error: OnError,
    lease: Lease | None = None,
) -> Measured:
    """Warm up, calibrate what is open, and run one test; LoadGen's logs are in ``folder/loadgen``.

    Args:
        on_issuing: called once, with the time of the test's first issue(), when its first batch is complete.
        on_error: told of an exception in a callback of LoadGen's; must end the process.
        lease: on the workload's engine, where one is kept: what is found here is kept with it.

    Raises:
        ValueError: a Server test without a latency limit.
        RuntimeError: LoadGen returned without issuing a query.
        Exception: whatever the workload raises while no test runs.
    """
    with Bench(workload, settings, batch_size, folder, on_error) as bench:
        lease = None if settings.batch_times_ns else lease  # they were measured elsewhere: that is kept there
        calibration, notes = _calibrated(bench, settings, batch_size, lease)
        qps, tests = calibration.target_qps, 0
        while True:
            available = psutil.virtual_memory().available
            asked, how_long = fit(settings, qps, calibration.batch_size, available)
            batches = bench.batches(calibration.batch_size, progress, None if tests else on_issuing)
            tests += 1
            progress.test_started()
            with bench.sut(batches) as sut:
                effective = bench.run_test(asked, folder / "loadgen", batches, sut.issue)

            progress.test_completed()
            if calibration.given or tests == MOST_TESTS or not was_through_early(asked, batches):
                break

            qps = OFFLINE_MARGIN * batches.samples_per_s
            notes.append(
                f"test {tests} was through early, at {digits(batches.samples_per_s)} samples/s: the calibration had "
                f"found less. It was repeated with more samples; its logs are in calibration/early-{tests}"
            )
            (folder / "calibration").mkdir(exist_ok=True)
            (folder / "loadgen").rename(folder / "calibration" / f"early-{tests}")

    if lease is not None and tests > 1:
        timing, measured_utc = way(settings, batch_size), calibration.earlier_utc
        notes += kept_times.keep(lease, timing, calibration.batch_times, qps, measured_utc)

    sut.queries.write(folder)
    return Measured(
        begin_ns=batches.begin_ns,
        end_ns=batches.end_ns,
        effective=effective | {"batch_size": calibration.batch_size, "server_batch_wait_ns": bench.wait_ns},
        calibration=calibration,
        tests=tests,
        notes=(*notes, *how_long),
    )


def prepare(
    workload: Workload,
    settings: LoadgenSettings,
    batch_size: int,
    folder: Path,
    *,
    on_error: OnError,
    lease: Lease,
) -> tuple[str, ...]:
    """Calibrate as `measure` does, and keep that with the engine; gives the notes. Raises as it does."""
    with Bench(workload, settings, batch_size, folder, on_error) as bench:
        return tuple(_calibrated(bench, settings, batch_size, lease)[1])


def _calibrated(
    bench: "Bench", settings: LoadgenSettings, batch_size: int, lease: Lease | None
) -> tuple[Calibration, list[str]]:
    """The calibration, and its notes; kept with the engine, where one is and there is anything new."""
    timing = way(settings, batch_size)
    former = None if lease is None else kept_times.earlier(lease, timing)
    found = bench.calibrate(former)
    notes = [*found.notes, *told(found, settings.scenario)]
    if lease is not None and has_new(found, former):
        qps = None if found.given else found.target_qps
        notes += kept_times.keep(lease, timing, found.batch_times, qps, found.earlier_utc)

    return found, notes


def keep_busy(
    workload: Workload,
    settings: LoadgenSettings,
    batch_size: int,
    folder: Path,
    progress: Progress,
    on_issuing: Callable[[int], None],
    *,
    on_error: OnError,
    drain: threading.Event,
    lasting_ns: int | None,
) -> Measured:
    """Run Offline tests one after another, with filler batches in the turnover, until told to stop.

    The first is one batch, so that the slice is at work without delay; the others are sized by the rate of the
    one before. Each is of bounded size and leaves its logs in ``folder/loadgen/test-0001``, …. When ``drain`` is set or
    ``lasting_ns`` from the first issue() are over, the test in hand completes and none follows.

    Raises:
        ValueError: the scenario is not Offline.
        RuntimeError: LoadGen returned without issuing a query.
        Exception: whatever the workload raises while no test runs.
    """
    if settings.scenario is not Scenario.OFFLINE:
        raise ValueError(f"a background benchmark runs under Offline, not {settings.scenario}")

    issued = begin_ns = 0

    def left_ns() -> int | None:
        begun_ns = begin_ns or batches.begin_ns
        return None if lasting_ns is None else lasting_ns - (monotonic_ns() - begun_ns if begun_ns else 0)

    def goes_on() -> bool:
        left = left_ns()
        return not drain.is_set() and (left is None or left > 0)

    def issue(ids: Sequence[int], indices: Sequence[int]) -> None:
        nonlocal issued
        issued += 1
        batches.first_issue()
        bench.compute.submit(bench.guarded(work), issued, batches, ids, indices)

    def work(number: int, batches: Batches, ids: Sequence[int], indices: Sequence[int]) -> None:
        batches.run(ids, indices)
        while issued == number and goes_on():  # until the next test issues
            bench.fill(progress)

    with Bench(workload, settings, batch_size, folder, on_error) as bench:
        samples_per_s: float | None = None
        batches = bench.batches(batch_size, progress, on_issuing)
        while not issued or goes_on():
            if issued:
                batches = bench.batches(batch_size, progress, None)

            asked = bounded(settings, samples_per_s, batch_size, left_ns())
            logs = folder / "loadgen" / f"test-{issued + 1:04d}"
            progress.test_started()
            effective = bench.run_test(asked, logs, batches, issue)
            progress.test_completed()
            samples_per_s = batches.samples_per_s
            begin_ns = begin_ns or batches.begin_ns

    return Measured(
        begin_ns=begin_ns,
        end_ns=batches.end_ns,
        effective=effective | {"batch_size": batch_size},
        calibration=None,
        tests=issued,
        notes=(),
    )


class Bench:
    """One workload under LoadGen: its samples, its responses, and the tests run on it.

    ``compute`` is the one thread that predicts beside LoadGen's own (Server, and the background), the same
    for timing, trials and tests: cuDNN's plans belong to the thread that made them, and making those of
    resnet50 anew for one batch size takes some 100 ms on an H200.
    """

    def __init__(
        self, workload: Workload, settings: LoadgenSettings, batch_size: int, folder: Path, on_error: OnError
    ) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self.wait_ns = round(SERVER_WAIT_SHARE * (settings.first_limit_ns or 0))
        self._workload = workload
        self._settings = settings
        self._batch_size = batch_size
        self._folder = folder
        self._on_error = on_error
        self._library = Library(workload)
        self._generating = generating(workload) if settings.use_token_latencies else None
        self._responses = Responses(
            batch_size, 0 if self._generating is None else self._generating.new_tokens
        )
        self._trials = 0
        self._filled: frozenset[int] = frozenset()
        self._is_server = settings.scenario is Scenario.SERVER
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="compute")

    def __enter__(self) -> "Bench":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.compute.shutdown()

    def calibrate(self, earlier: Earlier | None) -> Calibration:
        """Warm up and measure; LoadGen tests that are part of it leave their logs in ``calibration/``."""
        most = max(self._batch_size, self._settings.multi_stream_samples_per_query)
        self._library.load_any(BATCHES_IN_TURN * most, self._settings.qsl_rng_seed)
        there = self._timed_there if self._is_server else None
        on_what = (self._workload, self._library, self._settings, self._batch_size)
        return calibrate(*on_what, self._run_trial, there, earlier)

    def _timed_there(self, job: Callable[[], Timed]) -> Timed:
        timed = self.compute.submit(job).result()
        self._filled = worth_filling(timed.batch_times)
        return timed

    def _run_trial(
        self, settings: LoadgenSettings, batch_size: int, most_outstanding: int
    ) -> tuple[int, float, Mapping[str, Any]]:
        self._trials += 1
        folder = self._folder / "calibration" / f"trial-{self._trials}"
        batches = self.batches(batch_size, Nobody(), None)
        with self.sut(batches) as sut:
            self.run_test(settings, folder, batches, sut.issue, most_outstanding)

        multi = settings.scenario is Scenario.MULTI_STREAM
        per_query = settings.multi_stream_samples_per_query if multi else 1
        return batches.samples // per_query, batches.samples_per_s / per_query, read_detail(folder)

    def batches(self, batch_size: int, watcher: Watcher, on_issuing: Callable[[int], None] | None) -> Batches:
        """What one test's SUT runs its batches with."""
        return Batches(
            *(self._workload.predict, self._responses.complete, batch_size, watcher, on_issuing),
            begin=begin_of(self._workload),
            depth=depth_of(self._workload),
            lengths=lengths_of(self._workload),
            generate=None if self._generating is None else self._generating.generate,
            complete_first=self._responses.complete_first,
        )

    def sut(self, batches: Batches) -> Sut:
        """The system under test that the scenario needs."""
        if self._is_server:
            return QueueSut(batches, self.wait_ns, self.guarded, self.compute, self._filled)

        return InlineSut(batches)

    def fill(self, progress: Progress) -> None:
        """Predict one batch that LoadGen did not ask for."""
        begin_ns = monotonic_ns()
        progress.began(begin_ns)
        self._workload.predict(self._library.take(self._batch_size))
        progress.completed(begin_ns, monotonic_ns(), self._batch_size, True)

    def guarded(self, callback: Callable[P, None]) -> Callable[P, None]:
        """The same, but an exception ends the process instead of leaving the callback."""

        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                callback(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - LoadGen cannot survive any
                try:
                    self._on_error(error)
                finally:
                    os._exit(FAILED_EXIT_CODE)

        return call

    def run_test(
        self,
        settings: LoadgenSettings,
        folder: Path,
        batches: Batches,
        issue: Callable[[Sequence[int], Sequence[int]], None],
        most_outstanding: int = 0,
    ) -> dict[str, Any]:
        """Run one LoadGen test to its end, its logs in ``folder``, which is made.

        Returns: LoadGen's settings as they were set.

        Raises:
            RuntimeError: LoadGen returned without issuing a query.
        """
        folder.mkdir(parents=True, exist_ok=True)  # without it LoadGen does nothing, and says nothing
        total = self._workload.total_sample_count
        count = min(settings.performance_sample_count, total)
        asked = test_settings(lg.TestSettings(), lg, settings, count, most_outstanding)
        qsl = lg.ConstructQSL(total, count, self.guarded(self._library.load), _keep)
        sut = lg.ConstructFastSUT(self.guarded(issue), _nothing)
        try:
            # The last argument: unnamed, LoadGen would look for audit.config in the working directory.
            lg.StartTestWithLogSettings(sut, qsl, asked, _log_settings(folder), str(folder / "no-audit"))
        finally:
            lg.DestroyFastSUT(sut)
            lg.DestroyQSL(qsl)

        if not batches.samples:
            raise RuntimeError(f"LoadGen returned without issuing a query; its logs are in {folder}")

        (folder / TRACE_LOG).unlink(missing_ok=True)
        if settings.mode == "PerformanceOnly" and not settings.accuracy_log_sampling_target:
            (folder / ACCURACY_LOG).unlink(missing_ok=True)

        told = {name: getattr(asked, name) for name in REPORTED}
        return told | {
            "scenario": str(settings.scenario),
            "mode": settings.mode,
            "answer_dtype": self._responses.dtype,
        }

    def unload(self) -> None:
        """Let go of all samples."""
        self._library.load(())


class Responses:
    """LoadGen's response objects, made once and used for every batch (LoadGen copies them by value)."""

    def __init__(self, count: int, tokens: int = 0) -> None:
        self._pool = [lg.QuerySampleResponse(0, 0, 0, tokens) for _ in range(count)]
        self._pointed: object = None
        self._dtype: object = ""

    @property
    def dtype(self) -> str:
        """Of the last answers: what an accuracy log's bytes are."""
        return str(self._dtype)

    def complete(self, ids: Sequence[int], outputs: "Outputs") -> None:
        """Give LoadGen the outputs of these response ids.

        Raises:
            ValueError: there is not one output an id, or they are not contiguous.
        """
        lg.QuerySamplesComplete(self._pointing(ids, outputs))

    def complete_first(self, ids: Sequence[int], tokens: "Outputs") -> None:
        """Give LoadGen the first tokens of these response ids: the clock of each text's further ones starts."""
        lg.FirstTokenComplete(self._pointing(ids, tokens))

    def _pointing(self, ids: Sequence[int], outputs: "Outputs") -> list[Any]:
        count = len(ids)
        if len(outputs) != count:
            raise ValueError(f"predict gave {len(outputs)} outputs for {count} samples")

        pool = self._pool if count == len(self._pool) else self._pool[:count]
        # Finding an array's address takes longer (1.2 µs) than all the rest for one sample; a workload that
        # answers with the same array again is spared it.
        if outputs is not self._pointed:
            self._point(pool, outputs)

        for response, one in zip(pool, ids, strict=True):
            response.id = one

        return pool

    def _point(self, pool: list[Any], outputs: "Outputs") -> None:
        self._dtype = (outputs[0] if isinstance(outputs, list | Ragged) else outputs).dtype
        if isinstance(outputs, Ragged):
            for response, address, size in zip(pool, *outputs.places(_address(outputs.flat)), strict=True):
                response.data, response.size = address, size

            self._pointed = None
        elif isinstance(outputs, list):
            for response, output in zip(pool, outputs, strict=True):
                response.data, response.size = _address(output), output.nbytes

            self._pointed = None  # the same list may hold other arrays next time
        else:
            base, size = _address(outputs), outputs.nbytes // len(pool)
            for position, response in enumerate(pool):
                response.data, response.size = base + position * size, size

            self._pointed = outputs


def read_detail(folder: Path) -> dict[str, Any]:
    """LoadGen's detail log: the value of each key, of the last line that has it."""
    mark = ":::MLLOG "
    with (folder / DETAIL_LOG).open(encoding="utf-8") as lines:
        entries = [json.loads(line.removeprefix(mark)) for line in lines if line.startswith(mark)]

    return {entry["key"]: entry["value"] for entry in entries}


def _address(output: "npt.NDArray[np.generic]") -> int:
    if not output.flags.c_contiguous:
        raise ValueError(f"predict gave an array that is not C-contiguous: shape {output.shape}")

    address: int = output.__array_interface__["data"][0]
    return address


def _log_settings(folder: Path) -> Any:
    output = lg.LogOutputSettings()
    output.outdir = str(folder)
    log_settings = lg.LogSettings()
    log_settings.log_output = output
    log_settings.enable_trace = False
    return log_settings


def _keep(_indices: Sequence[int]) -> None:
    """LoadGen unloads after each test; the next one, and the filler, want the same samples."""


def _nothing() -> None:
    """FlushQueries: nothing is held back."""
