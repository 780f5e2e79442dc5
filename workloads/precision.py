"""Precision and device: what an option's name means to torch, and how a batch gets onto the device."""

import torch
from torch import Tensor

from workloads.protocol import WorkloadError, WorkloadOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def compute_dtype(options: WorkloadOptions) -> torch.dtype:
    """The dtype to compute in.

    Raises:
        WorkloadError: fp16 on a CPU.
    """
    if options.precision == "fp16" and options.device == "cpu":
        raise WorkloadError(
            "precision fp16 on a CPU slice: CPUs compute fp16 by way of fp32, slower than fp32 itself; "
            "ask for fp32 or bf16"
        )

    return DTYPES[options.precision]


def to_device(tensor: Tensor, options: WorkloadOptions) -> Tensor:
    """The tensor on the slice's device; a copy to a GPU goes through pinned memory and does not block."""
    if options.device == "cpu":
        return tensor

    return tensor.pin_memory().to("cuda", non_blocking=True)
