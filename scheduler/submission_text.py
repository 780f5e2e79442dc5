"""What a submission's own files say, from what its runs recorded. Pure.

Nothing is said that was not measured or recorded: what is not known of a machine is left empty.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from scheduler import __version__
from scheduler.result import Manifest, QualityFigure, Result
from scheduler.spec import SystemType
from scheduler.submission_layout import FIELDS, FIELDS_SINCE_V4, Division, Place
from workloads.protocol import Scenario


def accuracy_line(workload: str, told: QualityFigure) -> str:
    """As the reference implementations' scripts write it, for the checker to find."""
    details = told.details
    if workload == "resnet50":
        good = round(details.get("good", told.value * told.samples / 100))
        return f"accuracy={told.value:.3f}%, good={good}, total={told.samples}"

    if workload == "bert":
        return json.dumps({"exact_match": details.get("exact_match", 0.0), "f1": told.value})

    if workload == "dlrm":
        return f"AUC={told.value:.3f}%, accuracy={details.get('accuracy', 0.0):.3f}%, samples={told.samples}"

    if workload == "3d-unet":
        parts = ", ".join(f"{name} = {value:.5f}" for name, value in details.items())
        return f"Accuracy: mean = {told.value:.5f}, {parts}"

    if workload == "rnnt":
        return f"Word Error Rate: {details.get('wer', 100 - told.value):.6f}%, accuracy={told.value:.6f}%"

    return f"mAP={told.value:.3f}%"


def fidelity_line(told: QualityFigure | None) -> str:
    """In its place in a rehearsal: no number that could be taken for an accuracy."""
    if told is None:
        return "no accuracy"

    return f"no accuracy; fidelity to the same weights in fp32: {told.metric} {told.value:.4f} % of {told.samples}"


_TOLD_AS = {
    Scenario.OFFLINE: ("target_qps", "offline_expected_qps", 1.0),
    Scenario.SERVER: ("target_qps", "server_target_qps", 1.0),
    Scenario.SINGLE_STREAM: ("target_latency", "single_stream_expected_latency_ns", 1e-6),
    Scenario.MULTI_STREAM: ("target_latency", "multi_stream_expected_latency_ns", 1e-6),
}
"""user.conf's key, LoadGen's setting, and what the one is of the other."""


def user_conf(conf: str, scenario: Scenario, effective: Mapping[str, Any]) -> str:
    """user.conf: the rate that LoadGen was told."""
    key, setting, times = _TOLD_AS[scenario]
    return f"{conf}.{scenario}.{key} = {effective[setting] * times:.10g}\n"


def mlperf_conf(conf: str, scenario: Scenario, effective: Mapping[str, Any]) -> str:
    """The round's values, as LoadGen was told them."""
    lines = ["# The round's values as LoadGen was told them, through its settings."]
    lines += [
        f"*.*.{seed} = {effective[seed]}"
        for seed in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
    ]
    lines.append(
        f"{conf}.*.performance_sample_count_override = {effective['performance_sample_count_override']}"
    )
    lines += [f"{conf}.{scenario}.{key} = {effective[key]}" for key in ("min_duration_ms", "min_query_count")]
    if scenario is Scenario.SERVER:
        lines.append(
            f"{conf}.{scenario}.target_latency = {effective['server_target_latency_ns'] // 1_000_000}"
        )

    return "\n".join(lines).replace("min_duration_ms", "min_duration") + "\n"


def description(manifest: Manifest) -> dict[str, str]:
    """The JSON of a benchmark's measurements."""
    main = manifest.main
    return {
        "input_data_types": main.precision,
        "retraining": "No",
        "starting_weights_filename": PurePath(main.weights).name if main.weights else "random",
        "weight_data_types": main.precision,
        "weight_transformations": "None" if main.precision == "fp32" else f"cast to {main.precision}",
    }


Recorded = tuple[Manifest, Result]


