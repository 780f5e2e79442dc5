"""MIG as JSON: what ``hetero-mig mig … --json`` prints."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scheduler.capabilities import Right, Rights
from scheduler.geometry import Geometry, GpuInstance, PlacedInstance, device_name
from scheduler.holders import Holder
from scheduler.mig_changes import Change, words
from scheduler.mig_plan import LayoutPlan
from scheduler.mig_status import GpuProfiles, GpuStatus
from scheduler.report.mig import compute_counts, compute_name


def status(found: Sequence[GpuStatus], rights: Rights) -> dict[str, Any]:
    """All that ``mig status`` shows."""
    return {
        "gpus": [_gpu_as_json(each) for each in found],
        "rights": {
            right.name: _right_as_json(right) for right in (rights.config, rights.monitor, rights.mode)
        },
    }


def profiles(geometry: Geometry, now: Sequence[GpuProfiles]) -> dict[str, Any]:
    """All that ``mig profiles`` shows."""
    return {
        "gpu_name": geometry.gpu_name,
        "source": geometry.source,
        "memory_slices": geometry.memory_slices,
        "compute_slices": geometry.compute_slices,
        "profiles": [
            {**asdict(profile), "compute_instances": dict(compute_counts(profile.compute_slices))}
            for profile in geometry.profiles
        ],
        "gpus": [
            {
                "index": each.gpu.index,
                "uuid": each.gpu.uuid,
                "free": {str(profile_id): free for profile_id, free in each.free.items()},
                "gpu_instances": [
                    {
                        "id": instance.id,
                        "profile_id": instance.profile_id,
                        "compute_profiles": [
                            {"name": compute_name(geometry, instance, one.size), **asdict(one)}
                            for one in inside
                        ],
                    }
                    for instance, inside in each.compute
                ],
            }
            for each in now
        ],
    }


def plan(plan: LayoutPlan) -> dict[str, Any]:
    """All that ``mig plan`` shows."""
    return {
        "gpu_name": plan.geometry.gpu_name,
        "source": plan.geometry.source,
        "possible": not plan.why_not,
        "why_not": plan.why_not or None,
        "nearest": [dict(each) for each in plan.nearest],
        "devices": dict(plan.devices),
        "instances": [
            {
                "profile": wanted.profile.name,
                "profile_id": wanted.profile.id,
                "placement": asdict(where),
                "compute": [asdict(each) for each in wanted.compute],
                "memory_mib": wanted.profile.memory_mib,
                "sms": wanted.profile.sms,
            }
            for wanted, where in plan.instances
        ],
        "room": None if plan.why_not else asdict(plan.room),
    }


def changes(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """All that ``mig apply --dry-run`` and ``mig plan --from-current`` show."""
    return [
        {
            "gpu": change.gpu.index,
            "uuid": change.gpu.uuid,
            "mig_enabled": {"now": change.gpu.enabled, "wanted": change.to.enabled},
            "stays": [
                _placed_as_json(change.geometry, each)
                for each in sorted(
                    {one.placed for one in change.gpu.instances} & change.to.layout,
                    key=lambda each: each.placement.start,
                )
            ],
            "steps": [words(step, change.geometry) for step in change.steps],
            "target": [
                _placed_as_json(change.geometry, each)
                for each in sorted(change.to.layout, key=lambda each: each.placement.start)
            ],
        }
        for change in changes
    ]


def _gpu_as_json(status: GpuStatus) -> dict[str, Any]:
    gpu, geometry = status.gpu, status.geometry
    waits = None
    if gpu.enabled != gpu.pending:
        report = status.held_by
        waits = {
            "for": "a reset of the GPU while nothing uses it, or a reboot",
            "held_by": [_holder_as_json(each) for each in report.holders] if report else None,
            "blind_spots": list(report.blind_spots) if report else [],
        }

    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "pci_device_id": f"0x{gpu.pci_device_id:08X}",
        "pci_address": gpu.pci_address,
        "mig_capable": gpu.capable,
        "mig_mode": {"current": gpu.enabled, "pending": gpu.pending, "waits": waits},
        "mode_change_needs_reset": None if gpu.resetless is None else not gpu.resetless,
        "geometry_source": geometry.source if geometry else None,
        "memory_slices": geometry.memory_slices if geometry else None,
        "compute_slices": geometry.compute_slices if geometry else None,
        "instances_error": gpu.instances_error or None,
        "gpu_instances": [_instance_as_json(status, each) for each in gpu.instances],
        "room": asdict(status.room) if status.room else None,
        "processes": [_holder_as_json(each) for each in status.processes.get(gpu.uuid, ())],
    }


def _instance_as_json(status: GpuStatus, instance: GpuInstance) -> dict[str, Any]:
    profile = status.geometry.of_id(instance.profile_id) if status.geometry else None
    return {
        "id": instance.id,
        "profile": profile.name if profile else None,
        "profile_id": instance.profile_id,
        "placement": asdict(instance.placement),
        "memory_mib": profile.memory_mib if profile else None,
        "sms": profile.sms if profile else None,
        "compute_instances": [
            {
                "id": each.id,
                "placement": asdict(each.placement),
                "mig_device": {
                    "name": device_name(profile, each.placement.size) if profile else None,
                    "index": each.mig_index,
                    "uuid": each.uuid,
                    "legacy_uuid": f"MIG-{status.gpu.uuid}/{instance.id}/{each.id}",
                    "sms": each.sms,
                },
                "access": _right_as_json(right)
                if (right := status.access.get((instance.id, each.id)))
                else None,
                "processes": [
                    _holder_as_json(holder) for holder in status.processes.get(each.uuid or "", ())
                ],
            }
            for each in instance.compute
        ],
    }


def _right_as_json(right: Right) -> dict[str, Any]:
    return {"allowed": right.allowed, "reason": right.reason, "do": right.do, "file": right.file}


def _holder_as_json(holder: Holder) -> dict[str, Any]:
    return {
        "pid": holder.pid,
        "user": holder.user or None,
        "command": holder.command,
        "unit": str(holder.unit) if holder.unit else None,
    }


def _placed_as_json(geometry: Geometry, placed: PlacedInstance) -> dict[str, Any]:
    profile = geometry.of_id(placed.profile_id)
    return {
        "profile": profile.name if profile else None,
        "profile_id": placed.profile_id,
        "placement": asdict(placed.placement),
        "compute": [asdict(each) for each in placed.compute],
    }
