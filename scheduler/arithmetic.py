"""What a benchmark computes in and how its network is run: from what is asked, and from the device."""

from scheduler.errors import SpecError
from scheduler.spec import RunSpec
from workloads import catalog
from workloads.protocol import DeviceKind, EngineName, Precision

NOT_ON_A_CPU = {
    "fp16": "CPUs compute fp16 more slowly than fp32, where at all",
    "tf32": "TF32 is a format of NVIDIA's tensor cores",
    "fp8": "CPUs have no products in fp8",
}


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
