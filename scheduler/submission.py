"""Runs into the folder tree that an MLPerf round's submission checker wants, or every reason why not.

What is asked of runs is here, what is asked of the tree in submission_rules.py; the tree is held against those
rules before it is given its name.
"""

import errno
import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from scheduler import judging, submission_layout, submission_rules
from scheduler import submission_text as text
from scheduler.audit_rules import ACCURACY, PERFORMANCE
from scheduler.errors import FolderDamaged, FolderTaken, SpecError
from scheduler.record import RunFolder, disk_errors, is_series
from scheduler.result import Manifest, Result
from scheduler.spec import LoadgenRound, RoundName, SystemType, loadgen_round
from scheduler.submission_layout import (
    ACCURACY_TEXT,
    DETAIL,
    MOST_ACCURACY_LOG_BYTES,
    REHEARSAL,
    SUMMARY,
    TOLD_FIELDS,
    VIEWABLE_BYTES,
    Division,
    Place,
    Target,
)
from workloads.catalog import has_random_weights
from workloads.protocol import Scenario

ACCURACY_LOG = submission_layout.ACCURACY
QUANTIZED = ("int8", "fp8")
NOT_TOLD = "not told"
"""In a rehearsal, of what this program does not read of a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A submission as asked for."""

    round: RoundName
    folders: tuple[Path, ...]
    """Of runs and of audits."""
    submitter: str
    system: str
    system_type: SystemType | None
    """None: datacenter where the round has the benchmark there."""
    division: Division
    system_fields: Mapping[str, object]
    """Of the system's description, in place of what is read of the machine."""
    rehearsal: bool
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One run."""

    folder: RunFolder
    manifest: Manifest
    result: Result

    @property
    def told(self) -> tuple[Manifest, Result]:
        return self.manifest, self.result

    @property
    def logs(self) -> Path:
        return self.folder.path / self.manifest.main.name / "loadgen"


@dataclass(slots=True, kw_only=True)
class Benchmark:
    """What there is of one workload under one scenario."""

    workload: str
    scenario: Scenario
    performance: list[Made] = field(default_factory=list)
    accuracy: list[Made] = field(default_factory=list)
    audits: dict[str, tuple[Path, dict[str, Any]]] = field(default_factory=dict)
    """Folder and answer, by test."""

    @property
    def target(self) -> Target:
        """The accuracy target that its accuracy run was held against."""
        terms = self.accuracy[0].manifest.accuracy if self.accuracy else None
        return "99.9" if terms is not None and terms.target == 0.999 else "99"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something is not submittable."""

    why: str
    by_what_it_is: bool = False
    """Of the model or its weights: no matter in a rehearsal."""


def export(asked: Asked) -> list[str]:
    """Write the tree; what a reader of it must know.

    Raises:
        SpecError: it is not submittable, with every reason; nothing was written.
        FolderTaken: the output holds something.
        FolderDamaged: a folder is of no run, or cannot be read.
    """
    round_ = loadgen_round(asked.round)
    benchmarks = gathered(asked.folders)
    refused = [one for each in benchmarks for one in refusals(each, round_, asked.division)]
    _refuse(asked, [one.why for one in refused if not (asked.rehearsal and one.by_what_it_is)])
    if asked.output.exists() and (not asked.output.is_dir() or any(asked.output.iterdir())):
        raise _taken(asked.output)

    with disk_errors(asked.output), _draft_of(asked.output) as draft:
        for each in benchmarks:
            _write_benchmark(draft, asked, round_, each)

        _write_system(draft, asked, round_, benchmarks)
        if asked.rehearsal:
            _write(draft / REHEARSAL, text.rehearsal_text(asked.round, [one.why for one in refused]))

        _refuse(asked, submission_rules.problems(files_of(draft), round_, rehearsal=asked.rehearsal))
        name_it(draft, asked.output)

    return list(dict.fromkeys(one.why for one in refused))


@contextmanager
def _draft_of(output: Path) -> Iterator[Path]:
    """A folder of this export's own beside ``output``, new; gone at the end, unless it was given its name."""
    draft = output.parent / f".{output.name}.{uuid4().hex}.draft"
    draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def name_it(draft: Path, output: Path) -> None:
    """Give a whole tree its name, at once; an empty folder of that name gives way.

    Raises:
        FolderTaken: something is there, perhaps another export's tree that was written meanwhile.
    """
    try:
        draft.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _taken(output) from None

        raise


