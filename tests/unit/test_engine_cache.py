"""Engines kept between runs: one builder at a time, nothing half-written used, bounded, never in anybody's way."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from workloads import engine_build
from workloads.engine_cache import EngineCache, Lease, NotKept, key_of
from workloads.engine_key import code_digest, facts_of
from workloads.kept_times import Earlier, earlier, keep
from workloads.matmul import Matmul
from workloads.protocol import Scenario, WorkloadError, WorkloadOptions
from workloads.stopwatch import BatchTime

FACTS = {"workload": "bert", "size": "small", "precision": "fp16", "engine": "compile", "sms": 16}
OPTIONS = WorkloadOptions(
    size="small",
    device="cpu",
    precision="fp32",
    batch_size=4,
    seed=1,
    threads=1,
    memory_mib=64,
    engine="compile",
)
BUILDER = f"""
import sys
from pathlib import Path
from workloads.engine_cache import EngineCache
lease = EngineCache(Path(sys.argv[1])).lease({FACTS!r})
if lease.engine is None:
    print("builds", flush=True)
    (lease.folder / "kernel").write_text("half")
    sys.stdin.readline()
    (lease.folder / "kernel").write_text("whole")
    lease.keep(build_s=1.0, batch_sizes=(8,), built_utc="")
else:
    print("uses " + (lease.folder / "kernel").read_text())
"""


def builder(root: Path) -> subprocess.Popen[str]:
    """A process that takes the lease; one that builds does so until it is sent a line."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def kept(cache: EngineCache, name: str, *, size: int = 1000, used_s: float = 0.0) -> str:
    """Keep an entry of so many bytes; its key."""
    with cache.lease({**FACTS, "workload": name}) as lease:
        (lease.folder / "inductor").mkdir()
        (lease.folder / "inductor" / "kernel").write_bytes(bytes(size))
        lease.keep(build_s=1.0, batch_sizes=(1,), built_utc="")
        os.utime(lease.folder / "engine.json", (used_s, used_s))
        return lease.key


def is_warm(cache: EngineCache, name: str) -> bool:
    with cache.lease({**FACTS, "workload": name}) as lease:
        return lease.engine is not None


def test_of_two_processes_one_builds_and_the_other_waits_and_uses_it(tmp_path: Path):
    first = builder(tmp_path)
    assert first.stdout is not None
    assert first.stdout.readline() == "builds\n"
    second = builder(tmp_path)
    assert first.communicate("go on\n", timeout=30)
    assert first.returncode == 0
    assert second.communicate(timeout=30)[0] == "uses whole\n"


