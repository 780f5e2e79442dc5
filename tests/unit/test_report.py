"""What a person sees, against files that were looked at: rerun with UPDATE_GOLDEN=1 after a wanted change."""

import io
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from scheduler import lifecycle
from scheduler.clock import Clock
from scheduler.events import Action, Event
from scheduler.record import RunFolder
from scheduler.report import text
from scheduler.report.live import LiveView
from scheduler.report.tune import trials_table
from scheduler.slices import GpuSlice, MigSlice
from scheduler.verdict import Evidence, judge
from tests.process.runs import planned
from tests.unit.test_tuning import trial
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


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)


def test_on_80_columns_words_are_folded_and_every_figure_is_whole():
    result = judge(MANIFEST, STORY, with_work(longest_idle_s=0.2))
    wide = {
        **{"slice": "gpu0:gi3:ci0", "workload": "vision_transformer:train", "size": "full"},
        **{"precision": "fp16", "batch_size": 2048, "samples_per_s_in_main_window": 1_375_200.0},
        **{"samples_in_main_window": 13_752_000, "longest_gap_s": 12.345, "longest_idle_s": 23.456},
    }
    background = [result.background[0].model_copy(update=wide | {"ended": "not started"})]
    latency_ms = result.main.latency_ms.model_copy(update={"p99": 1_234_567.0})
    main = result.main.model_copy(update=wide | {"latency_ms": latency_ms})
    on = terminal()
    text.show_result(result.model_copy(update={"main": main, "background": background}), on)
    lines = shown(on).splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in shown(on)
    figures = "1,375,200 13,752,000 12,345 23,456 ≤2048 1,234,567 9931.4 0.200 10.000"
    for figure in figures.split():
        assert re.search(rf"(?<!\S){figure}(?![\d.])", shown(on)), figure

    [at] = [number for number, line in enumerate(lines) if "warning" in line]
    assert lines[at + 1].startswith(" " * 10)


def test_trials_on_80_columns():
    one = trial(1_375_200.0, valid=False, of="hetero", cut=True)
    on = terminal()
    on.print(trials_table([one.model_copy(update={"completed": 1_375_111.0, "window_s": 1234.5})]))
    assert max(map(len, shown(on).splitlines())) <= 80
    assert re.search(r" 1,375,200 +INVALID, +1,375,111 +12 +1234\.5\n +company +cut\n", shown(on))


def test_a_plan_on_80_columns_names_all_of_each_benchmark():
    _spec, plan = planned(main="null", background="fixed")
    long = replace(plan.main, name="background-1-vision_transformer:train-and-more")
    on = terminal(60)
    text.show_plan(replace(plan, main=long), on)
    assert "…" not in shown(on)
    column = "".join(line.split(" ")[0] for line in shown(on).splitlines()[2:])
    assert column.startswith(long.name)


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
