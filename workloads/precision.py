"""Precision and device: what an option's name means to torch, and how a batch gets onto the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from workloads.protocol import Precision, WorkloadError, WorkloadOptions

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,  # what every scaled product of torch's gives
}
"""What weights and activations are in; of int8 and fp8 see ``compute_dtype``."""

CAPABILITY: dict[Precision, tuple[int, int]] = {"tf32": (8, 0), "int8": (7, 5), "fp8": (8, 9)}
"""The least that a GPU's tensor cores must have for it (CUDA C++ Programming Guide, Arithmetic Instructions)."""


def compute_dtype(options: WorkloadOptions) -> torch.dtype:
    """The dtype to compute in, outside of what is quantised; TF32 is allowed from here on only where it was asked for.

    Raises:
        WorkloadError: the device does not compute so.
    """
    precision = options.precision
    if options.device == "cpu":
        _check_cpu(precision)
        return torch.float32 if precision == "int8" else DTYPES[precision]

    needed = CAPABILITY.get(precision)
    if needed is not None and torch.cuda.get_device_capability() < needed:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        raise WorkloadError(
            f"precision {precision} needs a GPU of compute capability {needed[0]}.{needed[1]} or more; "
            f"{torch.cuda.get_device_name()} has {found}: ask for fp16"
        )

    _allow_tf32(precision == "tf32")
    in_half = precision == "int8" or (precision == "fp8" and _scaled_products_give_half())
    return torch.float16 if in_half else DTYPES[precision]


def is_exact(options: WorkloadOptions) -> bool:
    """Whether the network that is run may stand for the reference too: fp32 weights, none of them quantised."""
    return options.precision in ("fp32", "tf32")


@contextmanager
def without_tf32() -> Iterator[None]:
    """fp32 is fp32, for the time of the ``with``: what the reference is computed in."""
    products, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    _allow_tf32(False)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.backends.cudnn.allow_tf32 = convolutions


def to_device(tensor: Tensor, options: WorkloadOptions) -> Tensor:
    """The tensor on the slice's device; a copy to a GPU goes through pinned memory and does not block."""
    if options.device == "cpu":
        return tensor

    return tensor.pin_memory().to("cuda", non_blocking=True)


def _scaled_products_give_half() -> bool:
    """Whether torch's fp8 product with a scale a row may be in fp16: cuBLASLt's is, which torch takes on Hopper from
    CUDA 12.9 on; elsewhere it takes CUTLASS's, for bf16 (pytorch, aten/src/ATen/native/cuda/ScaledBlas.cpp)."""
    cuda = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return torch.cuda.get_device_capability()[0] == 9 and cuda >= (12, 9)


def _check_cpu(precision: Precision) -> None:
    if precision == "fp16":
        raise WorkloadError(
            "precision fp16 on a CPU slice: CPUs compute fp16 by way of fp32, slower than fp32 itself; "
            "ask for fp32 or bf16"
        )

    if precision in ("tf32", "fp8"):
        raise WorkloadError(
            f"precision {precision} on a CPU slice: it is a GPU's tensor cores'; ask for fp32, bf16 or int8"
        )


def _allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed  # torch's default rounds what convolutions read to 10 bits
