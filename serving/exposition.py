"""The metrics of a whole service as one scrape: what its processes counted, and what their notes say.

Any process can answer it: a worker on the application's port, and gunicorn's master on a port of its own, which still
answers when all workers are busy. Processes count into files of their own (prometheus_client's multiprocess mode).
The files of one that ended are folded into one for all the dead, so that a scrape does not grow with every worker that
was ever started, and no counter falls.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Metric, multiprocess, start_wsgi_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.mmap_dict import MmapedDict

from serving import notes, processes
from serving.roster import Roster
from serving.state import LedgerState, ModelState, Workers

FALLBACKS = ("last_good_copy", "local_files")
MEASURES = ("accuracy", "brier", "log_loss", "mean_absolute_error")
ADDS_UP = ("counter", "histogram")  # what the dead leave behind that still counts
RESERVED_BYTES = 512 * 1024  # of each kind; a version with a full profile takes 150 KB of counters
SHARED_MEMORY = "/dev/shm"
ENTRY_BYTES = 64  # more than an entry of prometheus_client's files has beside its key

log = logging.getLogger("serving.metrics")


class Exposition:
    """All metrics of one service."""

    def __init__(
        self,
        roster: Roster,
        state_dir: Path,
        metrics_dir: Path | None,
        own: CollectorRegistry | None = None,
        *,
        spool_limit_bytes: int = 0,
    ) -> None:
        """``metrics_dir`` is where its processes count; without one, ``own`` is the only process there is."""
        self._metrics_dir = metrics_dir
        self._own = own
        self._service = ServiceCollector(roster, state_dir, spool_limit_bytes)

    def registry(self, *, described: bool = False) -> CollectorRegistry:
        """For prometheus_client's server or encoder; ``described`` where single metrics are asked for by name."""
        registry = CollectorRegistry(auto_describe=described)
        registry.register(self._service)
        registry.register(self)
        return registry

    def collect(self) -> Iterable[Metric]:
        """What the processes counted."""
        if self._metrics_dir is None:
            return self._own.collect() if self._own is not None else ()
        with _locked(self._metrics_dir, fcntl.LOCK_SH):
            files = sorted(str(path) for path in self._metrics_dir.glob("*.db") if path.stat().st_size)
            merged: Iterable[Metric] = multiprocess.MultiProcessCollector.merge(files)
            return list(merged)


class Counted:
    """The rows of one version, counted into its bins by all processes of the service: `serving.drift.Counted`."""

    def __init__(self, families: Iterable[Metric], model: str, version: str) -> None:
        self._rows: dict[tuple[str, ...], int] = {}
        for family in families:
            for sample in family.samples:
                labels = sample.labels
                if (labels.get("model"), labels.get("version")) == (model, version):
                    of = (labels.get("feature") or labels.get("output") or "", labels.get("bin") or "")
                    self._rows[(sample.name, *of)] = int(sample.value)

    def features(self, name: str, label: str) -> int:
        return self._rows.get(("ml_feature_bin_rows_total", name, label), 0)

    def missing(self, name: str) -> int:
        return self._rows.get(("ml_feature_missing_rows_total", name, ""), 0)

    def outputs(self, name: str, label: str) -> int:
        return self._rows.get(("ml_prediction_bin_rows_total", name, label), 0)


def serve(exposition: Exposition, address: str, port: int) -> WSGIServer:
    """Answer scrapes on a port of their own, in threads of this process; the server.

    A child that is forked later has its socket too, and must close that. Raises OSError when the port cannot be used.
    """
    server, _ = start_wsgi_server(port, address, exposition.registry())
    return server


def claim(metrics_dir: Path, pid: int) -> None:
    """Take the disk space that this process counts in before it begins.

    It writes through memory maps, and on a disk that is full by then the kernel would kill it. Where there is no room
    even now it counts in memory, where no scrape sees it, which costs less than its end.
    """
    files = [metrics_dir / f"{name}_{pid}.db" for name in (*ADDS_UP, "gauge_livesum")]
    try:
        for path in files:
            _allocate(path, RESERVED_BYTES)
    except OSError as err:
        log.error("no room for metrics in %s: %s; process %d is not counted", metrics_dir, err.strerror, pid)
        for path in files:
            path.unlink(missing_ok=True)
        memory = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="metrics-", dir=memory)


def _allocate(path: Path, size: int) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(handle, 0, size)
    finally:
        os.close(handle)


def fold(metrics_dir: Path, pid: int) -> None:
    """A process has ended: its gauges no longer count, what it counted stays."""
    with _locked(metrics_dir, fcntl.LOCK_EX):
        for path in metrics_dir.glob(f"gauge_*_{pid}.db"):
            path.unlink()
        for kind in ADDS_UP:
            _fold(metrics_dir / f"{kind}_{pid}.db", metrics_dir / f"{kind}_dead.db")


