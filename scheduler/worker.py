"""One benchmark's process: its first lines pin it to its slice, its last word is how it ended.

The main thread waits for the launcher's word; LoadGen and the model run in a thread beside it, so that a
stop is obeyed at once and never unwinds through LoadGen's callbacks (LOADGEN trap: an exception there
leaves the process unable to exit cleanly).
"""

import errno
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn

from scheduler import arrivals, orphans, steady
from scheduler.clock import Clock
from scheduler.events import Event, Failed, Finished, Issuing, Ready
from scheduler.slices import CpuSlice, MigSlice, Slice
from workloads import catalog
from workloads.engine_cache import Lease
from workloads.protocol import Load, LoadgenSettings, Workload, WorkloadError, WorkloadOptions

STOP, DRAIN, BEGIN = "stop", "drain", "begin"
FAILED_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h: Failed has said why
DETAIL_LIMIT = 8000  # characters of a traceback sent; a message must fit the socket's buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """All that a worker needs to know; travels by pickle."""

    name: str
    role: Literal["main", "background", "build"]
    """``build``: it is made ready and calibrated, which leaves its engine in the cache, and that is all."""
    workload: str
    code: str
    """What catalog.construct makes the workload of: ``module:class``, or an own model's."""
    shape: str
    """What its size is, in words."""
    trains: bool
    imports: tuple[str, ...]
    """Modules that its own imports first, and that take long."""
    slice: Slice
    options: WorkloadOptions
    settings: LoadgenSettings
    duration_s: float | None
    """Background only: how long to issue; None until told to stop."""
    fidelity_samples: int
    """Of main's accuracy run: how many answers are held against the reference."""
    folder: Path
    """Exists; the benchmark's own."""
    clock: Clock
    load: Load | None = None
    """Of a profile: these requests in place of LoadGen's. It is warm at Issuing, and measures once told to begin."""


class WrongDevice(Exception):
    """CUDA shows another device than the slice this worker was given."""


def main(task: Task, launcher: Connection) -> None:
    """Carry out one benchmark; never returns."""
    os.setsid()
    orphans.die_with_forkserver()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher alone answers the terminal
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _send_output_to(task.folder)
        os.environ.update(task.slice.environ())
        os.sched_setaffinity(0, task.slice.cores)
    except OSError as error:
        _fail(task, launcher, error)

    told = {word: threading.Event() for word in (DRAIN, BEGIN)}
    done = threading.Event()
    threading.Thread(target=_work, args=(task, launcher, told, done), daemon=True, name="loadgen").start()
    threading.Thread(target=_obey, args=(launcher, told), daemon=True, name="control").start()
    done.wait()
    # Not through the interpreter's own exit: CUDA, torch and LoadGen each tear down there, and can abort.
    _flush()
    os._exit(0)


def _obey(launcher: Connection, told: Mapping[str, threading.Event]) -> None:
    while True:
        try:
            word = launcher.recv()
        except (EOFError, OSError):  # the launcher is gone
            os._exit(1)

        if word == STOP:
            _flush()
            os._exit(0)
        else:
            told[word].set()


def _work(
    task: Task, launcher: Connection, told: Mapping[str, threading.Event], done: threading.Event
) -> None:
    def tell(event: Event) -> None:
        try:
            launcher.send(event)
        except OSError:
            os._exit(1)

    def fail(error: BaseException) -> NoReturn:
        _fail(task, launcher, error)

    try:
        workload, facts, lease = _stand(task)
        if task.role == "build" and lease is not None:
            facts["notes"] += _prepare(task, workload, lease, fail)

        tell(Ready(task.name, task.clock.now(), facts))
        if task.load is not None:
            tell(_profile(task, task.load, workload, tell, told[BEGIN]))
        elif task.role != "build":
            tell(_run(task, workload, lease, tell, fail, told[DRAIN]))

        done.set()
    except BaseException as error:  # noqa: BLE001 - whatever a workload raises (sys.exit too) is told to the launcher
        fail(error)