def readme(place: Place, performance: Recorded, accuracy: Recorded, *, rehearsal: bool) -> str:
    """README.md of a benchmark: what ran, under which conditions."""
    lines = [f"# {place.model}, {place.scenario}, on {place.system}", ""]
    if rehearsal:
        lines += ["**A rehearsal: not for submission.**", ""]

    lines.append(f"Measured with hetero-mig {__version__}; LoadGen's logs are as it wrote them.")
    for what, (manifest, result) in (("Performance", performance), ("Accuracy", accuracy)):
        main = manifest.main
        beside = ", ".join(f"{one.workload} on {one.slice}" for one in manifest.background) or "nothing"
        lines.append(
            f"- {what} run, {manifest.started_utc}: {main.workload} ({main.size}, {main.precision}, batch ≤ "
            f"{result.main.batch_size}) on slice {main.slice}; beside it: {beside}."
        )

    metric = performance[1].main.metric
    if metric is not None:
        lines.append(f"- LoadGen's {metric.name}: {metric.value:.6g} {metric.unit}.")

    return "\n".join(lines) + "\n"


def code_text(place: Place) -> str:
    """README.md of the code."""
    return (
        f"# {place.model}\n\nThe network is in hetero-mig {__version__} (`workloads/`), run by its command "
        f"`hetero-mig --main …`; the round's settings are in `profiles/loadgen/{place.round}.yaml`.\n"
    )


def calibration_text(manifest: Manifest) -> str:
    """calibration.md."""
    return (
        "# Calibration\n\nNothing is quantized and no data is used to calibrate: weights and activations are "
        f"{manifest.main.precision}, cast from the fp32 weights.\n"
    )


def rehearsal_text(round_: str, reasons: Sequence[str]) -> str:
    """What marks a rehearsal."""
    lines = [f"# Not for submission to MLPerf {round_}", "", "This tree shows the form alone. It is", ""]
    return "\n".join([*lines, *(f"- {reason}" for reason in dict.fromkeys(reasons))]) + "\n"


def system_of(
    division: Division, submitter: str, system: str, manifest: Manifest, kind: SystemType
) -> dict[str, object]:
    """What is known of the machine; the rest is empty, and the submitter's to tell."""
    host, gpus = manifest.host, manifest.gpus.get("settings", {})
    used = {one.uuid for one in manifest.slices if one.kind == "gpu"}
    names = sorted({str(one["name"]) for uuid, one in gpus.items() if not used or uuid in used})
    on_cpu = all(one.kind == "cpu" for one in manifest.slices)
    versions = host.get("versions", {})
    told: dict[str, object] = dict.fromkeys((*FIELDS, *FIELDS_SINCE_V4), "")
    return told | {
        "division": division,
        "submitter": submitter,
        "status": "available",
        "system_name": system,
        "system_type": kind,
        "number_of_nodes": 1,
        "host_processor_model_name": host.get("cpu_model", ""),
        "host_processor_core_count": _count(host.get("cores_online") or ""),
        "host_memory_capacity": f"{host['memory_mib'] / 1024:.0f} GiB" if host.get("memory_mib") else "",
        "accelerators_per_node": 0 if on_cpu else len(used or gpus),
        "accelerator_model_name": "" if on_cpu else ", ".join(names),
        "accelerator_memory_capacity": "" if on_cpu else f"{manifest.slices[0].memory_mib or 0} MiB a slice",
        "framework": f"PyTorch {versions.get('torch')}",
        "operating_system": host.get("os") or host.get("kernel", ""),
        "other_software_stack": f"hetero-mig {__version__}, LoadGen {versions.get('mlcommons-loadgen')}"
        + (f", NVIDIA driver {manifest.gpus['driver']}" if manifest.gpus.get("driver") else ""),
        "sw_notes": "" if on_cpu else f"slice {manifest.main.slice}",
    }


def _count(ranges: str) -> int | str:
    """How many cores ``0-3,8`` are; empty where nothing is told."""
    edges = [each.split("-") for each in ranges.split(",") if each]
    return sum(int(one[-1]) - int(one[0]) + 1 for one in edges) or ""
