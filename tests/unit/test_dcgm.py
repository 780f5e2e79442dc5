"""What a dcgm-exporter says, and what is made of it when it says it wrongly, late, or not at all."""

import threading
from http.server import BaseHTTPRequestHandler
from time import monotonic

import pytest

from scheduler import dcgm
from scheduler.dcgm import COLUMNS, DcgmExporter, parse
from tests.exporter import EXPOSITION as TEXT
from tests.exporter import MIG_GPU, WHOLE_GPU, Respond, answers, serving

ANSWERED = ("graphics_active", "tensor_active", "dram_active", "pcie_tx_mib_s")


def test_an_exposition_is_joined_on_gpu_and_instance():
    said = parse(TEXT)
    columns, why = said.of(MIG_GPU, 7)
    assert {name: columns[name] for name in ANSWERED} == {
        "graphics_active": 0.982,
        "tensor_active": 0.311871,
        "dram_active": 0.476309,
        "pcie_tx_mib_s": 5.0,  # it comes in bytes
    }
    assert set(why) == set(COLUMNS) - set(ANSWERED)
    assert "does not export it" in why["sm_active"]
    assert said.of(MIG_GPU, 8)[0]["graphics_active"] == 0.0  # idle is 0, and is told as 0
    assert said.of(WHOLE_GPU, None)[0]["graphics_active"] == 0.914275


def test_what_dcgm_leaves_blank_is_not_a_figure():
    columns, why = parse(TEXT).of(WHOLE_GPU, None)
    assert columns["pcie_tx_mib_s"] is None
    assert "blank" in why["pcie_tx_mib_s"]


@pytest.mark.parametrize(
    ("change", "asked", "told"),
    [
        (("", ""), ("GPU-00000000-0000-0000-0000-000000000000", None), "it tells of GPU-265c9814"),
        (("", ""), (MIG_GPU, 9), "GPU_I_ID 7, 8 of GPU-58e8f5ea"),
        (("", ""), (MIG_GPU, None), "of instances of GPU-58e8f5ea"),
        ((',GPU_I_ID="7"', ""), (WHOLE_GPU, 7), "gives no GPU_I_ID"),
        (("DCGM_FI_PROF_", "DCGM_FI_OTHER_"), (MIG_GPU, 7), "no activity of any GPU"),
        (("0.982000", "NaN"), (MIG_GPU, 7), "answers nan"),
        (("0.982000", "+Inf"), (MIG_GPU, 7), "answers inf"),
    ],
)
def test_what_is_missing_is_unavailable_with_its_reason(
    change: tuple[str, str], asked: tuple[str, int | None], told: str
):
    columns, why = parse(TEXT.replace(*change)).of(*asked)
    assert columns["graphics_active"] is None
    assert told in why["graphics_active"]


def test_a_ratio_above_1_is_kept_as_it_came():
    assert parse(TEXT.replace("0.982000", "6.874000")).of(MIG_GPU, 7)[0]["graphics_active"] == 6.874


def test_names_of_hosts_pods_and_old_labels_do_not_matter():
    renamed = TEXT.replace('Hostname="node-7"', 'hostname="other"').replace("UUID=", "uuid=")
    assert parse(renamed.replace("\n", "\r\n")).figures == parse(TEXT).figures


def test_text_of_another_format_is_refused():
    with pytest.raises(ValueError, match="label"):
        parse('DCGM_FI_PROF_SM_ACTIVE{gpu="0"} 0.5\n')

    with pytest.raises(ValueError):  # noqa: PT011  the parser's own words
        parse('DCGM_FI_PROF_SM_ACTIVE{UUID="GPU-1"} half\n')

    assert parse("<html>not an exporter</html>").figures == {}


# ---------------------------------------------------------------------- over HTTP


class Times:
    """The run's clock and UTC, moved by hand."""

    def __init__(self) -> None:
        self.now_s, self.unix_s = 0.0, 1_800_000_000.0

    def asked(self, url: str) -> DcgmExporter:
        return DcgmExporter(url, lambda: self.now_s, lambda: self.unix_s)


def test_a_live_exporter_is_asked_and_its_last_answer_ages():
    times = Times()
    with serving(answers(TEXT)) as url:
        exporter = times.asked(url)
        assert exporter.activity(MIG_GPU, 7) == ({}, {})  # nothing yet, and nothing wrong
        exporter.ask()
        assert exporter.activity(MIG_GPU, 7)[0]["graphics_active"] == 0.982

    exporter.ask()  # it is gone
    assert exporter.activity(MIG_GPU, 7)[0]["graphics_active"] == 0.982
    times.now_s = dcgm.STALE_S + 1
    columns, why = exporter.activity(MIG_GPU, 7)
    assert set(columns.values()) == {None}
    assert "refused" in why["graphics_active"]


def test_its_own_time_stamps_tell_stale_figures():
    times = Times()
    stamped = TEXT.replace("0.982000", f"0.982000 {int(times.unix_s - 60) * 1000}")
    with serving(answers(stamped)) as url:
        exporter = times.asked(url)
        exporter.ask()

    assert "stale" in exporter.activity(MIG_GPU, 7)[1]["graphics_active"]


@pytest.mark.parametrize(
    ("respond", "told"),
    [
        (answers("no such page", 404), "Not Found"),
        (answers("broken", 503), "Service Unavailable"),
        (answers('DCGM_FI_PROF_SM_ACTIVE{UUID="GPU-1"} half\n'), "half"),
        (lambda request: request.wfile.write(b"\x16\x03\x01 not HTTP\r\n\r\n"), "not HTTP"),
        (lambda request: request.connection.close(), "onnection"),
    ],
    ids=["404", "503", "not its format", "not HTTP", "hangs up"],
)
def test_a_faulty_exporter_is_a_reason_and_never_an_error(respond: Respond, told: str):
    with serving(respond) as url:
        exporter = Times().asked(url)
        exporter.ask()

    columns, why = exporter.activity(WHOLE_GPU, None)
    assert set(columns.values()) == {None}
    assert told in why["sm_active"]


def test_an_exporter_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dcgm, "TIMEOUT_S", 0.2)
    enough = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not enough.wait(0.02):
            try:
                request.wfile.write(b"#\n")
            except OSError:
                return

    with serving(drip) as url:
        exporter = DcgmExporter(url, monotonic, monotonic)
        began_s = monotonic()
        exporter.ask()
        assert monotonic() - began_s < 2
        enough.set()

    assert "takes more than" in exporter.activity(MIG_GPU, 7)[1]["dram_active"]


def test_a_slow_exporter_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dcgm, "TIMEOUT_S", 0.2)
    enough = threading.Event()

    def hold(_request: BaseHTTPRequestHandler) -> None:
        enough.wait(10)

    with serving(hold) as url:
        with dcgm.watching(url, monotonic, monotonic) as exporter:
            began_s = monotonic()
            exporter.activity(MIG_GPU, 7)
            assert monotonic() - began_s < 0.1

        assert monotonic() - began_s < 5
        enough.set()