def _stand(task: Task) -> tuple[Workload, dict[str, Any], Lease | None]:
    """Load the workload on the slice, once CUDA has confirmed that this is the slice."""
    with _uncollected():
        workload = catalog.construct(task.code, task.workload, task.options)

    if "torch" in sys.modules:
        _limit_threads(task.options.threads)

    if task.load is not None and task.load.memory_limit_mib is not None:
        _limit_memory(task.load.memory_limit_mib)

    device = confirm_device(task.slice)
    began = time.monotonic()
    facts, lease = _load(task, workload)
    load_s = round(time.monotonic() - began, 3)
    return workload, {"pid": os.getpid(), "device": device, "load_s": load_s, **facts}, lease


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is imported within it stays: looking through it for garbage, again and again while it grows, takes 0.4 s of
    the 3.3 s that torch and torchvision need."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _load(task: Task, workload: Workload) -> tuple[dict[str, Any], Lease | None]:
    """Load it, by way of the cache of engines where something is compiled; gives what is to be told, and the lease on
    its engine, which is held until the process ends."""
    from workloads import engine_build

    options = task.options
    if not task.imports or not engine_build.compiles(options):
        workload.load()
        return {"notes": list(workload.notes)}, None

    # Of a run, the one size that its first query has; a GPU's load captures that by itself.
    per_query = task.settings.multi_stream_samples_per_query
    sizes = engine_build.sizes_for(task.settings.scenario, options.batch_size, per_query)
    if task.role != "build":
        sizes = sizes[-1:] if options.device == "cpu" else ()

    asked = (workload, task.workload, task.code, task.shape, options, () if task.trains else sizes)
    engine = engine_build.load(*asked)
    facts = {"how": engine.how, "key": engine.key, "batch_sizes": engine.batch_sizes, "took_s": engine.took_s}
    facts |= {"refusal": engine.refusal} if engine.refusal else {}
    return {"notes": [*workload.notes, engine.note], "engine": facts}, engine.lease


def _prepare(
    task: Task, workload: Workload, lease: Lease, fail: Callable[[BaseException], NoReturn]
) -> tuple[str, ...]:
    from workloads import loadgen

    args = (workload, task.settings, task.options.batch_size, task.folder)
    return loadgen.prepare(*args, on_error=fail, lease=lease)


def _run(
    task: Task,
    workload: Workload,
    lease: Lease | None,
    tell: Callable[[Event], None],
    fail: Callable[[BaseException], NoReturn],
    draining: threading.Event,
) -> Finished:
    from workloads import loadgen, quality
    from workloads.progress import Progress

    def on_issuing(first_issue_ns: int) -> None:
        tell(Issuing(task.name, task.clock.now(), task.clock.at(first_issue_ns)))

    with Progress(task.folder) as progress:
        args = (workload, task.settings, task.options.batch_size, task.folder, progress, on_issuing)
        if task.settings.mode == "AccuracyOnly":
            measured = quality.answer_all(*args, on_error=fail)
            quality.assess(workload, task.fidelity_samples, task.options.seed, task.folder)
        elif task.role == "main":
            measured = loadgen.measure(*args, on_error=fail, lease=lease)
        else:
            lasting_ns = None if task.duration_s is None else int(task.duration_s * 1e9)
            measured = loadgen.keep_busy(*args, on_error=fail, drain=draining, lasting_ns=lasting_ns)

    text = json.dumps(asdict(measured), indent=2, default=str)
    (task.folder / "loadgen_settings.json").write_text(text + "\n", encoding="utf-8")
    began, ended = measured.begin_ns, measured.end_ns
    return Finished(
        task.name,
        task.clock.now(),
        begin=task.clock.at(began) if began else None,
        end=task.clock.at(ended) if began else None,
        facts={"notes": list(measured.notes), "batch_size": measured.effective["batch_size"]},
    )


def _profile(
    task: Task,
    load: Load,
    workload: Workload,
    tell: Callable[[Event], None],
    begin: threading.Event,
) -> Finished:
    from workloads import load_loop
    from workloads.progress import Progress

    def on_warm(began_ns: int) -> None:
        tell(Issuing(task.name, task.clock.now(), task.clock.at(began_ns)))

    rate = load.arrival_rate_per_s
    with Progress(task.folder) as progress:
        profiled = load_loop.measure(
            workload,
            load,
            task.options.batch_size,
            task.folder,
            progress,
            settling=steady.WarmUp(),
            arrivals=iter(()) if rate is None else arrivals.poisson(rate, load.seconds, load.seed),
            on_warm=on_warm,
            wait_to_begin=begin.is_set,
        )

    return Finished(
        task.name,
        task.clock.now(),
        begin=task.clock.at(profiled.begin_ns),
        end=task.clock.at(profiled.end_ns),
        facts=asdict(profiled) | {"notes": list(workload.notes)},
    )