def fold_the_dead(metrics_dir: Path) -> None:
    """The same for every process that is no longer there, for whoever was not told of an end."""
    pids = {path.stem.rpartition("_")[2] for path in metrics_dir.glob("*.db")}
    for pid in pids:
        if pid.isdecimal() and not _alive(int(pid)):
            fold_if_possible(metrics_dir, int(pid))


def fold_if_possible(metrics_dir: Path, pid: int) -> None:
    """The same where a full disk must stop nothing: what was not folded is still counted where it is."""
    try:
        fold(metrics_dir, pid)
    except (OSError, ValueError, RuntimeError, struct.error) as err:  # the last three: a file that was cut off
        log.error("metrics of process %d cannot be folded: %s", pid, err)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, who has its number now
    return True


def _fold(left: Path, into: Path) -> None:
    if not left.exists() or not left.stat().st_size:
        left.unlink(missing_ok=True)
        return
    sums: dict[str, float] = {}
    for path in (into, left):
        if path.exists():
            for key, value, *_ in MmapedDict.read_all_values_from_file(str(path)):
                sums[key] = sums.get(key, 0.0) + value
    written = into.with_suffix(".folding")  # no scrape reads what is not called *.db
    written.unlink(missing_ok=True)
    _allocate(written, sum(len(key.encode()) + ENTRY_BYTES for key in sums) + ENTRY_BYTES)
    file = MmapedDict(str(written))
    for key, value in sums.items():
        file.write_value(key, value, 0.0)
    file.close()
    written.replace(into)
    left.unlink()


