"""Requests asked in a closed and an open loop: every one timed, from when it was to come."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from scheduler.arrivals import poisson
from scheduler.profile_row import latency_ms
from scheduler.steady import WarmUp
from tests.slow_server import Overlapping, Server
from workloads.catalog import build
from workloads.load_loop import LATENCIES_FILE, Profiled, measure
from workloads.protocol import Load, WorkloadOptions
from workloads.sut import Nobody
from workloads.training import Training

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=2, seed=1, threads=1, memory_mib=1024
)
CLOSED = Load(concurrency=1, arrival_rate_per_s=None, seconds=0.2, longest_warm_up_s=0.5, seed=0)


def run(
    workload: Any,
    load: Load,
    folder: Path,
    batch_size: int = 2,
    arrivals: Iterator[float] | None = None,
    on_warm: Callable[[int], None] = lambda _ns: None,
) -> tuple[Profiled, npt.NDArray[np.int64]]:
    profiled = measure(
        workload,
        load,
        batch_size,
        folder,
        Nobody(),
        settling=WarmUp(),
        arrivals=arrivals or iter(()),
        on_warm=on_warm,
        wait_to_begin=lambda: True,
    )
    return profiled, np.load(folder / LATENCIES_FILE)


def open_loop(rate: float, seconds: float = 0.4) -> tuple[Load, Iterator[float]]:
    load = replace(CLOSED, concurrency=None, arrival_rate_per_s=rate, seconds=seconds)
    return load, poisson(rate, seconds, load.seed)


@pytest.mark.parametrize("clients", [1, 4])
def test_every_client_and_every_sample_is_counted(tmp_path: Path, clients: int):
    server = Server(0.002)
    before: list[int] = []
    profiled, requests = run(
        server,
        replace(CLOSED, concurrency=clients),
        tmp_path,
        batch_size=3,
        on_warm=lambda _: before.append(len(server.batches)),
    )
    assert profiled.answered == len(requests) == len(server.batches) - before[0]
    assert profiled.unanswered == 0
    assert set(server.batches) == {3}
    assert (requests[:, 0] == profiled.begin_ns).sum() == clients  # each asks at once
    wall_s = (profiled.end_ns - profiled.begin_ns) / 1e9
    assert wall_s >= 0.2
    outstanding = clients * wall_s  # Little: requests in the system are latency × rate
    latency_s = (requests[:, 2] - requests[:, 0]) / 1e9
    assert latency_s.sum() == pytest.approx(outstanding, rel=0.3)


def test_a_client_asks_again_the_moment_it_is_answered(tmp_path: Path):
    _, requests = run(Server(0.002), replace(CLOSED, concurrency=3), tmp_path)
    assert set(requests[3:, 0]) <= set(requests[:, 2])
    assert (requests[:, 0] <= requests[:, 1]).all()
    assert (requests[:, 1] < requests[:, 2]).all()


def test_a_stall_shows_in_every_request_that_came_meanwhile(tmp_path: Path):
    server = Server(0.0005, stall_s=0.15)
    load, arrivals = open_loop(200)

    def stall_soon(_ns: int) -> None:
        server.stall_at = len(server.batches) + 20

    profiled, requests = run(server, load, tmp_path, arrivals=arrivals, on_warm=stall_soon)
    came, began, done = requests.T
    slow = int(np.argmax(done - began))
    meanwhile = (came > began[slow]) & (came < done[slow])
    assert meanwhile.sum() > 10  # 200 a second for 0.15 s
    assert (done[meanwhile] >= done[slow]).all()
    assert (done[meanwhile] - came[meanwhile] >= done[slow] - came[meanwhile]).all()
    assert ((done - began)[meanwhile] < 0.1e9).all()  # from when they began it would look like nothing
    assert profiled.answered == len(requests)


def test_arrivals_come_as_they_were_decided(tmp_path: Path):
    load, arrivals = open_loop(300, seconds=0.3)
    profiled, requests = run(Server(0.0002), load, tmp_path, arrivals=arrivals)
    wanted = [profiled.begin_ns + round(at_s * 1e9) for at_s in poisson(300, 0.3, load.seed)]
    assert requests[:, 0].tolist() == wanted


@pytest.mark.parametrize("rate", [0.001, 10.0])
def test_an_open_loop_is_measured_for_all_of_its_time_whenever_the_last_request_came(
    tmp_path: Path, rate: float
):
    load, _ = open_loop(rate, seconds=0.2)
    profiled, requests = run(Server(0.0002), load, tmp_path, arrivals=iter([0.01] if rate == 10.0 else []))
    assert 0.2e9 <= profiled.end_ns - profiled.begin_ns < 0.3e9  # 5 a second then, not 100
    assert profiled.answered == len(requests) == (rate == 10.0)


def test_a_server_that_cannot_keep_up_is_given_up_and_says_so(tmp_path: Path):
    load, arrivals = open_loop(400, seconds=0.1)
    profiled, requests = run(Server(0.02), load, tmp_path, arrivals=arrivals)
    assert profiled.unanswered > 10
    assert profiled.answered + profiled.unanswered == len(requests) == len(list(poisson(400, 0.1, 0)))
    told = latency_ms(requests)
    assert told["latency_p99_ms"] is None  # endless: it is not made up from those that were answered
    assert told["latency_mean_ms"] is None


def test_batches_overlap_where_the_workload_lets_them(tmp_path: Path):
    alone, _ = run(Overlapping(0), CLOSED, tmp_path)
    both, requests = run(Overlapping(0), replace(CLOSED, concurrency=2), tmp_path)
    assert alone.answered <= 11
    assert both.answered >= 1.3 * alone.answered
    assert (requests[1:, 1] < requests[:-1, 2]).any()


def test_one_slow_request_is_seen_in_the_slowest_percentile(tmp_path: Path):
    server = Server(0.0001, stall_s=0.08)
    _, requests = run(
        server,
        CLOSED,
        tmp_path,
        on_warm=lambda _ns: setattr(server, "stall_at", len(server.batches) + 50),
    )
    told = latency_ms(requests)
    assert (told["latency_max_ms"] or 0) >= 80
    assert len(requests) < 1000  # so that one is more than a thousandth
    assert (told["latency_p99_9_ms"] or 0) > 10 * (told["latency_p90_ms"] or 0)


def test_percentiles_are_numpys_of_all_raw_samples():
    rng = np.random.default_rng(0)
    came = rng.integers(0, 10**9, 5000)
    done = came + rng.lognormal(15, 1, 5000).astype(np.int64)
    told = latency_ms(np.stack((came, came, done), axis=1))
    taken = (done - came) / 1e6
    for name, percentile in {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "p99_9": 99.9}.items():
        assert told[f"latency_{name}_ms"] == np.percentile(taken, percentile)

    assert told["latency_mean_ms"] == taken.mean()
    assert told["latency_std_ms"] == taken.std()


def test_the_warm_up_is_as_long_as_it_may_be_where_batches_never_settle(tmp_path: Path):
    class Drifting(Server):
        def predict(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
            self._service_s *= 1.1
            return super().predict(indices)

    profiled, _ = run(
        Drifting(0.01), replace(CLOSED, seconds=0.05, longest_warm_up_s=0.3), tmp_path, batch_size=1
    )
    assert not profiled.steady
    assert 0.3 <= profiled.warm_up_s < 1


def test_inference_runs_in_evaluation_and_inference_mode(tmp_path: Path):
    for name in ("resnet50", "minilm"):
        workload: Any = build(name, SMALL)
        workload.load()
        seen = []

        def look(module: nn.Module, *_: object, seen: list[bool] = seen) -> None:
            seen.append(torch.is_inference_mode_enabled() and not any(m.training for m in module.modules()))

        workload._network.register_forward_pre_hook(look)
        profiled, _ = run(workload, replace(CLOSED, seconds=0.05, longest_warm_up_s=0.05), tmp_path)
        assert len(seen) >= profiled.answered > 0
        assert all(seen)


def test_training_trains(tmp_path: Path):
    workload = build("vision-transformer:train", SMALL)
    assert isinstance(workload, Training)
    workload.load()
    before = [each.detach().clone() for each in workload.network.parameters()]
    profiled, _ = run(workload, replace(CLOSED, seconds=0.1, longest_warm_up_s=0.05), tmp_path)
    assert workload.steps == profiled.answered + profiled.warm_up_batches > 1
    moved = [not torch.equal(*pair) for pair in zip(before, workload.network.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
