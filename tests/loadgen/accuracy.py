"""Accuracy runs one after another, in a process of their own: LoadGen may end it.

python accuracy.py FOLDER JSON; each job leaves its run and result.json in FOLDER/<its name>.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from workloads import catalog, quality
from workloads.progress import Progress
from workloads.protocol import LoadgenSettings, Scenario, Workload, WorkloadOptions

if TYPE_CHECKING:
    from workloads.protocol import Outputs


class Disturbed:
    """A workload that predicts with one layer's weights changed; its reference has them as they were.

    ``which``: 0.0 the first layer, 1.0 the last.
    """

    def __init__(self, whole: Workload, disturbed: Workload, which: float) -> None:
        self._whole, self._disturbed = whole, disturbed
        self.total_sample_count = whole.total_sample_count
        self.notes: list[str] = []
        self.fidelity = quality.comparison_of(whole)
        network: nn.Module = vars(disturbed)["_network"]
        layers = [
            parameter
            for name, parameter in network.named_parameters()
            if parameter.dim() >= 2 and "emb" not in name
        ]
        with torch.no_grad():
            layer = layers[int(which * (len(layers) - 1))]
            layer += torch.randn(layer.shape, generator=torch.Generator().manual_seed(1)) * layer.std()

    def load(self) -> None:
        """Both are loaded."""

    def load_samples(self, indices: Sequence[int]) -> None:
        self._whole.load_samples(indices)
        self._disturbed.load_samples(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        self._whole.unload_samples(indices)
        self._disturbed.unload_samples(indices)

    def predict(self, indices: Sequence[int]) -> "Outputs":
        return self._disturbed.predict(indices)

    def reference(self, indices: Sequence[int]) -> "Outputs":
        return self._whole.reference(indices)


def workload_of(job: dict[str, Any]) -> Workload:
    """The loaded workload that the job asks for."""
    options = WorkloadOptions(
        size="small",
        device="cpu",
        precision=job.get("precision", "fp32"),
        batch_size=job.get("batch_size", 4),
        seed=1,
        threads=1,
        memory_mib=2048,
        data=Path(job["data"]) if "data" in job else None,
    )
    made = [catalog.build(job["workload"], options) for _ in range(2 if "disturbed" in job else 1)]
    for each in made:
        each.load()

    return Disturbed(*made, job["disturbed"]) if len(made) == 2 else made[0]


def run(folder: Path, job: dict[str, Any]) -> None:
    """One accuracy run, as the worker does it."""
    folder.mkdir()

    def on_error(error: BaseException) -> NoReturn:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(1)

    settings = LoadgenSettings(
        conf_model="*",
        scenario=Scenario(job.get("scenario", "Offline")),
        mode="AccuracyOnly",
        min_duration_ms=10_000,
        min_query_count=1,
        performance_sample_count=job.get("performance_sample_count", 4),
        accuracy_sample_count=job.get("samples"),
        target_qps=None,
        server_target_latency_ns=50_000_000,
        qsl_rng_seed=11,
        sample_index_rng_seed=12,
        schedule_rng_seed=13,
    )
    workload, issuing = workload_of(job), list[int]()
    with Progress(folder) as progress:
        measured = quality.answer_all(
            workload, settings, job.get("batch_size", 4), folder, progress, issuing.append, on_error=on_error
        )
        found = quality.assess(workload, job.get("fidelity_samples", 8), 1, folder)

    result = {"measured": asdict(measured), "quality": asdict(found), "issuing": len(issuing)}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, asked in json.loads(sys.argv[2]).items():
        run(Path(sys.argv[1]) / name, asked)

    os._exit(0)