def test_what_a_killed_builder_left_is_not_used(tmp_path: Path):
    with builder(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "builds\n"
        process.kill()

    [left] = EngineCache(tmp_path).kept()
    assert left.engine is None
    assert not left.in_use
    with EngineCache(tmp_path).lease(FACTS) as lease:
        assert lease.engine is None
        assert list(lease.folder.iterdir()) == []


def test_what_a_killed_builder_left_is_swept_with_the_next_one(tmp_path: Path):
    with builder(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "builds\n"
        assert EngineCache(tmp_path).evict() == []  # it is at work
        process.kill()

    assert EngineCache(tmp_path).evict() == [key_of(FACTS)]
    assert EngineCache(tmp_path).kept() == []


def test_who_waits_too_long_builds_without_the_cache(tmp_path: Path):
    with (
        EngineCache(tmp_path).lease(FACTS),
        pytest.raises(NotKept, match="has been building bert-small-fp16"),
    ):
        EngineCache(tmp_path).lease(FACTS, patience_s=0.0)


def test_several_use_an_engine_at_once(tmp_path: Path):
    cache = EngineCache(tmp_path)
    kept(cache, "bert")
    with cache.lease(FACTS) as one, cache.lease(FACTS, patience_s=0.0) as other:
        assert one.engine == other.engine is not None


@pytest.mark.parametrize(
    "damage", ["changed", "cut off", "gone", "record", "kinds", "facts", "record's fields"]
)
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str):
    cache = EngineCache(tmp_path)
    folder = tmp_path / kept(cache, "bert")
    kernel, record = folder / "inductor" / "kernel", folder / "engine.json"
    match damage:
        case "changed":
            kernel.write_bytes(b"x" * 1000)
        case "cut off":
            kernel.write_bytes(bytes(999))
        case "gone":
            kernel.unlink()
        case "record":
            record.write_text(record.read_text()[:-20])
        case "kinds":
            record.write_text(json.dumps({**json.loads(record.read_text()), "files": None}))
        case "facts":
            record.write_text(json.dumps({**json.loads(record.read_text()), "facts": {}}))
        case _:
            record.write_text("{}")

    with cache.lease({**FACTS, "workload": "bert"}) as lease:
        assert lease.engine is None
        assert not kernel.exists()
        lease.keep(build_s=1.0, batch_sizes=(1,), built_utc="")

    assert is_warm(cache, "bert")


def test_a_damaged_entry_in_use_is_not_waited_for(tmp_path: Path):
    cache = EngineCache(tmp_path)
    key = kept(cache, "bert")
    with cache.lease({**FACTS, "workload": "bert"}):
        (tmp_path / key / "inductor" / "kernel").write_text("changed")
        with pytest.raises(NotKept, match="is damaged, and in use"):
            cache.lease({**FACTS, "workload": "bert"}, patience_s=0.2)


def test_what_a_run_adds_is_not_held_against_the_entry(tmp_path: Path):
    cache = EngineCache(tmp_path)
    kept(cache, "bert")
    with cache.lease({**FACTS, "workload": "bert"}) as lease:
        (lease.folder / "inductor" / "another").write_text("of batch size 2")
        lease.add((2,))

    [entry] = cache.kept()
    assert entry.engine is not None
    assert entry.engine.batch_sizes == (1, 2)
    assert is_warm(cache, "bert")


def test_over_the_limit_the_longest_unused_go_but_never_what_is_in_use(tmp_path: Path):
    cache = EngineCache(tmp_path)
    for used_s, name in enumerate(("in-use", "old", "newer", "newest"), start=1):
        kept(cache, name, size=100_000, used_s=used_s)

    with cache.lease({**FACTS, "workload": "in-use"}) as held:
        os.utime(held.folder / "engine.json", (0, 0))
        cache.limit(250_000)
        assert [one.engine.facts["workload"] for one in cache.kept() if one.engine] == ["newest", "in-use"]
        assert not cache.remove(held.key)

    assert cache.max_bytes == 250_000
    assert is_warm(cache, "newest")
    assert not is_warm(cache, "old")


@pytest.mark.parametrize(
    ("name", "other"), [("sms", 18), ("precision", "bf16"), ("code", "b"), ("torch", "3"), ("batch_size", 9)]
)
def test_a_key_is_of_all_its_facts(name: str, other: str | int):
    facts = {**FACTS, "code": "a", "torch": "2", "batch_size": 8}
    assert key_of({**facts, name: other}) != key_of(facts)


def test_the_code_is_the_workloads_file_and_all_that_it_imports(tmp_path: Path):
    mine = tmp_path / "mine.py"
    mine.write_text("class Mine: pass\n")
    before = code_digest(f"file:{mine}:Mine")
    mine.write_text("class Mine: x = 1\n")
    assert code_digest(f"file:{mine}:Mine") != before
    assert (
        len({code_digest(code) for code in ("workloads.bert:Bert", "workloads.resnet50:Resnet50", before)})
        == 3
    )
    assert code_digest("workloads.bert:Bert") == code_digest("workloads.bert:Bert")


def test_on_a_cpu_the_key_tells_processor_and_threads():
    facts = facts_of("matmul", "workloads.matmul:Matmul", "512³", OPTIONS)
    others = facts_of("matmul", "workloads.matmul:Matmul", "512³", replace(OPTIONS, threads=2))
    assert facts["device"] == others["device"]
    assert key_of(facts) != key_of(others)


# ---------------------------------------------------------------------- what its runs found

WAY = "Offline, 8 at once"
TIMES = (BatchTime(1, 10, 11, 3, 9, 12), BatchTime(8, 20, 21, 3, 19, 22))


def test_what_runs_found_is_kept_with_the_engine_by_way_of_timing(tmp_path: Path):
    cache = EngineCache(tmp_path)
    kept(cache, "bert")
    with cache.lease(FACTS) as one, cache.lease(FACTS) as other:
        assert earlier(one, WAY) is None
        keep(one, WAY, TIMES, 77.5)
        keep(other, "SingleStream, 1 at once", TIMES[:1], None, "2026-11-01T00:00:00Z")
        other.add((8,))

    with cache.lease(FACTS) as later:
        found, single = earlier(later, WAY), earlier(later, "SingleStream, 1 at once")
        assert found is not None
        assert (found.batch_times, found.target_qps) == (TIMES, 77.5)
        assert single == Earlier(measured_utc="2026-11-01T00:00:00Z", batch_times=TIMES[:1], target_qps=None)
        assert later.engine is not None
        assert later.engine.batch_sizes == (1, 8)


@pytest.mark.parametrize(
    "left",
    [
        None,
        [],
        {"measured_utc": "", "batch_times": [], "target_qps": 1.0},
        {"measured_utc": "", "batch_times": [{"batch_size": 8}], "target_qps": 1.0},
        {"measured_utc": "", "batch_times": [asdict(replace(TIMES[0], mean_ns=0))], "target_qps": 1.0},
        {"measured_utc": "", "batch_times": [asdict(TIMES[0])], "target_qps": float("nan")},
    ],
)
def test_what_cannot_be_used_is_as_nothing(tmp_path: Path, left: object):
    cache = EngineCache(tmp_path)
    record = tmp_path / kept(cache, "bert") / "engine.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"calibrations": {WAY: left}}))
    with cache.lease(FACTS) as lease:
        assert lease.engine is not None
        assert earlier(lease, WAY) is None


def test_an_engine_of_before_has_none(tmp_path: Path):
    cache = EngineCache(tmp_path)
    record = tmp_path / kept(cache, "bert") / "engine.json"
    former = json.loads(record.read_text())
    del former["calibrations"]
    record.write_text(json.dumps(former))
    with cache.lease(FACTS) as lease:
        assert lease.engine is not None
        assert earlier(lease, WAY) is None


# ---------------------------------------------------------------------- a workload by way of it


class Compiling(Matmul):
    """Leaves a file where torch would."""

    def load(self) -> None:
        super().load()
        folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        folder.mkdir(exist_ok=True)
        (folder / "kernel").write_text("compiled")


def loaded(cache: EngineCache, kind: type[Matmul], *sizes: int) -> engine_build.Prepared:
    """The workload made ready by way of the cache, its lease given back."""
    prepared = engine_build.load(
        kind("matmul", OPTIONS), "matmul", "workloads.matmul:Matmul", "512³", OPTIONS, sizes, cache
    )
    if isinstance(prepared.lease, Lease):
        prepared.lease.close()

    return prepared


@pytest.fixture(autouse=True)
def _variables_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in engine_build.VARIABLES:
        monkeypatch.setenv(name, str(tmp_path / "torch"))


def test_the_first_run_builds_and_the_second_is_warm(tmp_path: Path):
    cache = EngineCache(tmp_path)
    first, second = loaded(cache, Compiling, 4), loaded(cache, Compiling, 4)
    assert (first.how, second.how) == ("built", "warm")
    assert "kept for the next run" in first.note
    assert "was warm (built 20" in second.note
    assert loaded(cache, Compiling, 2, 4).how == "built"
    assert loaded(cache, Compiling, 2).how == "warm"


def test_where_no_batch_is_to_be_computed_no_samples_are_asked_for(tmp_path: Path):
    class OfSome(Compiling):
        def load_samples(self, indices: Sequence[int]) -> None:
            assert len(indices) > 0
            super().load_samples(indices)

    assert loaded(EngineCache(tmp_path), OfSome).batch_sizes == ()  # a run on a GPU asks so, and training


def test_a_cache_that_cannot_be_written_to_is_no_error(tmp_path: Path):
    (tmp_path / "file").touch()
    prepared = loaded(EngineCache(tmp_path / "file" / "engines"), Matmul, 4)
    assert (prepared.how, prepared.lease) == ("not kept", None)
    assert "not kept:" in prepared.note
    assert "cannot be written to (Not a directory)" in prepared.note


def test_what_is_kept_is_its_users_alone_whatever_the_umask(tmp_path: Path):
    former = os.umask(0)
    try:
        loaded(EngineCache(tmp_path / "cache" / "engines"), Matmul, 4)
    finally:
        os.umask(former)

    root = tmp_path / "cache" / "engines"
    made = [root.parent, root, *(path for path in root.iterdir() if path.is_dir())]
    assert len(made) == 4  # the locks, and the entry
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}


