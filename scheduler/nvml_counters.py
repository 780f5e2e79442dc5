"""What a GPU has counted since its driver was loaded: memory errors, throttling. And what moves: PCIe, memory."""

from dataclasses import dataclass
from typing import Any

import pynvml

from scheduler.nvml import Nvml, first_answer, translated

THROTTLE_FIELDS = {
    "sw_power_cap": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP,
    "sync_boost": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SYNC_BOOST,
    "sw_thermal_slowdown": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
    "hw_thermal_slowdown": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN,
    "hw_power_brake_slowdown": pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN,
}
"""nvidia-smi's word → NVML's field, in ns (nvml.h)."""

ECC_FIELDS = {
    "ecc_corrected": pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
    "ecc_uncorrected": pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCounters:
    """None where the driver does not say, with the reason."""

    throttled_s: dict[str, float] | None
    """By reason, those that this driver counts."""
    ecc_corrected: int | None
    ecc_uncorrected: int | None
    unavailable: dict[str, str]


def counters(nvml: Nvml, uuid: str) -> GpuCounters:
    """What a GPU has counted.

    Raises:
        NotFound, GpuLost: there is no such GPU, or no longer.
    """
    library = nvml.library
    asked = [*THROTTLE_FIELDS.values(), *ECC_FIELDS.values()]
    with translated(f"read the counters of {uuid}", nvml.host):
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
        answers, refusal = first_answer(lambda: library.nvmlDeviceGetFieldValues(handle, asked))

    values = {one.fieldId: one for one in answers or () if one.nvmlReturn == pynvml.NVML_SUCCESS}
    throttled_s = {
        reason: round(_number(values[field]) / 1e9, 6)
        for reason, field in THROTTLE_FIELDS.items()
        if field in values
    }
    ecc = {name: _number(values[field]) if field in values else None for name, field in ECC_FIELDS.items()}
    why = f"NVML answers {refusal}" if refusal else "NVML has no such counter of this GPU"
    lacking = [name for name, value in ecc.items() if value is None] + (
        [] if throttled_s else ["throttled_s"]
    )
    return GpuCounters(
        throttled_s=throttled_s or None,
        ecc_corrected=ecc["ecc_corrected"],
        ecc_uncorrected=ecc["ecc_uncorrected"],
        unavailable=dict.fromkeys(lacking, why),
    )


def pcie_mib_s(nvml: Nvml, uuid: str) -> tuple[float | None, float | None, str]:
    """Sent and received by a GPU, MiB/s, of the last 20 ms, which it takes twice; and why None.

    Raises:
        NotFound, GpuLost: there is no such GPU, or no longer.
    """
    library = nvml.library
    with translated(f"read the PCIe throughput of {uuid}", nvml.host):
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
        kib_s, refusal = first_answer(
            lambda: [
                library.nvmlDeviceGetPcieThroughput(handle, direction)
                for direction in (pynvml.NVML_PCIE_UTIL_TX_BYTES, pynvml.NVML_PCIE_UTIL_RX_BYTES)
            ]
        )

    if kib_s is None:
        return None, None, f"NVML answers {refusal}"

    return round(kib_s[0] / 1024, 3), round(kib_s[1] / 1024, 3), ""


def memory_used_mib(nvml: Nvml, uuid: str) -> tuple[int | None, str]:
    """Of a GPU or a MIG device, without what the driver reserves; and why None.

    Raises:
        NotFound, GpuLost: there is no such device, or no longer.
    """
    library = nvml.library
    with translated(f"read the memory of {uuid}", nvml.host):
        handle = library.nvmlDeviceGetHandleByUUID(uuid)
        used, refusal = first_answer(
            lambda: library.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used >> 20,
            lambda: library.nvmlDeviceGetMemoryInfo(handle).used >> 20,
        )

    return (None, f"NVML answers {refusal}") if used is None else (int(used), "")


def asked_sm_clock_mhz(nvml: Nvml, uuid: str) -> int | None:
    """The application clock of the SMs; None where none can be set.

    Raises:
        NotFound, GpuLost: there is no such GPU, or no longer.
    """
    with translated(f"read the application clock of {uuid}", nvml.host):
        handle = nvml.library.nvmlDeviceGetHandleByUUID(uuid)
        clock, _ = first_answer(
            lambda: nvml.library.nvmlDeviceGetApplicationsClock(handle, pynvml.NVML_CLOCK_SM)
        )

    return None if clock is None else int(clock)


def _number(field: Any) -> int:
    """A field's value, by the type that NVML says it has."""
    kinds = {
        pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
        pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    }
    return int(getattr(field.value, kinds.get(field.valueType, "ullVal")))
