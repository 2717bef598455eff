"""gunicorn's configuration, used as ``gunicorn -c python:serving.gunicorn_conf 'app:create_app()'``."""

from __future__ import annotations

import gc
import logging
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving import notes, processes, telemetry
from serving.roster import Roster
from serving.settings import Settings
from serving.state import LedgerState, Lock
from serving.worker import DrainingWorker, InlineWorker, unfamiliar

settings = Settings.from_env()


def cpu_limit() -> int:
    """Whole CPUs that this process may use: the cgroup's limit or the affinity, whichever is less; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_file, period_file in (
        ("/sys/fs/cgroup/cpu.max", None),
        ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
    ):
        try:
            words = Path(quota_file).read_text(encoding="ascii").split()
            period = words[1] if period_file is None else Path(period_file).read_text(encoding="ascii")
            quota = int(words[0])
        except (OSError, ValueError, IndexError):
            continue  # no such cgroup version here, or "max": no limit
        if quota > 0:
            allowed = min(allowed, quota // int(period))
    return max(1, allowed)


# Metrics are shared through files; prometheus_client looks for this variable when it is imported.
metrics_dir = Path(settings.prometheus_multiproc_dir or settings.state_dir / "metrics").absolute()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics_dir)

host = f"[{settings.bind_address}]" if ":" in settings.bind_address else settings.bind_address
bind = f"{host}:{settings.port}"
workers = settings.web_concurrency or cpu_limit()
threads = settings.threads  # for what the loop does not answer; with one, a reload would hold up the probes
_changed = unfamiliar()
worker_class = DrainingWorker if _changed else InlineWorker
DrainingWorker.drain_s = settings.drain_s
graceful_timeout = int(settings.drain_s) + 30
timeout = 60  # a heartbeat of the worker's loop; it does not bound a request
keepalive = 75  # longer than the usual idle time of balancers, so that they close first
backlog = 512
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None
control_socket_disable = True
forwarded_allow_ips = "127.0.0.1,::1"
accesslog = None  # the application writes one line a request itself
logconfig_dict: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "WARNING", "handlers": []},
    "loggers": {"gunicorn.error": {"level": "WARNING", "handlers": [], "propagate": True}},
}

# How long a thread may keep the loop from answering, while it loads a version or writes the log; Python's own is 5 ms.
SWITCH_S = 0.001

LEDGER_END_S = 10

_service_lock = Lock(settings.state_dir / "service.lock")
_own_sockets: list[socket.socket] = []  # the master's, which no worker needs
log = logging.getLogger("serving.gunicorn")


def on_starting(server: Any) -> None:
    """Before the first worker: claim the state folder and begin with no metrics."""
    processes.adopt_orphans()  # an agent outlives its worker for a moment, and what it cost must not be forgotten
    telemetry.log_to_stdout(settings.log_level, settings.log_format)
    logging.getLogger("gunicorn.error").setLevel(logging.WARNING)
    if "GUNICORN_PID" in os.environ:
        return  # we replace a running service (USR2), whose folder and metrics these are
    if not _service_lock.acquire():
        print(f"another service uses {settings.state_dir}; give each its own STATE_DIR", file=sys.stderr)
        raise SystemExit(1)
    started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    notes.write(settings.state_dir / "service.json", {"pid": os.getpid(), "started_at": started_at})
    metrics_dir.mkdir(parents=True, exist_ok=True)
    for left in metrics_dir.glob("*.db"):  # of the service before us; whatever else lies there is not ours
        left.unlink()


def when_ready(server: Any) -> None:
    """The sockets are open."""
    if _changed:
        log.warning("every request takes the pool: this gunicorn has another %s", ", ".join(_changed))
    log.info(
        "listening on %s with %d workers of %d threads; serving %s",
        settings.url,
        server.num_workers,
        settings.threads,
        ", ".join(settings.models),
    )
    if settings.metrics_port:
        _serve_metrics()


def _serve_metrics() -> None:
    """``/metrics`` from the master, which answers however busy the workers are."""
    from serving.exposition import Exposition, serve

    roster = Roster(settings.models, settings.state_dir)
    exposition = Exposition(roster, settings.state_dir, metrics_dir, spool_limit_bytes=settings.ledger_spool_bytes)
    try:
        _own_sockets.append(serve(exposition, settings.bind_address, settings.metrics_port).socket)
    except OSError as err:
        log.error("METRICS_PORT %d cannot be used: %s", settings.metrics_port, err.strerror)
    else:
        log.info("metrics on port %d too", settings.metrics_port)


def post_fork(server: Any, worker: Any) -> None:
    """In the worker, before anything else: what is the master's is not ours to keep open."""
    from serving.exposition import claim

    for own in _own_sockets:
        own.close()
    claim(metrics_dir, os.getpid())


def post_worker_init(worker: Any) -> None:
    """In the worker, before its first request: what is there now stays, so the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_S)


def child_exit(server: Any, worker: Any) -> None:
    """A worker is gone: its gauges no longer count, what it counted stays."""
    from serving.exposition import fold_if_possible

    fold_if_possible(metrics_dir, worker.pid)


def on_exit(server: Any) -> None:
    """In the master, after all workers: what they left for the ledger goes into its database, if that answers."""
    ledger = LedgerState(settings.state_dir)
    left = [path for folder in (ledger.spool, ledger.asks) if folder.is_dir() for path in folder.iterdir()]
    if not left or server.reexec_pid:
        return  # whoever replaces us (USR2) has them now
    log.info("writing %d pages to the ledger", len(left))
    command = [sys.executable, "-m", "serving.ledger", "drain", "--timeout", str(LEDGER_END_S)]
    try:
        done = subprocess.run(command, start_new_session=True, check=False, timeout=LEDGER_END_S + 10)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode != 0:
        log.warning("some pages are left in %s, for the next start", ledger.spool)


def worker_exit(server: Any, worker: Any) -> None:
    """In the worker, at its end: the agent ends with its keeper, and the worker no longer counts as living."""
    service = getattr(getattr(worker, "wsgi", None), "extensions", {}).get("service")
    if service is not None:
        service.close()
