"""A workload made ready with what an earlier process compiled for it, or compiled now and kept for the next.

What torch.compile and Triton keep lies in the entry's folder. CUDA graphs hold addresses of one process and cannot be
kept; with what they launch at hand, capturing them takes well under a second.
"""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tqdm import tqdm  # type: ignore[import-untyped]  # it comes without types

from workloads.engine_cache import EngineCache, Lease, NotKept
from workloads.engine_key import facts_of
from workloads.protocol import Scenario, Workload, WorkloadOptions

VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Where torch keeps what it compiled: read each time it compiles."""

How = Literal["warm", "built", "not kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """How a workload came to be ready."""

    how: How
    key: str
    batch_sizes: tuple[int, ...]
    """Computed once each."""
    took_s: float
    """For loading, and for these."""
    note: str
    refusal: str = ""
    """Why it is not kept."""
    lease: Lease | None = None
    """To be held for as long as the workload is used."""


def compiles(options: WorkloadOptions) -> bool:
    """Whether anything is compiled: by torch.compile, or (Triton's kernels) on any GPU."""
    return options.device == "cuda" or options.engine == "compile"


def sizes_for(scenario: Scenario, batch_size: int, per_query: int) -> tuple[int, ...]:
    """The batch sizes that a scenario's queries are answered in; Server's are all powers of two."""
    if scenario is Scenario.SERVER:
        return (*(1 << power for power in range((batch_size - 1).bit_length())), batch_size)

    most = {Scenario.SINGLE_STREAM: 1, Scenario.MULTI_STREAM: per_query}
    return (min(batch_size, most.get(scenario, batch_size)),)


def load(
    workload: Workload,
    name: str,
    code: str,
    shape: str,
    options: WorkloadOptions,
    batch_sizes: Sequence[int],
    cache: EngineCache | None = None,
) -> Prepared:
    """Load the workload, and let it compute one batch of each size, by way of the cache.

    Args:
        workload: not loaded yet.
        name, code, shape, options: what its engine's key is made of (engine_key.py).
        batch_sizes: at most ``options.batch_size`` each; none of what learns from each batch.
        cache: the user's.

    Raises:
        Exception: whatever the workload raises; then nothing is kept.
    """
    cache = EngineCache.of_user() if cache is None else cache
    sizes = tuple(sorted(set(batch_sizes)))
    began = time.monotonic()
    try:
        lease = cache.lease(facts_of(name, code, shape, options))
    except NotKept as refusal:
        _compute(workload, sizes)
        return _not_kept(sizes, time.monotonic() - began, refusal)

    os.environ.update({name: str(lease.folder / below) for name, below in VARIABLES.items()})
    with ExitStack() as on_failure:
        on_failure.enter_context(lease)
        _compute(workload, sizes)
        took_s = time.monotonic() - began
        try:
            made = _kept(lease, cache, sizes, took_s)
        except NotKept as refusal:
            for variable in VARIABLES:  # what is compiled from now on goes where torch puts it by itself
                del os.environ[variable]

            return _not_kept(sizes, took_s, refusal)

        on_failure.pop_all()
        return made


def _not_kept(sizes: tuple[int, ...], took_s: float, refusal: NotKept) -> Prepared:
    note = f"engine cache: built in {took_s:.1f} s and not kept: {refusal}"
    return Prepared(how="not kept", key="", batch_sizes=sizes, took_s=took_s, note=note, refusal=str(refusal))


def _kept(lease: Lease, cache: EngineCache, sizes: tuple[int, ...], took_s: float) -> Prepared:
    former = lease.engine
    if former is None:
        built_utc = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        made = lease.keep(build_s=round(took_s, 3), batch_sizes=sizes, built_utc=built_utc)
        cache.evict()
        kept = "kept for the next run" if made.files else "nothing of it is compiled"
        how: How = "built"
        note = f"engine cache: {lease.key} built in {took_s:.1f} s; {kept}"
    else:
        new = [str(size) for size in sizes if size not in former.batch_sizes]
        how = "built" if new else "warm"
        note = (
            f"engine cache: {lease.key} was warm (built {former.built_utc} in {former.build_s:.1f} s)"
            f"{', but for batches of ' + ', '.join(new) if new else ''}; ready in {took_s:.1f} s"
        )
        try:
            lease.add(sizes)
        except NotKept as refusal:
            note += f"; that it has these now is not written down: {refusal}"

    return Prepared(how=how, key=lease.key, batch_sizes=sizes, took_s=took_s, note=note, lease=lease)


def _compute(workload: Workload, batch_sizes: Sequence[int]) -> None:
    """Load it, and let it compute a batch of each size of the library's first samples."""
    # torch traces under a progress bar, whose own lock is a semaphore that a worker's end would leave behind.
    tqdm.set_lock(threading.RLock())
    workload.load()
    if not batch_sizes:
        return

    samples = range(min(max(batch_sizes), workload.total_sample_count))
    workload.load_samples(samples)
    for size in batch_sizes:
        workload.predict([number % len(samples) for number in range(size)])

    workload.unload_samples(samples)
