"""The agent: one process per pod that follows aliases, has new versions prepared, and writes what is desired.

Workers keep it alive (`Keeper`) and ask it to look now (`ask`); they never wait for it to answer a prediction.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prometheus_client import CollectorRegistry

from serving import notes, telemetry
from serving.bundle import Bundle
from serving.child import prepare_in_child
from serving.errors import SettingError
from serving.exposition import claim
from serving.follower import TICK_S, Follower
from serving.metrics import Metrics
from serving.registry import Auth, LocalFiles, Ref, Version, registry_at
from serving.state import LedgerState, Lock, ModelState

ROOT = Path(__file__).resolve().parent.parent
WRITER_END_S = 3.0

log = logging.getLogger("serving.agent")


@dataclass(frozen=True)
class Ledger:
    """How the ledger is kept. Its database's URL, which may hold a password, travels by environment."""

    keep_days: float
    max_rows: int


@dataclass(frozen=True)
class Config:
    """What an agent is told, by plain values so that it can cross a process boundary. Secrets travel by environment."""

    models: tuple[str, ...]
    state_dir: str
    model_dir: str
    tracking_uri: str
    poll_interval_s: float
    prepare_timeout_s: float
    keep_bundles: int
    url: str  # where the service listens
    log_level: str
    log_format: str
    ledger: Ledger | None = None  # without: nothing is recorded


# --- the process -----------------------------------------------------------------------------------------------------


def run(config: Config, auth: Auth, database_url: str, stop: threading.Event) -> None:
    """Follow every model of ``config`` and write the ledger until ``stop``, each in a thread of its own."""
    if shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        claim(Path(shared), os.getpid())
    metrics = Metrics(CollectorRegistry())
    writer = _start_writer(config, database_url, metrics, stop) if config.ledger is not None else None
    registry = registry_at(config.tracking_uri, auth)
    local = LocalFiles(Path(config.model_dir))

    def prepare(version: Version, into: Path) -> Bundle:
        return prepare_in_child(version, config.tracking_uri, into, config.prepare_timeout_s, stop)

    threads = []
    for text in config.models:
        ref = Ref.parse(text)
        state = ModelState(Path(config.state_dir), ref.name)
        _remove_leftovers(state)
        url = f"{config.url}/predict" if len(config.models) == 1 else f"{config.url}/models/{quote(ref.name)}/predict"
        follower = Follower(
            ref,
            registry,
            local,
            state,
            prepare,
            keep_bundles=config.keep_bundles,
            url=url,
            on_failure=partial(_count_failure, metrics, ref.name),
        )
        threads.append(
            threading.Thread(target=follower.follow, args=(stop, config.poll_interval_s), name=f"follow-{ref.name}")
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if writer is not None:
        writer.join(WRITER_END_S)  # what it does not write now it writes at the next start


def _count_failure(metrics: Metrics, model: str, reason: str) -> None:
    metrics.load_failures.labels(model, reason).inc()


def _start_writer(config: Config, url: str, metrics: Metrics, stop: threading.Event) -> threading.Thread | None:
    """The ledger's writer at work; None where its database cannot be one, which stops nothing else."""
    from serving.ledger.writer import Hooks, Writer  # brings SQLAlchemy

    assert config.ledger is not None
    ledger = metrics.ledger
    hooks = Hooks(
        written=ledger.written_rows.inc,
        lost=lambda rows, reason: ledger.lost_rows.labels(reason).inc(rows),
        label=lambda model, outcome, labels: ledger.labels.labels(model, outcome).inc(labels),
        delay=lambda model, seconds: ledger.delay_s.labels(model).observe(seconds),
    )
    limits = asdict(config.ledger)
    try:
        writer = Writer(url, LedgerState(Path(config.state_dir)), hooks=hooks, **limits)
    except SettingError as err:
        log.error("there is no ledger: %s", err)
        return None
    thread = threading.Thread(target=writer.run, args=(stop,), name="ledger-writer", daemon=True)
    thread.start()
    return thread


def _remove_leftovers(state: ModelState) -> None:
    """What an agent that was killed left half done; asks stay, for they still want an answer."""
    for path in state.bundles.glob(".prepare-*"):
        shutil.rmtree(path, ignore_errors=True)


def main() -> None:
    """Run the agent that the command line's JSON describes, until standard input closes: its keeper is gone then."""
    plain = json.loads(sys.argv[1])
    ledger = Ledger(**plain["ledger"]) if plain["ledger"] else None
    config = Config(**{**plain, "models": tuple(plain["models"]), "ledger": ledger})
    telemetry.log_to_stdout(config.log_level, config.log_format)
    stop = threading.Event()

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    database_url = os.environ.pop("DATABASE_URL", "")  # no version that is prepared needs to know it
    run(config, Auth.from_env(), database_url, stop)
    os._exit(0)


# --- in the workers --------------------------------------------------------------------------------------------------


class Keeper:
    """Keeps the one agent of a pod alive. Every worker has one; the lock decides whose works.

    The agent holds the lock together with its keeper: after a keeper's death the next one waits until the agent, which
    ends with its keeper, is gone too. So there are never two.
    """

    CHECK_S = 0.5

    def __init__(
        self,
        config: Config,
        environment: dict[str, str] | None = None,
        before_start: Callable[[], object] | None = None,
    ) -> None:
        """``environment`` is added to ours for the agent: the way for secrets.

        ``before_start`` is called when no agent is there and the next one is about to be started.
        """
        self._config = config
        self._environment = environment or {}
        self._before_start = before_start
        self._lock = Lock(Path(config.state_dir) / "agent.lock")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="agent-keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the agent if it is ours."""
        self._stop.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._stop.is_set():
            if not self._lock.acquire():
                self._stop.wait(self.CHECK_S)
                continue
            try:
                if self._before_start is not None:
                    self._before_start()
                self._run_agent()
            except OSError as err:
                log.error("the agent cannot be started: %s", err.strerror)
            finally:
                self._lock.release()
            self._stop.wait(self.CHECK_S)

    def _run_agent(self) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        agent = subprocess.Popen(
            [sys.executable, "-m", "serving.agent", json.dumps(asdict(self._config))],
            stdin=subprocess.PIPE,
            env={**os.environ, **self._environment, "PYTHONPATH": os.pathsep.join(paths)},
            pass_fds=(self._lock.fileno(),),
            start_new_session=True,  # Ctrl-C goes to the service, which ends its agent in order
        )
        assert agent.stdin is not None
        while agent.poll() is None and not self._stop.is_set():
            self._stop.wait(0.1)
        agent.stdin.close()
        try:
            agent.wait(timeout=5)
        except subprocess.TimeoutExpired:
            agent.kill()
            agent.wait()
        if not self._stop.is_set():
            log.error("the agent ended with code %s; starting it again", agent.returncode)


def ask(state: ModelState, timeout_s: float) -> dict[str, Any] | None:
    """Have the agent look now; its outcome, or None when there was none in time."""
    ask_id = uuid.uuid4().hex
    state.asks.mkdir(parents=True, exist_ok=True)
    (state.asks / ask_id).touch()
    answer = state.answers / ask_id
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        outcome = notes.read(answer)
        if outcome is not None:
            answer.unlink(missing_ok=True)
            return outcome
        time.sleep(TICK_S / 2)
    (state.asks / ask_id).unlink(missing_ok=True)
    return None


if __name__ == "__main__":
    main()