def confirm_device(slice_: Slice) -> dict[str, Any]:
    """What the process really runs on, as CUDA (or the kernel) tells it.

    Raises:
        WrongDevice: it is not the slice given: another UUID, SM count, or more than one device in sight.
    """
    if isinstance(slice_, CpuSlice):
        cores = tuple(sorted(os.sched_getaffinity(0)))
        if cores != tuple(sorted(slice_.cores)):
            raise WrongDevice(f"given cores {slice_.cores}, the kernel allows {cores}")

        return {"kind": "cpu", "cores": list(cores)}

    import torch

    count = torch.cuda.device_count()
    if count != 1:
        reason = "" if count else f" (CUDA: {_why_no_cuda()})"
        raise WrongDevice(f"given {slice_.uuid}, but CUDA shows {count} devices{reason}")

    found = torch.cuda.get_device_properties(0)
    uuid = str(found.uuid)
    # CUDA tells a MIG device's own UUID or, by its older call, that of the GPU it is on.
    known = [slice_.uuid, slice_.gpu_uuid] if isinstance(slice_, MigSlice) else [slice_.uuid]
    if not any(uuid.removeprefix("GPU-").removeprefix("MIG-") in name for name in known):
        raise WrongDevice(f"given {slice_.uuid}, but CUDA stands on {uuid}")

    if slice_.sms is not None and found.multi_processor_count != slice_.sms:
        raise WrongDevice(f"{slice_.uuid} has {slice_.sms} SMs, but CUDA shows {found.multi_processor_count}")

    memory_mib = found.total_memory // 2**20
    if memory_mib > slice_.memory_mib * 1.02:
        raise WrongDevice(f"{slice_.uuid} has {slice_.memory_mib} MiB, but CUDA shows {memory_mib}")

    return {
        "kind": slice_.kind,
        "cuda_uuid": uuid,
        "name": found.name,
        "sms": found.multi_processor_count,
        "memory_mib": memory_mib,
        "cuda_visible_devices": os.environ["CUDA_VISIBLE_DEVICES"],
    }


def _why_no_cuda() -> str:
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]

    return "no reason given"


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _limit_memory(mib: int) -> None:
    from workloads import load_loop

    load_loop.limit_memory(mib)


def _send_output_to(folder: Path) -> None:
    """Let everything this process prints, also from C, go to its own files at the disk's speed."""
    for stream, path in ((sys.stdout, folder / "stdout.log"), (sys.stderr, folder / "stderr.log")):
        stream.flush()
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, stream.fileno())
        os.close(target)


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # the disk is full; the record says so elsewhere
        pass


def _fail(task: Task, launcher: Connection, error: BaseException) -> NoReturn:
    kind, message = _explain(error, task)
    detail = "".join(traceback.format_exception(error))
    try:
        sys.stderr.write(detail)
    except OSError:
        pass

    _flush()
    try:
        launcher.send(Failed(task.name, task.clock.now(), kind, message, detail[-DETAIL_LIMIT:]))
    except OSError:  # the launcher is gone: nobody is left to tell
        pass

    os._exit(FAILED_EXIT_CODE)


def _explain(
    error: BaseException, task: Task
) -> tuple[Literal["spec", "memory", "device", "disk", "bug"], str]:
    where = f"{task.workload} on {task.slice.id}"
    text = str(error)
    if isinstance(error, WorkloadError):
        return "spec", text

    if isinstance(error, WrongDevice):
        return "device", text

    # An allocator assert about NVML on a MIG device usually hides a plain out-of-memory (pytorch#112377).
    out_of_memory = type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError)
        and any(words in text for words in ("out of memory", "NVML_SUCCESS", "can't allocate memory"))
    )
    if out_of_memory or isinstance(error, MemoryError):
        return "memory", (
            f"{where} ran out of memory ({task.options.memory_mib} MiB) at batch size "
            f"{task.options.batch_size}; take a smaller --batch-size {task.workload}=N or a larger slice"
        )

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk", f"no space left for {where}'s record in {task.folder}"

    blamed = catalog.blame(task.code, error)
    if blamed is not None:
        return "spec", f"{where} failed in its own code: {blamed}"

    return "bug", f"{where} failed: {type(error).__name__}: {text.splitlines()[0] if text else ''}"
