"""What a benchmark computes in, in which batches, and how its network is run: from what is asked, and the slice."""

from collections.abc import Iterable

from scheduler.errors import SpecError
from scheduler.slices import Slice
from scheduler.spec import RunSpec
from workloads import catalog
from workloads.protocol import DeviceKind, EngineName, Precision, Size

NOT_ON_A_CPU = {
    "fp16": "CPUs compute fp16 more slowly than fp32, where at all",
    "tf32": "TF32 is a format of NVIDIA's tensor cores",
    "fp8": "CPUs have no products in fp8",
}

BOARD_SMS, BOARD_MEMORY_MIB = 132, 8 * 9_728
"""The catalogue's batch sizes for GPUs were chosen on a whole H100 or H200; memory as the eight slices of a board of
80 GB have it, so that an eighth of the board takes an eighth of the batch."""


def precision_of(spec: RunSpec, name: str, device: DeviceKind) -> Precision:
    """Main's as asked for; a background benchmark that has no such precision takes the default.

    Raises:
        SpecError: main has none such, or the device.
    """
    known = catalog.entry(name).precisions
    if spec.precision == "auto" or (name != spec.main and spec.precision not in known):
        return "fp32" if device == "cpu" else "fp16"

    if spec.precision not in known:
        raise SpecError(
            asked=f"--precision {spec.precision} for {name}",
            found=f"it computes in {', '.join(known)}",
            do="use one of these; in 8 bits are networks of linear layers alone",
        )

    if device == "cpu" and spec.precision in NOT_ON_A_CPU:
        raise SpecError(
            asked=f"--precision {spec.precision} on CPU slices",
            found=NOT_ON_A_CPU[spec.precision],
            do="use --precision fp32, bf16 or, for linear layers, int8",
        )

    return spec.precision


def engine_of(spec: RunSpec, device: DeviceKind) -> EngineName:
    """As asked for.

    Raises:
        SpecError: the device has none such.
    """
    if spec.engine == "graph" and device == "cpu":
        raise SpecError(
            asked="--engine graph on CPU slices",
            found="CUDA graphs are a GPU's launches",
            do="use --engine eager or compile",
        )

    return spec.engine


def batch_size_of(spec: RunSpec, name: str, size: Size, slice_: Slice) -> int:
    """As asked for, or the default: the catalogue's, of which a smaller GPU or a part of one takes its share."""
    default = catalog.entry(name).batch_size["cpu" if slice_.kind == "cpu" else "cuda", size]
    if _is_for_a_board(name, size, slice_):
        default = share_of_batch(default, slice_.sms, slice_.memory_mib)

    return spec.batch_size.get(name, default)


def share_of_batch(batch_size: int, sms: int | None, memory_mib: int | None) -> int:
    """The least power of two that gives each SM as many samples as on the whole board, or the greatest that memory
    allows, if that is less; 1 at least, ``batch_size`` at most. None: not known, taken as the board's."""
    by_sms = 1
    while by_sms * BOARD_SMS < batch_size * (BOARD_SMS if sms is None else sms):
        by_sms *= 2

    by_memory = batch_size
    if memory_mib is not None and memory_mib < BOARD_MEMORY_MIB:
        by_memory = 1 << max(0, (batch_size * memory_mib // BOARD_MEMORY_MIB).bit_length() - 1)

    return min(batch_size, by_sms, by_memory)


def batch_notes(spec: RunSpec, placed: Iterable[tuple[str, Size, Slice]]) -> list[str]:
    """Which defaults are less than the catalogue's, and why; ``placed``: workload, size and slice of each benchmark."""
    smaller: dict[str, dict[str, None]] = {}  # of each kind of slice a set that keeps its order
    for name, size, slice_ in placed:
        if name in spec.batch_size or not _is_for_a_board(name, size, slice_):
            continue

        here, whole = batch_size_of(spec, name, size, slice_), catalog.entry(name).batch_size["cuda", size]
        if here < whole:
            share = f"{slice_.sms or 'unknown'} SMs and {slice_.memory_mib:,} MiB"
            smaller.setdefault(share, {})[f"{name} {here} (of {whole})"] = None

    return [
        f"smaller default batches on {share}: {', '.join(names)}. The catalogue's are for a whole H100 or H200 "
        f"({BOARD_SMS} SMs); --batch-size sets others"
        for share, names in smaller.items()
    ]


def _is_for_a_board(name: str, size: Size, slice_: Slice) -> bool:
    """Own models bring their own batch size, and what computes nothing has the same on any device."""
    known = catalog.CATALOG.get(name)
    return slice_.kind != "cpu" and known is not None and known.flops_per_sample[size] > 0
