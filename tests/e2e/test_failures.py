"""Workers die, registries go, disks fill: what was live serves on."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Running, call, free_port, parent_of, wait_for
from load import Load
from prometheus_client.parser import text_string_to_metric_families
from registered import Registered


def test_a_killed_worker_takes_only_its_own_requests_along(service: Running) -> None:
    service.start()
    before = service.worker_pids()
    keeper = parent_of(service.agent_pids()[0])
    for victim in (next(pid for pid in before if pid != keeper), keeper):
        load = Load(service.port, connections=16)
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        wait_for(lambda gone=victim: service.all_ready() and gone not in service.worker_pids(), 10, "no new worker")
        print(f"a new worker served after {time.monotonic() - killed:.2f} s")
        time.sleep(1)
        records = load.stop()
        failed = [record for record in records if record.status != 200]
        # With a worker go the requests under way and the connections that it kept alive.
        assert len(failed) <= 16
        assert all(record.start_s <= killed + 0.5 for record in failed)
        assert {record.version for record in records if record.status == 200} == {"1"}
    wait_for(lambda: len(service.agent_pids()) == 1, 10, "there is not one agent")
    assert parent_of(service.agent_pids()[0]) != keeper


def test_sigterm_under_load_fails_no_request(service: Running) -> None:
    service.start()
    load = Load(service.port, connections=16)
    time.sleep(1.5)
    asked = time.monotonic()
    assert service.process is not None
    service.process.send_signal(signal.SIGTERM)
    wait_for(lambda: service.call("/readyz").status == 503, 1.5, "readiness does not turn false")
    assert service.predict().status == 200
    assert service.process.wait(30) == 0
    ended = time.monotonic()
    records = load.stop()
    failed = [record for record in records if record.status != 200 and record.start_s < ended - 0.2]
    late = [record for record in failed if record.start_s > asked + 1.9]
    assert len(failed) == len(late), f"{len(failed)} of {len(records)} requests failed"
    assert service.agent_pids() == []


def test_ctrl_c_ends_every_process(service: Running) -> None:
    service.settings["WEB_CONCURRENCY"] = "2"
    service.start()
    pids = [*service.worker_pids(), *service.agent_pids()]
    assert len(pids) == 3
    service.stop(signal.SIGINT)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10, "processes are left")


def test_counters_never_fall_and_count_what_was_sent(service: Running) -> None:
    service.start()
    victim = service.worker_pids()[-1]
    load = Load(service.port, connections=8)
    scrapes = []
    for scrape in range(5):
        time.sleep(1)
        scrapes.append(_counters(service))
        if scrape == 2:
            os.kill(victim, signal.SIGKILL)
    answered = sum(record.status == 200 for record in load.stop())
    for before, after in itertools.pairwise(scrapes):
        fallen = {
            series: (value, after.get(series)) for series, value in before.items() if after.get(series, 0) < value
        }
        assert fallen == {}
    sent = 10
    before = _predicted(service)
    for _ in range(sent):
        assert service.predict().status == 200
    assert _predicted(service) - before == sent
    # The killed worker may have predicted and counted a row whose answer it did not get out.
    assert 0 <= before - answered <= 4


def _counters(service: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(service.call("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


def _predicted(service: Running) -> float:
    series = _counters(service).items()
    return sum(
        value for (name, labels), value in series if name == "ml_predictions_total" and ("outcome", "ok") in labels
    )


# --- the registry goes -----------------------------------------------------------------------------------------------


class TrackingServer:
    """``mlflow server`` on the registry's own database."""

    def __init__(self, uri: str, home: Path) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._store, self._home = uri, home
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        options = {
            "--backend-store-uri": self._store,
            "--workers": "1",
            "--port": str(self.port),
            "--artifacts-destination": str(self._home / "proxied"),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(lambda: call(self.port, "/health").status == 200, 120, "the tracking server does not start")

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def tracking_server(registered: Registered, tmp_path: Path) -> Iterator[TrackingServer]:
    server = TrackingServer(registered.uri, tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_registry_that_goes_and_comes_back(
    registered: Registered, tracking_server: TrackingServer, tmp_path: Path
) -> None:
    registered.point("1")
    service = Running(tmp_path / "service", tracking_server.uri, {"WEB_CONCURRENCY": "2", "POLL_INTERVAL_S": "1"})
    try:
        service.start()
        tracking_server.stop()
        assert service.predict().status == 200
        answer = service.reload()
        assert (answer.status, answer.json["error"]["code"]) == (502, "registry_unreachable")
        assert service.predict().status == 200

        service.stop()
        service.start()
        info = wait_for(lambda: _info_when(service, reachable=False), 15, "the registry's absence is not told")
        assert (info["version"], info["source"], info["fallback"]) == ("1", "registry", "last good copy")

        registered.point("2")
        tracking_server.start()
        wait_for(lambda: service.predict().headers["X-Model-Version"] == "2", 60, "it does not follow again")
        info = wait_for(lambda: _info_when(service, reachable=True), 15, "the registry's return is not told")
        assert info["fallback"] is None
    finally:
        service.kill()


def test_local_files_bridge_a_missing_registry(registered: Registered, tmp_path: Path) -> None:
    from serving.digest import folder_digest
    from serving.registry import LocalFiles, Version

    files = registered.folders["1"]
    local = Version("iris", "1", "champion", "local", "", digest=folder_digest(files))
    service = Running(tmp_path / "service", f"http://127.0.0.1:{free_port()}", {"WEB_CONCURRENCY": "1"})
    LocalFiles(service.folder / "models").publish(local, files)
    try:
        service.start()
        info = wait_for(lambda: _info_when(service, reachable=False), 15, "the registry's absence is not told")
        assert (info["version"], info["source"], info["fallback"]) == ("1", "local", "local files")
        assert service.predict().status == 200
        assert service.reload().status == 502
    finally:
        service.kill()


def _info_when(service: Running, *, reachable: bool) -> dict[str, object] | None:
    answer = service.call("/model/info")
    if answer.status != 200 or answer.json["registry"]["reachable"] is not reachable:
        return None
    return dict(answer.json)


# --- starts that cannot work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"POLL_INTERVAL": "3"}, "unknown setting POLL_INTERVAL; did you mean POLL_INTERVAL_S?"),
        ({"POLL_INTERVAL_S": "soon"}, "POLL_INTERVAL_S must be a number, not 'soon'"),
        ({"MODELS": "iris@"}, "MODELS: 'iris@' is not a name, name@alias or name/version"),
        ({"STATE_DIR": "/proc/nowhere"}, "STATE_DIR: cannot write in /proc/nowhere"),
        ({"STATE_DIR": "/dev/null/state"}, "STATE_DIR: cannot write in /dev/null/state: Not a directory"),
    ],
)
def test_a_start_that_cannot_work_says_so_in_one_line(service: Running, settings: dict[str, str], words: str) -> None:
    service.settings |= settings
    service.start(ready=False)
    assert service.process is not None
    assert service.process.wait(20) == 2
    assert words in service.log
    assert service.log.count("\n") == 1


