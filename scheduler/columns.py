"""What ``telemetry.json`` and a line of ``telemetry.jsonl`` hold: the published schema, units in the names.

None is a figure that the machine does not give; why is told once, in ``Telemetry.unavailable``. Columns that end
in ``_s`` (but ``at_s``) and counts are counters, to be differentiated. docs/run-folder.md says what each one is.
"""

from pydantic import BaseModel, ConfigDict

ACTIVITY = ("graphics_active", "sm_active", "sm_occupancy", "tensor_active", "dram_active")
"""Ratios, 0-1."""
PCIE = ("pcie_tx_mib_s", "pcie_rx_mib_s")


class _Columns(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HostColumns(_Columns):
    """The machine, and what the launcher costs it."""

    cpu_active: float | None
    load_1min: float | None = None
    memory_available_mib: int | None = None
    """Both asked once a second."""
    launcher_cpu_s: float
    telemetry_cpu_s: float


class WorkerColumns(_Columns):
    """One benchmark's process."""

    pid: int
    slice: str
    cpu_s: float
    samples_completed: int
    filler_samples: int
    memory_mib: float | None = None
    threads: int | None = None
    switches_voluntary: int | None = None
    switches_involuntary: int | None = None
    children_cpu_s: float | None = None
    """These five asked once a second."""
    gpu_memory_used_mib: int | None = None
    """As the driver told when its device had its turn last."""


class SliceColumns(_Columns):
    """One slice: its cores, in lines that have the host; its device, in lines in which it had its turn."""

    cpu_active: float | None = None
    cores_busy_s: float | None = None
    memory_used_mib: int | None = None
    graphics_active: float | None = None
    sm_active: float | None = None
    sm_occupancy: float | None = None
    tensor_active: float | None = None
    dram_active: float | None = None
    pcie_tx_mib_s: float | None = None
    pcie_rx_mib_s: float | None = None
    processes: int | None = None
    foreign_pids: tuple[int, ...] | None = None
    """Both asked once a second at most."""


class GpuColumns(_Columns):
    """One whole board: what its slices share."""

    power_w: float | None = None
    energy_j: float | None = None
    """Both asked every 1.4 s at least; of several boards one at a time."""
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    utilisation_percent: int | None = None
    memory_used_mib: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    throttled_s: dict[str, float] | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    pcie_tx_mib_s: float | None = None
    pcie_rx_mib_s: float | None = None
    """These five asked once in 5 s at most."""


class Line(_Columns):
    """One sample; a part that had no turn is empty."""

    at_s: float
    host: HostColumns | None = None
    workers: dict[str, WorkerColumns] = {}
    slices: dict[str, SliceColumns] = {}
    gpus: dict[str, GpuColumns] = {}
    idle_cores_busy_s: dict[str, float | None] = {}


class GpuState(_Columns):
    """A GPU before or after the run."""

    name: str
    sm_clock_max_mhz: int | None
    memory_clock_max_mhz: int | None
    sm_clock_asked_mhz: int | None
    """The application clock, where one can be set."""
    power_limit_w: float | None
    ecc_enabled: bool | None
    ecc_corrected: int | None
    ecc_uncorrected: int | None
    processes: tuple[int, ...] | None
    """Pids; None where the driver does not tell this user."""


class Telemetry(_Columns):
    """``telemetry.json``."""

    schema_version: int = 1
    rate_hz: float
    sources: dict[str, str]
    """Part → where its figures come from."""
    unavailable: dict[str, str] = {}
    """``slices.gpu0:gi7:ci0.sm_active`` → why it is None, or why the part is not there."""
    before: dict[str, GpuState] = {}
    after: dict[str, GpuState] = {}
    """By GPU UUID; empty as long as the run lasts."""
    lines: int = 0
    late_lines: int = 0
    cpu_s: float = 0.0