def _taken(output: Path) -> FolderTaken:
    return FolderTaken(
        asked=f"a submission tree in {output}",
        found="that folder holds something already" if output.is_dir() else "that is no folder",
        do="name another --output, or move it away",
    )


def _refuse(asked: Asked, reasons: Sequence[str]) -> None:
    if reasons:
        told = list(dict.fromkeys(reasons))
        raise SpecError(
            asked=f"export --mlperf {asked.round}, {asked.division} division, of {', '.join(map(str, asked.folders))}",
            found=f"{len(told)} things stand against it:\n" + "\n".join(f"  - {reason}" for reason in told),
            do="mend each as it says; a small model and random weights are taken by --rehearsal, whose tree is marked",
        )


def files_of(tree: Path) -> dict[str, str]:
    """The text of every file of a tree, by its path below it."""
    return {
        str(path.relative_to(tree)): path.read_text(encoding="utf-8", errors="replace")
        for path in sorted(tree.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------------- what there is


def gathered(folders: Sequence[Path]) -> list[Benchmark]:
    """The runs in these folders by workload and scenario; an audit's own where no run of that kind is among them.

    Raises:
        FolderDamaged: one is the folder of neither, or was cut short.
    """
    found: dict[tuple[str, Scenario], Benchmark] = {}

    def of(made: Made) -> Benchmark:
        key = (made.manifest.main.workload, made.manifest.main.scenario)
        return found.setdefault(key, Benchmark(workload=key[0], scenario=key[1]))

    named: list[Made] = []
    audits: list[tuple[Path, dict[str, Any]]] = []
    for path in folders:
        folder = RunFolder(path)
        if is_series(path):
            audits.append((path, _answer(folder)))
        else:
            named.append(_made(folder))

    for one in named:
        _add(of(one), one)

    said = {_kind(one) for one in named}
    for path, answer in audits:
        made = {key: _made(RunFolder(path / where)) for key, where in answer["runs"].items()}
        benchmark = of(made[PERFORMANCE])
        benchmark.audits[answer["test"]] = path, answer
        for key in (PERFORMANCE, ACCURACY):
            if key in made and _kind(made[key]) not in said:
                _add(benchmark, made[key])

    return list(found.values())


def _answer(folder: RunFolder) -> dict[str, Any]:
    answer = folder.result()
    if answer.get("kind") == "audit":
        missing = [key for key in ("test", "verdict", "round", "runs") if key not in answer]
        missing += [] if (folder.path / "mlperf" / "compliance").is_dir() else ["mlperf/compliance"]
        if missing:
            raise FolderDamaged(
                asked=f"the audit in {folder.path}",
                found=f"it lacks {', '.join(missing)}",
                do="name the folder of an audit, as it was left",
            )
    else:
        raise FolderDamaged(
            asked=f"{folder.path} as part of a submission",
            found=f"it holds the answer to another question ({answer.get('kind')})",
            do="name folders of runs and of audits",
        )

    return answer


def _made(folder: RunFolder) -> Made:
    return Made(folder=folder, manifest=judging.read_manifest(folder), result=judging.judge(folder))


def _kind(made: Made) -> tuple[str, Scenario, bool]:
    """What a submission has one of."""
    return made.manifest.main.workload, made.manifest.main.scenario, made.manifest.accuracy is not None


def _add(benchmark: Benchmark, made: Made) -> None:
    runs = benchmark.accuracy if made.manifest.accuracy is not None else benchmark.performance
    if made.folder.path.resolve() not in [one.folder.path.resolve() for one in runs]:
        runs.append(made)


# ---------------------------------------------------------------------- what stands against it


def refusals(benchmark: Benchmark, round_: LoadgenRound, division: Division) -> Iterator[Refusal]:
    """Why these runs are not submittable, as far as a tree would not show it."""
    name = f"{benchmark.workload} {benchmark.scenario}"
    if benchmark.workload not in round_.workloads:
        yield Refusal(f"{name}: a model of your own, which is no benchmark of any round")
        return

    if benchmark.target not in round_.of(benchmark.workload).submitted_as:
        yield Refusal(f"{name}: round {round_.round} has no such benchmark at {benchmark.target} %")

    for runs, what in ((benchmark.performance, PERFORMANCE), (benchmark.accuracy, ACCURACY)):
        if not runs:
            yield Refusal(f"{name}: no {what} run was named")
        elif len(runs) > 1:
            folders = ", ".join(str(one.folder.path) for one in runs)
            yield Refusal(
                f"{name}: more than one {what} run: {folders}; one is submitted: name it, and audits that were "
                f"held against it (`hetero-mig audit … --{what}-run FOLDER`)"
            )

        for one in runs:
            yield from _of_run(f"{name}, {what} run", one, round_)

    if benchmark.performance and benchmark.accuracy:
        yield from _of_both(name, benchmark.performance[0], benchmark.accuracy[0])

    yield from _of_other_runs(name, benchmark, round_)
    if division == "closed":
        yield from _of_audits(name, benchmark, round_)


def _of_run(name: str, made: Made, round_: LoadgenRound) -> Iterator[Refusal]:
    manifest, result = made.manifest, made.result
    asked = manifest.spec.get("round", "v2.0")
    if asked != round_.round:
        yield Refusal(f"{name}: it was made with the seeds and counts of round {asked}")

    if manifest.spec.get("seed"):
        yield Refusal(f"{name}: its seeds were moved by --seed {manifest.spec['seed']}")

    if manifest.preset != "mlperf":
        yield Refusal(f"{name}: preset {manifest.preset}, not mlperf: too short, and of too few samples")

    if manifest.background and not round_.hetero_mig:
        beside = ", ".join(one.workload for one in manifest.background)
        yield Refusal(
            f"{name}: made beside {beside}, and round {round_.round} has no HeteroMIG (v1.0 to v2.0 had)"
        )

    for finding in result.findings:
        if finding.severity == "breach":
            of_model = finding.code == "accuracy-below-target"
            yield Refusal(f"{name}: INVALID: {finding.message}", of_model)

    if manifest.main.precision in QUANTIZED:
        yield Refusal(
            f"{name}: {manifest.main.precision} needs its calibration described, which is not made here"
        )

    if manifest.main.size == "small":
        yield Refusal(f"{name}: the small model", by_what_it_is=True)

    if has_random_weights(manifest.main.workload, manifest.main.weights):
        yield Refusal(f"{name}: random weights", by_what_it_is=True)

    told = result.main.accuracy
    if told is not None and told.kind == "fidelity":
        yield Refusal(f"{name}: judged by fidelity, not by accuracy: {told.why_fidelity}", by_what_it_is=True)


def _of_both(name: str, performance: Made, accuracy: Made) -> Iterator[Refusal]:
    for what in ("size", "precision", "weights", "data", "slice"):
        one, other = getattr(performance.manifest.main, what), getattr(accuracy.manifest.main, what)
        if one != other:
            yield Refusal(
                f"{name}: the performance run had {what} {one or 'none'}, the accuracy run {other or 'none'}"
            )


def _of_audits(name: str, benchmark: Benchmark, round_: LoadgenRound) -> Iterator[Refusal]:
    for test in round_.of(benchmark.workload).audits:
        if test not in benchmark.audits:
            again = _again(test, benchmark, round_)
            yield Refusal(f"{name}: no {test} was named; make it with the options of that run: `{again}`")
            continue

        path, answer = benchmark.audits[test]
        if answer["verdict"] != "PASS":
            yield Refusal(f"{name}: {test} in {path} is a FAIL")

        if answer["round"] != round_.round:
            yield Refusal(f"{name}: {test} in {path} is of round {answer['round']}")


def _of_other_runs(name: str, benchmark: Benchmark, round_: LoadgenRound) -> Iterator[Refusal]:
    """MLPerf verifies each audit against the runs that are submitted."""
    for test, (path, answer) in benchmark.audits.items():
        for key, runs in ((PERFORMANCE, benchmark.performance), (ACCURACY, benchmark.accuracy)):
            against = (path / answer["runs"].get(key, "")).resolve()
            if key in answer["runs"] and runs and against != runs[0].folder.path.resolve():
                yield Refusal(
                    f"{name}: {test} in {path} was held against another {key} run, {against}; make it against the one "
                    f"that is submitted: `{_again(test, benchmark, round_)}`, with the other options of that run"
                )


def _again(test: str, benchmark: Benchmark, round_: LoadgenRound) -> str:
    """The command that holds a test against the runs that are submitted."""
    words = ["hetero-mig", "audit", test, "--main", benchmark.workload, "--main-scenario", benchmark.scenario]
    words += ["--round", round_.round]
    for one in (*benchmark.performance[:1], *(benchmark.accuracy[:1] if test == "TEST01" else ())):
        kind = PERFORMANCE if one.manifest.accuracy is None else ACCURACY
        words += [f"--{kind}-run", str(one.folder.path)]

    return shlex.join(words)


# ---------------------------------------------------------------------- the tree


def _place(asked: Asked, round_: LoadgenRound, benchmark: Benchmark) -> Place:
    return Place(
        round=asked.round,
        division=asked.division,
        submitter=asked.submitter,
        system=asked.system,
        model=round_.of(benchmark.workload).submitted_as[benchmark.target],
        scenario=benchmark.scenario,
    )


def _write_benchmark(root: Path, asked: Asked, round_: LoadgenRound, benchmark: Benchmark) -> None:
    place = _place(asked, round_, benchmark)
    performance, accuracy = benchmark.performance[0], benchmark.accuracy[0]
    _copy(performance.logs, root / place.results / "performance" / "run_1", (SUMMARY, DETAIL))
    answers = root / place.results / "accuracy"
    _copy(accuracy.logs, answers, (SUMMARY, DETAIL))
    told = accuracy.result.main.accuracy
    digest = _truncated(accuracy.logs / ACCURACY_LOG, answers / ACCURACY_LOG)
    is_accuracy = told is not None and told.kind == "accuracy"
    line = (
        text.accuracy_line(benchmark.workload, told)
        if told is not None and is_accuracy
        else text.fidelity_line(told)
    )
    _write(answers / ACCURACY_TEXT, f"{line}\nhash={digest}\n")
    for path, _answer in benchmark.audits.values():
        for source in sorted((path / "mlperf" / "compliance").iterdir()):
            _copy_test(source, root / place.compliance / source.name)

    effective = performance.folder.effective(performance.manifest.main.name)
    conf = round_.of(benchmark.workload).conf_model
    _write(root / place.measurements / "user.conf", text.user_conf(conf, benchmark.scenario, effective))
    if "mlperf.conf" in submission_layout.measurement_files(asked.round):
        _write(
            root / place.measurements / "mlperf.conf", text.mlperf_conf(conf, benchmark.scenario, effective)
        )

    _write(
        root / place.measurements / "README.md",
        text.readme(place, performance.told, accuracy.told, rehearsal=asked.rehearsal),
    )
    _write(root / place.description, json.dumps(text.description(performance.manifest), indent=2) + "\n")
    _write(root / place.code, text.code_text(place))
    _write(root / place.calibration, text.calibration_text(performance.manifest))


def _copy_test(source: Path, to: Path) -> None:
    """One compliance test's folder; its answers truncated as the accuracy run's."""
    shutil.copytree(source, to)
    answers = source / "accuracy" / ACCURACY_LOG
    if answers.exists():
        digest = _truncated(answers, to / "accuracy" / ACCURACY_LOG)
        _write(to / "accuracy" / ACCURACY_TEXT, f"hash={digest}\n")


def _truncated(source: Path, to: Path) -> str:
    """Copy an accuracy log, cut as truncate_accuracy_log.py cuts it; the digest of the whole."""
    from hashlib import file_digest

    with source.open("rb") as log:
        digest = file_digest(log, "sha256").hexdigest()

    if source.stat().st_size < MOST_ACCURACY_LOG_BYTES:
        shutil.copyfile(source, to)
        return digest

    with source.open("rb") as log:
        start = log.read(VIEWABLE_BYTES)
        log.seek(-VIEWABLE_BYTES, 2)
        to.write_bytes(start + b"\n\n...\n\n" + log.read())

    return digest


# ---------------------------------------------------------------------- the system


def _write_system(root: Path, asked: Asked, round_: LoadgenRound, benchmarks: Sequence[Benchmark]) -> None:
    first = benchmarks[0]
    place = _place(asked, round_, first)
    required = round_.of(first.workload).required
    kind = asked.system_type or ("datacenter" if "datacenter" in required else "edge")
    read = text.system_of(asked.division, asked.submitter, asked.system, first.performance[0].manifest, kind)
    told = read | dict(asked.system_fields)
    if asked.rehearsal:
        accelerated = str(told["accelerators_per_node"]) != "0"
        for name in TOLD_FIELDS:
            if told[name] == "" and (accelerated or "accelerator" not in name):
                told[name] = NOT_TOLD

    _write(root / place.system_description, json.dumps(told, indent=2) + "\n")


# ---------------------------------------------------------------------- files


def _copy(logs: Path, to: Path, names: Sequence[str]) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (logs / name).exists():
            shutil.copyfile(logs / name, to / name)


def _write(path: Path, told: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(told, encoding="utf-8")
