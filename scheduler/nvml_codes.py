"""NVML's codes in words: which error a return code is and what a person can do about it; throttle reasons.

Pure, and free of pynvml: return codes come by NVML's names for them, without ``NVML_ERROR_``.
"""

from scheduler.errors import (
    DriverMismatch,
    DriverNotLoaded,
    GpuError,
    GpuLost,
    InstanceInUse,
    InsufficientResources,
    InvalidRequest,
    NoPermission,
    NotFound,
    NotSupported,
    NvmlFailure,
    NvmlMissing,
)

ERRORS: dict[str, type[GpuError]] = {
    "UNINITIALIZED": InvalidRequest,
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_SUPPORTED": NotSupported,
    "NO_PERMISSION": NoPermission,
    "ALREADY_INITIALIZED": InvalidRequest,
    "NOT_FOUND": NotFound,
    "INSUFFICIENT_SIZE": InvalidRequest,
    "INSUFFICIENT_POWER": NvmlFailure,
    "DRIVER_NOT_LOADED": DriverNotLoaded,
    "TIMEOUT": NvmlFailure,
    "IRQ_ISSUE": NvmlFailure,
    "LIBRARY_NOT_FOUND": NvmlMissing,
    "FUNCTION_NOT_FOUND": NotSupported,
    "CORRUPTED_INFOROM": NvmlFailure,
    "GPU_IS_LOST": GpuLost,
    "RESET_REQUIRED": GpuLost,
    "OPERATING_SYSTEM": NoPermission,  # "the operating system/cgroup has blocked the request" (nvml.h)
    "LIB_RM_VERSION_MISMATCH": DriverMismatch,
    "IN_USE": InstanceInUse,
    "MEMORY": NvmlFailure,
    "NO_DATA": NvmlFailure,
    "VGPU_ECC_NOT_SUPPORTED": NotSupported,
    "INSUFFICIENT_RESOURCES": InsufficientResources,
    "FREQ_NOT_SUPPORTED": NotSupported,
    "ARGUMENT_VERSION_MISMATCH": NotSupported,  # the driver is older than the struct it was given
    "DEPRECATED": NotSupported,
    "NOT_READY": NvmlFailure,
    "GPU_NOT_FOUND": NotFound,
    "INVALID_STATE": NvmlFailure,
    "RESET_TYPE_NOT_SUPPORTED": NotSupported,
    "UNKNOWN": NvmlFailure,
}

_WHAT_TO_DO: dict[type[GpuError], str] = {
    NvmlMissing: (
        "install the NVIDIA driver, which brings libnvidia-ml.so.1; in a container, start it with the GPUs "
        "(--gpus all) and the utility capability; or use --slices cpu"
    ),
    DriverNotLoaded: (
        "load the kernel module (modprobe nvidia, as root) or reboot after installing the driver; "
        "dmesg says why it did not load; or use --slices cpu"
    ),
    DriverMismatch: (
        "reboot, or unload and load the NVIDIA kernel modules, so that both are of one version; "
        "in a container, restart it so that it gets the host's present library"
    ),
    NoPermission: (
        "run as a user who may open them, or ask the administrator for that right; in a container, pass the "
        "device and, for MIG, NVIDIA_MIG_MONITOR_DEVICES"
    ),
    NotSupported: "update the driver, or leave out what this GPU cannot do",
    InsufficientResources: "free GPU instances, or ask for fewer or smaller ones",
    InstanceInUse: "end the processes that use it (nvidia-smi lists them), then try again",
    NotFound: "see what there is: hetero-mig slices",
    InvalidRequest: "this is a fault of the program or of the driver: report it with the driver's version",
    GpuLost: "reset the GPU (nvidia-smi --gpu-reset, as root) or reboot; dmesg | grep Xid says what happened",
    NvmlFailure: "look at dmesg and nvidia-smi -q for the cause",
}


THROTTLE_REASONS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "display_clock_setting",
)
"""nvidia-smi's words (``--query-gpu=clocks_event_reasons.…``) for the bits of nvmlClocksEventReason*, lowest
first. The first two are no throttling."""


def throttle_reasons(mask: int) -> tuple[str, ...]:
    """The words for the bits set; ``bit_N`` for one that has none."""
    bits = [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
    return tuple(THROTTLE_REASONS[bit] if bit < len(THROTTLE_REASONS) else f"bit_{bit}" for bit in bits)


def gpu_error(
    word: str, words_of_nvml: str, asked: str, *, refused_files: tuple[str, ...], kernel_module: str | None
) -> GpuError:
    """The error for one return code.

    Args:
        word: the code's name; an unknown one makes an NvmlFailure.
        words_of_nvml: NVML's own text for it.
        asked: what the program wanted.
        refused_files: NVIDIA's device files that this user may not open.
        kernel_module: version of the loaded NVIDIA kernel module.
    """
    kind = ERRORS.get(word, NvmlFailure)
    found = f"NVML answers {word}: {words_of_nvml.rstrip('.')}"
    if kind is NoPermission and refused_files:
        found += f"; this user may not open {', '.join(refused_files)}"
    elif kind is DriverMismatch:
        found += f"; the loaded kernel module is {kernel_module or 'of unknown version'}"
    elif kind is NvmlMissing:
        found += " (libnvidia-ml.so.1)"

    return kind(asked=asked, found=found, do=_WHAT_TO_DO[kind])
