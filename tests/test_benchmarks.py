"""What the benchmark concludes from what it sees; no server is started here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import answers, bench, load, locustfile, models, peers, processes, report
from benchmarks.answers import Said, Wrong
from benchmarks.environments import Environment, NotInstalled
from benchmarks.load import Measured, Unusable
from benchmarks.peers import BY_NAME, PEERS, Place
from benchmarks.results import Case, Results
from serving.settings import ROOT

EXPECTED = (np.array([0, 2]), np.array([[1.0, 0.0, 0.0], [0.25, 0.25, 0.5]]))
HERE = report.Conditions("A CPU", 2, "Linux", "3.11.7", 3, 2.0, 14.2, 0.1)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_right_answer_passes() -> None:
    answers.check(Said([0, 2], [[1.0, 0.0, 0.0], [0.25, 0.25, 0.5]]), EXPECTED)
    answers.check(Said([0, 2]), EXPECTED)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (Said([0]), "1 answers for 2 rows"),
        (Said([0, 1]), "row 1 is class 2, not 1"),
        (Said([0, 2], [[1.0, 0.0, 0.0]]), "shape"),
        (Said([0, 2], [[1.0, 0.0, 0.0], [0.25, 0.2501, 0.4999]]), "off by 0.0001"),
        (Said([0, 2], [[1.0, 0.0, 0.0], [0.25, float("nan"), 0.5]]), "off by nan"),
    ],
)
def test_a_wrong_answer_is_found(said: Said, wrong: str) -> None:
    with pytest.raises(Wrong, match=wrong):
        answers.check(said, EXPECTED)


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        (b'{"label":0}', b'{"label":0}', b'{"label":0}'),
        (b'{"label":0,"version":1,"id":"019a1"}', b'{"label":0,"version":1,"id":"019a2"}', b'{"label":0,"version":1'),
        (b'{"id":"7f","outputs":[0,1,2]}', b'{"id":"83","outputs":[0,1,2]}', b'"outputs":[0,1,2]}'),
    ],
)
def test_an_answer_is_known_by_what_stays_the_same(first: bytes, second: bytes, part: bytes) -> None:
    assert answers.steady_part(first, second, b'{"label":1}') == part


def test_an_answer_that_tells_nothing_is_refused() -> None:
    with pytest.raises(Wrong, match="cannot be told apart"):
        answers.steady_part(b'{"ok":1,"id":"a"}', b'{"ok":1,"id":"b"}', b'{"ok":1,"id":"c"}')
    with pytest.raises(Wrong, match="cannot be told apart"):
        answers.steady_part(b"ab", b"ba", b"cd")


# --- wrk -------------------------------------------------------------------------------------------------------------


def wrk_says(**changes: float) -> str:
    said = {"requests": 3000, "duration_s": 2.0, "p50_ms": 0.5, "p99_ms": 2.5, "max_ms": 9.0}
    said |= {"wrong": 0, "status": 0, "socket": 0, "timeout": 0} | changes
    return f"Running 2s test @ http://127.0.0.1\n  1 threads and 16 connections\n{load.MARK}{json.dumps(said)}\n"


def test_what_wrk_says_is_read() -> None:
    assert load.parse(wrk_says()) == Measured(3000, 1500.0, 0.5, 2.5, 9.0, None)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"wrong": 3}, "3 wrong of 3000"),
        ({"wrong": 5, "status": 5}, "5 with an error status of 3000"),
        ({"socket": 2}, "2 broken connections of 3000"),
        ({"timeout": 1}, "1 too late of 3000"),
        ({"requests": 0}, "no answer at all"),
    ],
)
def test_a_run_with_errors_does_not_count(changes: dict[str, float], fault: str) -> None:
    assert load.parse(wrk_says(**changes)).fault == fault


def test_wrk_that_measured_nothing_is_told_of() -> None:
    with pytest.raises(Unusable, match="unable to connect"):
        load.parse("unable to connect to 127.0.0.1:1 Connection refused")


def test_a_missing_wrk_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unusable, match="apt-get install wrk"):
        load.check_wrk()


def test_the_script_reads_its_body_and_its_answers(tmp_path: Path) -> None:
    script = load.write_script(tmp_path, b'{"a": "\\n"}', [b"first", b"second"]).read_text()
    assert (tmp_path / "body").read_bytes() == b'{"a": "\\n"}'
    assert f'read("{tmp_path}/accepted-0"), read("{tmp_path}/accepted-1")' in script
    assert "%" not in script.replace("%d", "").replace("%f", "")


# --- servers as processes --------------------------------------------------------------------------------------------


def test_the_members_of_a_server() -> None:
    table = [(1, 0, 1), (10, 1, 10), (11, 10, 10), (12, 11, 12), (13, 12, 12), (14, 1, 10), (20, 1, 20), (21, 20, 20)]
    assert processes.members(10, table) == {10, 11, 12, 13, 14}  # 12 has a session of its own, 14 lost its parent


def test_memory_is_summed(tmp_path: Path) -> None:
    for pid, kb in ((10, 1200), (11, 34)):
        (tmp_path / str(pid)).mkdir()
        rollup = f"00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss: 9999 kB\nPss: {kb} kB\nPss_Anon: 7 kB\n"
        (tmp_path / str(pid) / "smaps_rollup").write_text(rollup)
    assert processes.proportional_set_kb([10, 11, 12], tmp_path) == 1234


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    how = processes.Start(
        [sys.executable, "-c", "raise SystemExit('no such model')"], os.environ, tmp_path, tmp_path / "log"
    )
    port = processes.free_port()
    server = processes.Server.start(how, port, str(min(os.sched_getaffinity(0))))
    with pytest.raises(processes.Failed, match="code 1: no such model"):
        server.await_answer("/predict", b"{}")
    server.stop()


def test_a_server_ends_with_its_children(tmp_path: Path) -> None:
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    how = processes.Start([sys.executable, "-c", code], os.environ, tmp_path, tmp_path / "log")
    server = processes.Server.start(how, 1, str(min(os.sched_getaffinity(0))))
    while not (tmp_path / "log").read_text().strip():
        pass
    child = Path("/proc", (tmp_path / "log").read_text().strip(), "stat")
    assert child.exists()
    server.stop()
    assert not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z"


# --- peers -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, Environment(tmp_path / "venv", ()), (5001, 5002, 5003), models.Model("forest", tmp_path))


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_every_peer_says_how_it_starts(peer: peers.Peer, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    monkeypatch.setenv("WEB_CONCURRENCY", "8")
    start = peer.start(place)
    assert all(isinstance(word, str) for word in start.command)
    assert start.environment.get("MLFLOW_TRACKING_URI") != "http://mine"
    assert "WEB_CONCURRENCY" not in start.environment
    assert "5001" in [*start.command, *start.environment.values()] or any("5001" in word for word in start.command)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("ours", {"prediction": {"class_id": 2}, "probabilities": {"a": 0.25, "b": 0.25, "c": 0.5}}),
        ("ours", {"predictions": [{"class_id": 2, "probabilities": {"a": 0.25, "b": 0.25, "c": 0.5}}]}),
        ("mlflow", {"predictions": [2]}),
        ("mlserver", {"model_name": "m", "outputs": [{"name": "predict", "shape": [1, 1], "data": [2]}]}),
        ("fastapi", {"labels": [2], "probabilities": [[0.25, 0.25, 0.5]]}),
    ],
)
def test_every_kind_of_answer_is_understood(name: str, body: object) -> None:
    answers.check(BY_NAME[name].said(json.dumps(body).encode()), (EXPECTED[0][1:], EXPECTED[1][1:]))


def test_a_peer_that_cannot_be_installed_is_told_of(tmp_path: Path) -> None:
    nowhere = Environment(tmp_path / "venv", ("no such package",))
    with pytest.raises(NotInstalled, match=r"not installed: .*no such package"):
        nowhere.install()


def test_an_unknown_server_is_told_of() -> None:
    assert [peer.name for peer in bench.chosen("mlflow, ours")] == ["ours", "mlflow"]
    assert len(bench.chosen("")) == len(PEERS)
    with pytest.raises(SystemExit, match="'nobody'"):
        bench.chosen("ours,nobody")


def test_flips_that_fail_are_found() -> None:
    good = {"version": "2", "live": "2", "status": 200, "took_s": 0.1}
    assert bench.flips_fault(json.dumps([good] * 5), 6) == (None, 5)
    assert "1 of 2 reloads failed" in str(bench.flips_fault(json.dumps([good, {**good, "live": "1"}]), 2)[0])
    assert "1 of 2 reloads failed" in str(bench.flips_fault(json.dumps([good, {**good, "status": 502}]), 2)[0])
    assert bench.flips_fault(json.dumps([good]), 6)[0] == "only 1 flips in 6 s"


# --- the report ------------------------------------------------------------------------------------------------------


def results() -> Results:
    made = Results(versions={"mlflow": {"mlflow": "3.17.2"}}, absent={"bentoml": "not installed: no wheel"}, flips=12)
    for rate in (2900.0, 3000.0, 9000.0):
        made.loads["ours", report.ONE_16].append(Measured(9000, rate, 4.0, 6.0, 12.0, None))
    made.loads["ours", report.ONE_16].append(Measured(9000, 1.0, 4.0, 900.0, 900.0, "9 wrong of 9000"))
    made.loads["mlflow", report.ONE_16].append(Measured(300, 100.0, 150.0, 250.0, 300.0, None))
    made.loads["mlserver", report.ONE_16].append(Measured(300, 250.0, 60.0, 90.0, 100.0, None))
    made.loads["mlserver-mlflow", report.ONE_16].append(Measured(300, 150.0, 90.0, 110.0, 120.0, None))
    made.loads["ours", report.FLIPPING].append(Measured(9000, 2000.0, 5.0, 12.0, 20.0, None))
    made.starts["ours", "forest"].append(0.9)
    return made


def test_targets_are_medians_and_ratios_of_runs_that_count() -> None:
    found = {target.what: target for target in report.targets(results())}
    against_mlflow = found["requests per second against `mlflow models serve`"]
    assert (against_mlflow.measured, against_mlflow.met) == (30.0, True)
    against_mlserver = found["requests per second against MLServer, its faster runtime"]
    assert (against_mlserver.measured, against_mlserver.met) == (12.0, False)
    flipping = found["p99 while the alias flips, against p99 at rest"]
    assert (flipping.measured, flipping.met) == (2.0, False)
    assert found["start to first answer, prepared"].cells() == [
        "start to first answer, prepared", "at most 1 s", "0.9 s", "yes",
    ]  # fmt: skip
    assert found["memory with one worker, agent included"].cells()[2:] == ["–", "not measured"]


def test_the_report_hides_nothing() -> None:
    made = results()
    made.faults.append("this service, forest, 1 row, 16 connections: 9 wrong of 9000")
    text = report.document(made, list(PEERS), HERE)
    assert "not installed: no wheel" in text
    assert "9 wrong of 9000" in text
    assert "All were right" not in text
    assert "mlflow 3.17.2" in text
    assert "12 moves of the alias" in text
    assert str(ROOT) not in text


def test_the_report_of_a_clean_run_says_so() -> None:
    assert "All were right" in report.document(results(), list(PEERS), HERE)


def test_the_report_of_a_busy_machine_warns() -> None:
    assert "do not trust" not in report.document(results(), list(PEERS), HERE)
    assert "load average 4.2): do not trust" in report.document(results(), list(PEERS), replace(HERE, busy=4.2))


def test_rounds_end_in_time() -> None:
    assert bench.another_fits(0, 0.0)
    assert bench.another_fits(2, bench.LONGEST_S * 2 / 3)
    assert not bench.another_fits(2, bench.LONGEST_S * 2 / 3 + 1)


def test_a_table_lines_up() -> None:
    assert report.table(["", "ms"], [["ours", "4"], ["a longer one", "1,250"]]) == (
        "|              |    ms |\n"
        "| ------------ | ----: |\n"
        "| ours         |     4 |\n"
        "| a longer one | 1,250 |\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (12345.6, "12,346"), (99.96, "100"), (4.567, "4.57"), (0.01234, "0.0123")]
)
def test_figures_are_short(value: float | None, text: str) -> None:
    assert report.shown(value) == text


def test_a_case_says_what_it_is() -> None:
    assert str(Case("forest", 1, 1)) == "forest, 1 row, 1 connection"
    assert str(Case("forest", 1000, 16, workers=2)) == "forest, 1,000 rows, 16 connections, 2 workers"
    assert str(report.FLIPPING) == "forest, 1 row, 16 connections, alias flips"


# --- make load -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "row"),
    [
        ({"example": [[5.1, 3.5], [1, 2]]}, [5.1, 3.5]),
        ({"example": [{"age": 3}]}, {"age": 3}),
        (
            {"signature": {"inputs": [{"name": "age", "type": "long"}, {"name": "city", "type": "string"}]}},
            {"age": 1, "city": "text"},
        ),
        ({"example": None, "signature": {"inputs": [{"name": "x", "type": "float64", "shape": [3]}]}}, [1, 1, 1]),
    ],
)
def test_a_row_is_made_from_what_the_service_tells(info: dict[str, object], row: object) -> None:
    assert locustfile.row_of(info) == row


def test_nothing_is_sent_to_a_model_of_which_nothing_is_known() -> None:
    with pytest.raises(ValueError, match="no example and no signature"):
        locustfile.row_of({"name": "iris", "signature": {"inputs": []}})


def test_bad_input_is_refused_by_the_service(client: object) -> None:
    row = locustfile.row_of(client.get("/model/info").json)
    assert client.post("/predict", json={"features": row}).status_code == 200
    assert client.post("/predict", json={"instances": [row] * 3}).status_code == 200
    for body in locustfile.bad_bodies(row):
        assert client.post("/predict", data=body, content_type="application/json").status_code == 400, body


def test_the_bench_imports_nothing_heavy_before_it_is_needed() -> None:
    code = "import sys, benchmarks.bench; print(*sorted({'mlflow', 'sklearn', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout.split() == []