@contextmanager
def _locked(metrics_dir: Path, how: int) -> Iterator[None]:
    """Nobody reads while files are folded: a row would count twice, or not at all."""
    handle = os.open(metrics_dir / "fold.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


class ServiceCollector:
    """What the notes of a service say, as gauges: the same whichever process reads them."""

    def __init__(self, roster: Roster, state_dir: Path, spool_limit_bytes: int) -> None:
        self._roster = roster
        self._state_dir = state_dir
        self._spool_limit_bytes = spool_limit_bytes

    def collect(self) -> Iterator[Metric]:
        """Every gauge that is no process's own."""
        workers = Workers(self._state_dir)
        said = [notes.read(workers.note(worker)) or {} for worker in workers.living()]
        yield _gauge("ml_workers", "Living workers of this service.", (), [((), len(said))])
        yield from self._processes()
        yield from self._versions(said)
        yield from self._registry()
        yield from self._reference()
        yield from self._ledger()

    def _processes(self) -> Iterator[Metric]:
        """Under the names that every exporter gives them, but of all processes together."""
        master = (notes.read(self._state_dir / "service.json") or {}).get("pid")
        if master is None or not (pids := processes.tree(master)):
            return
        seconds = CounterMetricFamily("process_cpu_seconds", "CPU time of all processes of the service.")
        seconds.add_metric((), processes.cpu_seconds(master))
        yield seconds
        memory = processes.memory_bytes(pids)
        yield _gauge("process_resident_memory_bytes", "Memory of all processes, shared pages once.", (), [((), memory)])

    def _versions(self, said: list[dict[str, Any]]) -> Iterator[Metric]:
        serving: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for note in said:
            for name, live in (*note.get("challengers", {}).items(), *note.get("models", {}).items()):
                serving.setdefault((name, live["version"]), []).append(live)
        info = [
            ((name, version, lives[-1]["alias"] or "", *(lives[-1][key] for key in ("source", "runtime", "digest"))), 1)
            for (name, version), lives in serving.items()
        ]
        loaded = [(name, [name in note.get("models", {}) for note in said]) for name in self._roster.names]
        since = [(key, max(_timestamp(live["loaded_at"]) for live in lives)) for key, lives in serving.items()]
        counts = [(key, len(lives)) for key, lives in serving.items()]
        about = ("model", "version", "alias", "source", "runtime", "digest")
        version = ("model", "version")
        yield _gauge("ml_model_info", "1 for each version that a worker serves.", about, info)
        yield _gauge("ml_model_workers", "Workers that serve a version.", version, counts)
        yield _gauge(
            "ml_model_loaded",
            "1 where every worker serves a version of the model.",
            ("model",),
            [((name,), float(bool(has) and all(has))) for name, has in loaded],
        )
        yield _gauge(
            "ml_model_loaded_timestamp_seconds",
            "When the last worker loaded a version, in seconds since 1970.",
            version,
            since,
        )

    def _registry(self) -> Iterator[Metric]:
        reachable, checked, fallback = [], [], []
        for name in self._roster.names:
            status = notes.read(ModelState(self._state_dir, name).status) or {}
            registry = status.get("registry") or {}
            reachable.append(((name,), float(bool(registry.get("reachable")))))
            if answered_at := registry.get("answered_at"):
                checked.append(((name,), _timestamp(answered_at)))
            used = self._fallback(name, registry)
            fallback += [((name, kind), float(kind == used)) for kind in FALLBACKS]
        yield _gauge("ml_registry_reachable", "1 where the registry answered last time.", ("model",), reachable)
        yield _gauge(
            "ml_alias_checked_timestamp_seconds",
            "When the registry last said what to serve, in seconds since 1970.",
            ("model",),
            checked,
        )
        yield _gauge(
            "ml_fallback_in_use",
            "1 for what is lived on while the registry gives nothing.",
            ("model", "kind"),
            fallback,
        )

    def _fallback(self, name: str, registry: dict[str, Any]) -> str | None:
        desired = notes.read(ModelState(self._state_dir, name).desired)
        if desired is None:
            return None
        if desired["source"] == "local":
            return "local_files"
        return "last_good_copy" if registry.get("error") else None

    def _reference(self) -> Iterator[Metric]:
        """What training knew of the live versions' rows, to be compared with what is counted."""
        ratios, missing, outputs, thresholds, output_thresholds = [], [], [], [], []
        for name in self._roster.names:
            desired, profile = live_profile(ModelState(self._state_dir, name))
            for bins in profile.get("features", ()):
                of = (name, desired["version"], bins["name"])
                ratios += [((*of, label), ratio) for label, ratio in zip(bins["bins"], bins["ratios"], strict=True)]
                missing.append((of, bins["missing"]))
                thresholds += [(of, bins["threshold"])] if bins["threshold"] is not None else []
            for bins in profile.get("outputs", ()):
                of = (name, desired["version"], bins["name"])
                outputs += [((*of, label), ratio) for label, ratio in zip(bins["bins"], bins["ratios"], strict=True)]
                output_thresholds += [(of, bins["threshold"])] if bins["threshold"] is not None else []
        version = ("model", "version")
        yield _gauge("ml_reference_bin_ratio", "Share of training rows in a bin.", (*version, "feature", "bin"), ratios)
        yield _gauge(
            "ml_reference_missing_ratio", "Share of training rows without a value.", (*version, "feature"), missing
        )
        yield _gauge(
            "ml_reference_prediction_ratio",
            "Share of answers to known rows in a bin.",
            (*version, "output", "bin"),
            outputs,
        )
        yield _gauge("ml_drift_threshold", "PSI above which a feature drifts.", (*version, "feature"), thresholds)
        yield _gauge(
            "ml_prediction_drift_threshold",
            "PSI above which answers have shifted.",
            (*version, "output"),
            output_thresholds,
        )

    def _ledger(self) -> Iterator[Metric]:
        ledger = LedgerState(self._state_dir)
        status = notes.read(ledger.status)
        if status is not None and status["reachable"] is not None:
            yield _gauge(
                "ml_ledger_reachable",
                "1 where the ledger's database answered last time.",
                (),
                [((), float(bool(status["reachable"])))],
            )
        yield _gauge(
            "ml_ledger_spool_bytes",
            "Bytes that wait on disk for the ledger's database.",
            (),
            [((), _bytes_in(ledger.spool))],
        )
        yield _gauge(
            "ml_ledger_spool_limit_bytes",
            "Bytes that may wait; beyond them rows are lost.",
            (),
            [((), self._spool_limit_bytes)],
        )
        yield from _quality((status or {}).get("quality") or [])
        yield from self._gates()

    def _gates(self) -> Iterator[Metric]:
        gates = []
        for name in self._roster.names:
            desired, profile = live_profile(ModelState(self._state_dir, name))
            gates += [((name, desired["version"], metric), limit) for metric, limit in profile.get("gate", {}).items()]
        yield _gauge("ml_quality_gate", "What the gate asked for at training.", ("model", "version", "metric"), gates)


def live_profile(state: ModelState) -> tuple[dict[str, Any], dict[str, Any]]:
    """The note of what is desired, and the profile of that version; both empty where there is none."""
    desired = notes.read(state.desired)
    if desired is None:
        return {}, {}
    return desired, notes.read(state.home / desired["bundle"] / "profile.json") or {}


def _quality(versions: list[dict[str, Any]]) -> Iterator[Metric]:
    of = ("model", "version")
    keys = [(one["model"], one["version"]) for one in versions]
    measured = [
        ((one["model"], one["version"], metric), one[metric])
        for one in versions
        for metric in MEASURES
        if one[metric] is not None
    ]
    yield _gauge("ml_quality", "How right the answers were, by what turned out to be true.", (*of, "metric"), measured)
    for name, help, key in (
        ("ml_quality_labelled_rows", "Rows whose truth is known, in the quality window.", "labelled_rows"),
        ("ml_quality_predicted_rows", "Rows in the ledger, in the quality window.", "predicted_rows"),
        ("ml_quality_coverage_ratio", "Share of rows whose truth is known.", "coverage"),
        ("ml_quality_label_delay_seconds", "Mean time from a prediction to its label.", "label_delay_s"),
    ):
        values = [(of_version, one[key]) for of_version, one in zip(keys, versions, strict=True)]
        yield _gauge(name, help, of, [(of_version, value) for of_version, value in values if value is not None])


def _gauge(name: str, help: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _bytes_in(folder: Path) -> int:
    total = 0
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    total += entry.stat().st_size
                except FileNotFoundError:
                    continue  # written to the database meanwhile
    return total