def test_a_disk_that_is_full_once_it_is_built_is_no_error(tmp_path: Path):
    class Filling(Compiling):
        def load(self) -> None:
            super().load()  # a folder in the draft's place: writing it fails as on a full disk
            Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).with_name(f".engine.json.{os.getpid()}").mkdir()

    cache = EngineCache(tmp_path)
    prepared = loaded(cache, Filling, 4)
    assert (prepared.how, prepared.lease) == ("not kept", None)
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert loaded(cache, Compiling, 4).how == "built"
    assert loaded(cache, Compiling, 4).how == "warm"
    more = loaded(cache, Filling, 2, 4)
    assert more.how == "built"
    assert "but for batches of 2; ready" in more.note
    assert "not written down" in more.note


def test_a_workload_that_fails_leaves_nothing_that_is_used(tmp_path: Path):
    class Failing(Compiling):
        def load(self) -> None:
            super().load()
            raise WorkloadError("weights do not fit")

    with pytest.raises(WorkloadError):
        loaded(EngineCache(tmp_path), Failing, 4)

    assert loaded(EngineCache(tmp_path), Compiling, 4).how == "built"


def test_the_batch_sizes_of_each_scenario():
    sizes = [engine_build.sizes_for(scenario, 24, 8) for scenario in Scenario]
    assert sizes == [(1,), (8,), (1, 2, 4, 8, 16, 24), (24,)]


def test_the_cache_is_where_the_environment_says():
    assert EngineCache.of_user({"HETERO_MIG_CACHE": "/a", "XDG_CACHE_HOME": "/b"}).root == Path("/a/engines")
    assert EngineCache.of_user({"XDG_CACHE_HOME": "/b"}).root == Path("/b/hetero-mig/engines")
    assert EngineCache.of_user({}).root == Path.home() / ".cache/hetero-mig/engines"
