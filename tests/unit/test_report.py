"""What a person sees, against files that were looked at: rerun with UPDATE_GOLDEN=1 after a wanted change."""

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from scheduler import lifecycle
from scheduler.clock import Clock
from scheduler.events import Action, Event
from scheduler.record import RunFolder
from scheduler.report import text
from scheduler.report.live import LiveView
from scheduler.slices import GpuSlice, MigSlice
from scheduler.verdict import Evidence, judge
from tests.process.runs import planned
from tests.unit.test_verdict import MANIFEST, STORY, with_log, with_work

GOLDEN = Path(__file__).parent.parent / "golden"


def console() -> Console:
    return Console(file=io.StringIO(), width=120, color_system=None, force_terminal=False)


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return "\n".join(line.rstrip() for line in on.file.getvalue().splitlines()) + "\n"


def holds(name: str, seen: str) -> None:
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(seen)

    assert seen == path.read_text()


@pytest.mark.parametrize(
    ("name", "evidence"),
    [
        ("report_valid.txt", with_work(longest_idle_s=0.2)),
        ("report_invalid.txt", with_log(valid=False, invalid_reasons=("the minimum duration was not met",))),
    ],
)
def test_a_result(name: str, evidence: dict[str, Evidence]):
    on = console()
    text.show_result(judge(MANIFEST, STORY, evidence), on)
    holds(name, shown(on))


def test_the_run_in_plain_lines(tmp_path: Path):
    _spec, plan = planned(main="null", background="fixed")
    names = {"back": plan.background[0].name, "main": plan.main.name}
    run = lifecycle.Run(background=[names["back"]], mains=[names["main"]], windows=plan.windows)
    on = console()
    told: list[Event | Action] = [what for _at, what in STORY if isinstance(what, Event)]
    run.begin(0.0)
    view = LiveView(plan, RunFolder(tmp_path), Clock.start(), on, plain=True)
    with view:
        for what in told:
            named = what if not hasattr(what, "name") else type(what)(names[what.name], *_rest(what))
            run.handle(named)
            view(named, run)

    lines = [line.split("] ", 1)[1] for line in shown(on).splitlines()]
    assert f"{names['back']} issues" in lines
    assert f"{names['main']} finished" in lines
    assert lines[-1] == "over"


def _rest(what: Event | Action) -> list[object]:
    return [getattr(what, field) for field in list(type(what).__dataclass_fields__)[1:]]


def test_slices_of_every_kind():
    gpu = GpuSlice(
        id="gpu0", name="NVIDIA H200", uuid="GPU-1", gpu_index=0, sms=132, memory_mib=143771, cores=(0, 1)
    )
    mig = MigSlice(
        id="gpu1:gi7:ci0",
        name="1g.18gb",
        uuid="MIG-2",
        gpu_uuid="GPU-2",
        gpu_index=1,
        gpu_name="NVIDIA H200",
        gpu_instance_id=7,
        compute_instance_id=0,
        gi_profile_id=19,
        placement_start=0,
        placement_size=1,
        sms=16,
        memory_mib=16384,
        cores=(2,),
        numa_node=0,
        shared_with=("gpu1:gi7:ci1",),
    )
    on = console()
    text.show_slices([gpu, mig], on)
    holds("slices.txt", shown(on))