def test_a_port_in_use_says_so_in_one_line(service: Running) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", service.port))
        taken.listen()
        service.start(ready=False)
        assert service.process is not None
        assert service.process.wait(20) == 2
    assert f"127.0.0.1:{service.port} is in use; set PORT to a free one" in service.log
    assert service.log.count("\n") == 1


def test_a_state_folder_in_use_says_so(service: Running, tmp_path: Path) -> None:
    service.settings["WEB_CONCURRENCY"] = "1"
    service.start()
    second = Running(tmp_path / "second", service.tracking_uri, {"STATE_DIR": str(service.folder / "state")})
    second.start(ready=False)
    assert second.process is not None
    assert second.process.wait(20) != 0
    assert "give each its own STATE_DIR" in second.log
    assert service.predict().status == 200


@pytest.mark.parametrize(
    ("models", "words"),
    [("iriss", "iriss"), ("iris@nobody", "nobody"), ("iris/99", "99")],
)
def test_nothing_behind_the_name_is_said_and_waited_for(service: Running, models: str, words: str) -> None:
    service.settings |= {"MODELS": models, "WEB_CONCURRENCY": "1"}
    service.start(ready=False)
    wait_for(lambda: words in service.log, 60, f"{words!r} is not in the log")
    answer = service.predict()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert service.call("/readyz").status == 503
    assert service.call("/livez").status == 200
