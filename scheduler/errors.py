"""Every error the program raises on purpose.

HeteroMigError
├── Stopped                       by a signal that no run heard (exit 130, 143)
├── SeriesCutShort                one run of several was stopped or could not run (exit as that run)
├── SpecError                     the user's: asked wrongly, nothing was started (exit 2)
├── SliceError                    the machine offers no such slice
│   └── NoUsableSlice             MIG enabled without instance, one GPU without MIG, …
├── GpuError                      the driver refused; one class for each reason NVML gives
│   ├── NvmlMissing               libnvidia-ml.so.1 is not there
│   ├── DriverNotLoaded           the library is there, the kernel module is not
│   ├── DriverMismatch            library and kernel module differ in version
│   ├── NoPermission
│   ├── NotSupported              this GPU, or this driver, cannot do it
│   ├── InsufficientResources
│   ├── InstanceInUse
│   ├── NotFound
│   ├── InvalidRequest            NVML rejected the arguments: a bug here, or a driver of another kind
│   ├── GpuLost
│   └── NvmlFailure               anything else NVML answers, with its own words
├── LayoutError                   MIG's instances or mode are not what was asked
│   ├── DevicesInUse              something runs on what would have to go; nothing was changed
│   ├── ModePending               the mode waits for a reset of the GPU or a reboot
│   ├── NotAsAsked                the driver did a step, and something else is there
│   ├── LayoutUnchanged           a step failed, and what was there before is there again
│   ├── LayoutBetween             a step failed, and what was there before could not be put back
│   ├── LayoutsLocked             another hetero-mig is changing layouts
│   └── LayoutLeft                a run that died has left its layout
├── WorkerError
│   ├── DidNotStart
│   ├── Died
│   └── WouldNotStop
├── LogError                      LoadGen's detail log
│   ├── NoLog
│   └── CutOff                    the test ended before LoadGen wrote its result
└── RecordError                   the run folder
    ├── FolderTaken               it exists and holds another run
    ├── FolderBusy                another process writes it
    ├── DiskFull
    └── FolderDamaged             a file that judging needs is missing or unreadable
        └── NoRun                 the folder is not one of a run at all (exit 2)
"""

import signal
from collections.abc import Sequence
from pathlib import Path


class HeteroMigError(Exception):
    """An expected failure, told in three facts: what was asked, what was found, what to do."""

    exit_code = 3

    def __init__(self, *, asked: str, found: str, do: str) -> None:
        super().__init__(asked, found, do)
        self.asked = asked
        self.found = found
        self.do = do

    def __str__(self) -> str:
        return f"asked: {self.asked}\nfound: {self.found}\ndo:    {self.do}"


class Stopped(HeteroMigError):
    """A stop signal arrived when no run heard it any more, or yet; what was in force is undone on the way out."""

    def __init__(self, number: int) -> None:
        name = signal.Signals(number).name
        super().__init__(
            asked="to go on", found=f"stopped by {name}", do="nothing: what was in force has been undone"
        )
        self.exit_code = 128 + number


class SeriesCutShort(HeteroMigError):
    """One run of a series was stopped or could not run; what was finished before it is kept."""

    def __init__(
        self, code: int, key: str, breaches: Sequence[str], folder: Path, advice: Sequence[str] = ()
    ) -> None:
        first = "; ".join(one for one in dict.fromkeys(advice) if one)
        again = f"{first}; the same command goes" if first else "give the same command again: it goes"
        super().__init__(
            asked=f"run {key} of a series",
            found="; ".join(breaches) or "it did not come to a verdict",
            do=f"{again} on from here; what is done is kept in {folder}",
        )
        self.exit_code = code


class SpecError(HeteroMigError):
    """What the user asked cannot be done as asked; nothing was started."""

    exit_code = 2


class SliceError(HeteroMigError):
    """The machine does not offer the slices asked for."""


class NoUsableSlice(SliceError):
    """There is a GPU, but nothing on it that a workload can be pinned to as asked."""


class GpuError(HeteroMigError):
    """The NVIDIA driver refused or failed."""


class NvmlMissing(GpuError):
    """The NVIDIA management library (libnvidia-ml.so.1) is not on this machine."""


class DriverNotLoaded(GpuError):
    """The NVIDIA library is present, but its kernel driver is not loaded."""


class DriverMismatch(GpuError):
    """The NVIDIA library and the loaded kernel driver are of different versions."""


class NoPermission(GpuError):
    """The driver refused this user."""


class NotSupported(GpuError):
    """This GPU or this driver version does not know the operation."""


class InsufficientResources(GpuError):
    """The GPU has no room left at the placement asked for."""


class InstanceInUse(GpuError):
    """A process still uses the instance."""


class NotFound(GpuError):
    """The driver knows no such device or instance."""


class InvalidRequest(GpuError):
    """The driver rejected an argument."""


class GpuLost(GpuError):
    """The GPU fell off the bus or must be reset."""


class NvmlFailure(GpuError):
    """NVML answered with an error that has no class of its own."""


class LayoutError(HeteroMigError):
    """MIG's instances or mode are not what was asked."""


class DevicesInUse(LayoutError):
    """Something runs on what would have to be destroyed; nothing was changed."""


class ModePending(LayoutError):
    """The MIG mode takes effect after a reset of the GPU or a reboot."""


class NotAsAsked(LayoutError):
    """A step went through, but reading back shows something else."""


class LayoutUnchanged(LayoutError):
    """A step failed; what was there before is there again."""


class LayoutBetween(LayoutError):
    """A step failed, and what was there before could not be put back."""


class LayoutsLocked(LayoutError):
    """Another hetero-mig is changing layouts on this machine."""


class LayoutLeft(LayoutError):
    """A run that died has left its layout; what was there before it is still to be restored."""


class WorkerError(HeteroMigError):
    """A benchmark's process did not do its part."""


class DidNotStart(WorkerError):
    """The process could not be started, or ended before its first query."""


class Died(WorkerError):
    """The process ended unasked."""


class WouldNotStop(WorkerError):
    """The process outlived SIGKILL by more than the kernel should allow."""


class LogError(HeteroMigError):
    """LoadGen's detail log does not say what is needed."""


class NoLog(LogError):
    """There is no detail log: LoadGen never ran."""


class CutOff(LogError):
    """The log ends before LoadGen's verdict: the test was stopped or died."""


class RecordError(HeteroMigError):
    """The run folder cannot be written or read."""


class FolderTaken(RecordError):
    """The output folder already holds something."""

    exit_code = 2


class FolderBusy(RecordError):
    """Another process writes this folder."""


class DiskFull(RecordError):
    """No space is left for the record."""


class FolderDamaged(RecordError):
    """A file that judging needs is missing or unreadable."""


class NoRun(FolderDamaged):
    """The folder named is not one of a run, or of what else was asked for."""

    exit_code = 2
