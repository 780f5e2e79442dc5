"""Every return code of NVML has its error and its advice; throttle bits have nvidia-smi's words."""

import pynvml
import pytest

from scheduler import errors
from scheduler.errors import GpuError
from scheduler.nvml_codes import ERRORS, THROTTLE_REASONS, gpu_error, throttle_reasons

CODES = sorted(name.removeprefix("NVML_ERROR_") for name in vars(pynvml) if name.startswith("NVML_ERROR_"))

EXPECTED = {
    "LIBRARY_NOT_FOUND": errors.NvmlMissing,
    "DRIVER_NOT_LOADED": errors.DriverNotLoaded,
    "LIB_RM_VERSION_MISMATCH": errors.DriverMismatch,
    "NO_PERMISSION": errors.NoPermission,
    "OPERATING_SYSTEM": errors.NoPermission,
    "NOT_SUPPORTED": errors.NotSupported,
    "FUNCTION_NOT_FOUND": errors.NotSupported,
    "INSUFFICIENT_RESOURCES": errors.InsufficientResources,
    "IN_USE": errors.InstanceInUse,
    "NOT_FOUND": errors.NotFound,
    "INVALID_ARGUMENT": errors.InvalidRequest,
    "GPU_IS_LOST": errors.GpuLost,
    "RESET_REQUIRED": errors.GpuLost,
    "UNKNOWN": errors.NvmlFailure,
}


def error(word: str, *, refused_files: tuple[str, ...] = (), kernel_module: str | None = None):
    return gpu_error(
        word, "NVML's text.", "list the GPUs", refused_files=refused_files, kernel_module=kernel_module
    )


@pytest.mark.parametrize("word", CODES)
def test_every_code_of_this_pynvml_has_an_error_with_three_facts(word: str):
    assert word in ERRORS
    made = error(word)
    assert type(made) is ERRORS[word]
    assert made.exit_code == 3
    assert made.asked == "list the GPUs"
    assert word in made.found
    assert made.do


@pytest.mark.parametrize(("word", "kind"), EXPECTED.items())
def test_codes_that_a_user_meets(word: str, kind: type[GpuError]):
    assert type(error(word)) is kind


def test_every_class_of_gpu_error_is_the_answer_to_some_code():
    assert set(ERRORS.values()) == set(errors.GpuError.__subclasses__())


def test_no_two_classes_give_the_same_advice():
    advice = {kind: error(word).do for word, kind in ERRORS.items()}
    assert len(set(advice.values())) == len(advice)


def test_a_code_from_a_later_driver_is_a_failure_with_its_number():
    made = error("code 1234")
    assert type(made) is errors.NvmlFailure
    assert "code 1234" in made.found


def test_no_permission_names_the_device_files():
    made = error("NO_PERMISSION", refused_files=("/dev/nvidia0 (root:video 0660)", "/dev/nvidiactl"))
    assert "may not open /dev/nvidia0 (root:video 0660), /dev/nvidiactl" in made.found
    assert "may not open" not in error("NO_PERMISSION").found


def test_a_mismatch_names_the_loaded_version():
    assert "535.104.05" in error("LIB_RM_VERSION_MISMATCH", kernel_module="535.104.05").found
    assert "unknown version" in error("LIB_RM_VERSION_MISMATCH").found


def test_throttle_reasons_are_the_bits_of_pynvml():
    for bit, word in enumerate(THROTTLE_REASONS):
        name = "nvmlClocksEventReason" + "".join(part.capitalize() for part in word.split("_"))
        assert getattr(pynvml, name) == 1 << bit

    mask = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwSlowdown
    assert throttle_reasons(mask) == ("sw_power_cap", "hw_slowdown")
    assert throttle_reasons(0) == ()
    assert throttle_reasons(1 << 10) == ("bit_10",)
