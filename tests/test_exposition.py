"""The metrics of a whole service: nothing falls when a process ends, and notes become gauges."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from served import free_port

from serving import exposition, notes
from serving.drift import FILE_NAME, Bins, Profile, smoothed
from serving.exposition import Counted, Exposition, fold, fold_the_dead
from serving.metrics import Metrics
from serving.roster import Roster
from serving.settings import ROOT
from serving.state import LedgerState, ModelState, Workers

COUNTS = """
import os, sys
from prometheus_client import CollectorRegistry
from serving.metrics import Metrics
metrics = Metrics(CollectorRegistry())
metrics.start_at_zero("iris")
rows = int(sys.argv[1])
metrics.predictions.labels("iris", "1", "ok").inc(rows)
metrics.inference_s.labels("iris", "1").observe(0.003)
metrics.in_flight.begin()
metrics.in_flight.write()
print(os.getpid())
"""


def process(metrics_dir: Path, rows: int) -> int:
    """A process that counts and ends; its pid."""
    metrics_dir.mkdir(exist_ok=True)
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics_dir), "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", COUNTS, str(rows)], env=environ, capture_output=True, check=True)
    return int(ran.stdout)


def samples(of: Exposition) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in of.registry().collect()
        for sample in family.samples
    }


def value(of: Exposition, name: str, **labels: str) -> float | None:
    return samples(of).get((name, frozenset(labels.items())))


@pytest.fixture
def metrics_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "metrics"
    folder.mkdir()
    return folder


@pytest.fixture
def service(tmp_path: Path, metrics_dir: Path) -> Exposition:
    return Exposition(Roster(["iris"], tmp_path), tmp_path, metrics_dir, spool_limit_bytes=1000)


# --- processes -------------------------------------------------------------------------------------------------------


def test_processes_add_up_and_the_dead_stay_counted(service: Exposition, metrics_dir: Path) -> None:
    pids = [process(metrics_dir, rows) for rows in (3, 4)]
    assert value(service, "ml_predictions_total", model="iris", version="1", outcome="ok") == 7
    assert value(service, "ml_in_flight_requests") == 2
    before = samples(service)
    for pid in pids:
        fold(metrics_dir, pid)
        assert value(service, "ml_predictions_total", model="iris", version="1", outcome="ok") == 7
    after = samples(service)
    counted = [key for key in before if key[0].endswith(("_total", "_bucket", "_sum", "_count"))]
    assert {key: after.get(key) for key in counted} == {key: before[key] for key in counted}
    assert value(service, "ml_in_flight_requests") is None
    assert value(service, "ml_inference_duration_seconds_count", model="iris", version="1") == 2
    assert value(service, "ml_inference_duration_seconds_bucket", model="iris", version="1", le="0.005") == 2


def test_a_hundred_dead_leave_two_files(metrics_dir: Path) -> None:
    pid = process(metrics_dir, 1)
    files = {path.name: path.read_bytes() for path in metrics_dir.glob("*.db")}
    for dead in range(100):
        for name, content in files.items():
            (metrics_dir / name.replace(str(pid), str(900_000 + dead))).write_bytes(content)
        fold(metrics_dir, 900_000 + dead)
    fold(metrics_dir, pid)
    assert sorted(path.name for path in metrics_dir.glob("*.db")) == ["counter_dead.db", "histogram_dead.db"]
    service = Exposition(Roster(["iris"], metrics_dir.parent), metrics_dir.parent, metrics_dir)
    assert value(service, "ml_predictions_total", model="iris", version="1", outcome="ok") == 101


def test_to_fold_who_never_counted_changes_nothing(service: Exposition, metrics_dir: Path) -> None:
    process(metrics_dir, 1)
    before = samples(service)
    fold(metrics_dir, 4_000_000)
    assert samples(service) == before


def test_whoever_is_gone_is_folded(service: Exposition, metrics_dir: Path) -> None:
    process(metrics_dir, 3)
    (metrics_dir / f"counter_{os.getpid()}.db").write_bytes((next(metrics_dir.glob("counter_*"))).read_bytes())
    fold_the_dead(metrics_dir)
    assert {path.name for path in metrics_dir.glob("counter_*.db")} == {f"counter_{os.getpid()}.db", "counter_dead.db"}
    assert value(service, "ml_predictions_total", model="iris", version="1", outcome="ok") == 6


def test_room_is_taken_before_it_is_needed(service: Exposition, metrics_dir: Path) -> None:
    exposition.claim(metrics_dir, 4_000_000)
    taken = {path.name: path.stat() for path in metrics_dir.glob("*_4000000.db")}
    assert sorted(taken) == ["counter_4000000.db", "gauge_livesum_4000000.db", "histogram_4000000.db"]
    assert {status.st_blocks * 512 >= exposition.RESERVED_BYTES for status in taken.values()} == {True}
    process(metrics_dir, 3)
    assert value(service, "ml_predictions_total", model="iris", version="1", outcome="ok") == 3


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100])
def test_a_file_that_was_cut_off_ends_nobody(service: Exposition, metrics_dir: Path, content: bytes) -> None:
    process(metrics_dir, 3)
    (metrics_dir / "counter_4000000.db").write_bytes(content)
    exposition.fold_if_possible(metrics_dir, 4_000_000)
    if not content:
        assert value(service, "ml_predictions_total", model="iris", version="1", outcome="ok") == 3


def test_a_full_disk_is_an_error_and_no_end(metrics_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files stands in for the disk's end."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(metrics_dir))
    pid = process(metrics_dir, 3)
    before = {path.name: path.read_bytes() for path in metrics_dir.glob("*.db")}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            fold(metrics_dir, pid)
        exposition.fold_if_possible(metrics_dir, pid)
        exposition.claim(metrics_dir, 4_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(metrics_dir.glob("*_4000000.db"))
    assert Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) != metrics_dir
    kept = {name: content for name, content in before.items() if not name.startswith("gauge")}
    assert {name: (metrics_dir / name).read_bytes() for name in kept} == kept


def test_a_scrape_waits_until_the_files_are_folded(service: Exposition, metrics_dir: Path) -> None:
    process(metrics_dir, 1)
    with exposition._locked(metrics_dir, fcntl.LOCK_EX):
        scrape = threading.Thread(target=service.collect)
        scrape.start()
        scrape.join(0.2)
        assert scrape.is_alive()
    scrape.join(10)
    assert not scrape.is_alive()


def test_scrapes_do_not_wait_for_each_other(service: Exposition, metrics_dir: Path) -> None:
    process(metrics_dir, 1)
    with exposition._locked(metrics_dir, fcntl.LOCK_SH):
        assert list(service.collect())


def test_a_process_by_itself_shows_its_own(tmp_path: Path) -> None:
    own = CollectorRegistry()
    Metrics(own).predictions.labels("iris", "1", "ok").inc(5)
    alone = Exposition(Roster(["iris"], tmp_path), tmp_path, None, own)
    assert value(alone, "ml_predictions_total", model="iris", version="1", outcome="ok") == 5


def test_one_metric_may_be_asked_for_by_name(service: Exposition, metrics_dir: Path) -> None:
    process(metrics_dir, 1)
    registry = service.registry(described=True)
    written = generate_latest(registry.restricted_registry(["ml_workers", "ml_predictions_total"])).decode()
    assert "ml_workers 0.0" in written
    assert "ml_predictions_total{" in written
    assert "ml_model_loaded" not in written


def test_metrics_have_a_port_of_their_own(service: Exposition, metrics_dir: Path) -> None:
    process(metrics_dir, 3)
    port = free_port()
    server = exposition.serve(service, "127.0.0.1", port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            assert b"ml_predictions_total{" in answer.read()
        with pytest.raises(OSError, match="in use"):
            exposition.serve(service, "127.0.0.1", port)
    finally:
        server.shutdown()
        server.server_close()


# --- notes -----------------------------------------------------------------------------------------------------------


def worker(state_dir: Path, name: str, version: str | None) -> Any:
    """A living worker; the lock that must be kept."""
    workers = Workers(state_dir)
    lock = workers.lock(name)
    assert lock.acquire()
    about = {"alias": "champion", "source": "registry", "runtime": "compiled", "digest": "sha256:1"}
    live = {"generation": 1, "version": version, "loaded_at": "2026-01-01T00:00:00.000+00:00", **about}
    notes.write(workers.note(name), {"pid": 1, "models": {"iris": live} if version else {}})
    return lock


def test_versions_are_those_that_living_workers_serve(service: Exposition, tmp_path: Path) -> None:
    locks = [worker(tmp_path, "a", "1"), worker(tmp_path, "b", "2"), worker(tmp_path, "c", "2")]
    assert value(service, "ml_workers") == 3
    assert value(service, "ml_model_workers", model="iris", version="2") == 2
    assert value(service, "ml_model_loaded", model="iris") == 1
    about = {"alias": "champion", "source": "registry", "runtime": "compiled", "digest": "sha256:1"}
    assert value(service, "ml_model_info", model="iris", version="1", **about) == 1
    assert value(service, "ml_model_loaded_timestamp_seconds", model="iris", version="1") == 1767225600
    locks[0].release()
    assert value(service, "ml_model_workers", model="iris", version="1") is None


def test_a_worker_without_a_version_is_not_loaded(service: Exposition, tmp_path: Path) -> None:
    assert value(service, "ml_model_loaded", model="iris") == 0
    locks = [worker(tmp_path, "a", "1"), worker(tmp_path, "b", None)]
    assert value(service, "ml_workers") == len(locks)
    assert value(service, "ml_model_loaded", model="iris") == 0


def test_what_all_processes_cost(service: Exposition, tmp_path: Path) -> None:
    assert value(service, "process_cpu_seconds_total") is None
    notes.write(tmp_path / "service.json", {"pid": os.getpid()})
    assert (value(service, "process_cpu_seconds_total") or 0) > 0
    assert (value(service, "process_resident_memory_bytes") or 0) > 10_000_000


def test_what_the_agent_saw_of_the_registry(service: Exposition, tmp_path: Path) -> None:
    assert value(service, "ml_registry_reachable", model="iris") == 0
    assert value(service, "ml_alias_checked_timestamp_seconds", model="iris") is None
    state = ModelState(tmp_path, "iris")
    answered_at = "2026-01-01T00:00:00.000+00:00"
    registry = {"reachable": True, "error": None, "checked_at": answered_at, "answered_at": answered_at}
    notes.write(state.status, {"registry": registry})
    notes.write(state.desired, {"source": "registry", "bundle": "bundles/1-x", "version": "1"})
    assert value(service, "ml_registry_reachable", model="iris") == 1
    assert value(service, "ml_alias_checked_timestamp_seconds", model="iris") == 1767225600
    assert value(service, "ml_fallback_in_use", model="iris", kind="last_good_copy") == 0
    notes.write(state.status, {"registry": {**registry, "reachable": False, "error": "gone"}})
    assert value(service, "ml_fallback_in_use", model="iris", kind="last_good_copy") == 1
    assert value(service, "ml_alias_checked_timestamp_seconds", model="iris") == 1767225600
    notes.write(state.desired, {"source": "local", "bundle": "bundles/1-x", "version": "1"})
    assert value(service, "ml_fallback_in_use", model="iris", kind="local_files") == 1
    assert value(service, "ml_fallback_in_use", model="iris", kind="last_good_copy") == 0


def test_what_training_knew_is_there_to_be_compared(service: Exposition, tmp_path: Path) -> None:
    bins = Bins("width", "numeric", ("<= 1", "> 1"), tuple(smoothed([1, 1])), edges=(1.0,), missing=0.25, threshold=0.3)
    unjudged = Bins("confidence", "numeric", ("<= 1", "> 1"), tuple(smoothed([1, 1])), edges=(1.0,))
    state = ModelState(tmp_path, "iris")
    notes.write(state.desired, {"source": "registry", "bundle": "bundles/7-x", "version": "7"})
    profile = Profile(2, (bins,), (unjudged,), {"accuracy": 0.9}, {})
    place = state.bundles / "7-x" / FILE_NAME
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps(profile.as_json()))
    of = {"model": "iris", "version": "7"}
    assert value(service, "ml_reference_bin_ratio", **of, feature="width", bin="> 1") == 0.5
    assert value(service, "ml_reference_missing_ratio", **of, feature="width") == 0.25
    assert value(service, "ml_drift_threshold", **of, feature="width") == 0.3
    assert value(service, "ml_reference_prediction_ratio", **of, output="confidence", bin="<= 1") == 0.5
    assert value(service, "ml_prediction_drift_threshold", **of, output="confidence") is None
    assert value(service, "ml_quality_gate", **of, metric="accuracy") == 0.9


def test_the_ledger_as_its_writer_and_the_disk_say(service: Exposition, tmp_path: Path) -> None:
    assert value(service, "ml_ledger_reachable") is None
    assert value(service, "ml_ledger_spool_bytes") == 0
    ledger = LedgerState(tmp_path)
    ledger.spool.mkdir(parents=True)
    (ledger.spool / "page").write_bytes(bytes(123))
    assert value(service, "ml_ledger_spool_bytes") == 123
    assert value(service, "ml_ledger_spool_limit_bytes") == 1000


def test_counted_rows_are_those_of_one_version(tmp_path: Path) -> None:
    own = CollectorRegistry()
    metrics = Metrics(own)
    metrics.drift("iris", "1").feature("width", "> 1")(4)
    metrics.drift("iris", "2").feature("width", "> 1")(40)
    metrics.drift("iris", "1").missing("width")(3)
    metrics.drift("iris", "1").output("class", "setosa")(2)
    counted = Counted(Exposition(Roster(["iris"], tmp_path), tmp_path, None, own).collect(), "iris", "1")
    assert counted.features("width", "> 1") == 4
    assert counted.features("width", "<= 1") == 0
    assert counted.missing("width") == 3
    assert counted.outputs("class", "setosa") == 2
