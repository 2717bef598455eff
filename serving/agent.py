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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from prometheus_client import CollectorRegistry

from serving import notes, telemetry
from serving.bell import Bell, ring
from serving.bundle import Bundle
from serving.child import prepare_in_child
from serving.errors import SettingError
from serving.exposition import Exposition, claim
from serving.follower import Challenge, Follower
from serving.metrics import Metrics
from serving.probation import Bounds, Probation, roll_back_in_child
from serving.registry import Auth, LocalFiles, Ref, Version, registry_at
from serving.roster import Roster
from serving.routing import CHALLENGER, Part
from serving.shadow import Task
from serving.shadows import ShadowKeeper
from serving.state import LedgerState, Lock, ModelState, bell_of

ROOT = Path(__file__).resolve().parent.parent
WRITER_END_S = 3.0
ROSTER_S = 0.25
ANSWER_LOOK_S = 0.01

log = logging.getLogger("serving.agent")


@dataclass(frozen=True)
class Ledger:
    """How the ledger is kept. Its database's URL, which may hold a password, travels by environment."""

    keep_days: float
    max_rows: int
    sample: float = 1.0  # this and what follows: of what a shadow answers
    omit: tuple[str, ...] = ()
    spool_bytes: int = 256 * 1024 * 1024


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
    challenger: str  # the part of a challenger whose tag says none
    url: str  # where the service listens
    log_level: str
    log_format: str
    ledger: Ledger | None = None  # without: nothing is recorded
    bounds: Bounds | None = None  # of a version's probation; without: it has none


# --- the process -----------------------------------------------------------------------------------------------------


def run(config: Config, auth: Auth, database_url: str, stop: threading.Event) -> None:
    """Follow every model of ``config`` and write the ledger until ``stop``, each in a thread of its own."""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if shared:
        claim(Path(shared), os.getpid())
    metrics = Metrics(CollectorRegistry())
    roster = Roster(config.models, Path(config.state_dir))
    contests = partial(_contests, roster, Path(config.state_dir))
    writer = _start_writer(config, database_url, metrics, contests, stop) if config.ledger is not None else None
    followers = _Followers(config, auth, metrics, stop, Path(shared) if shared else None)
    bell = Bell(bell_of(Path(config.state_dir)))
    while not stop.is_set():
        followers.follow([Ref.parse(text) for text in roster()])
        if bell.wait(ROSTER_S):
            followers.wake()
    followers.join()
    bell.close()
    if writer is not None:
        writer.join(WRITER_END_S)  # what it does not write now it writes at the next start


class _Followers:
    """Threads for each model: for it, for its challenger, for that one's shadow, and for a new version's probation."""

    def __init__(
        self, config: Config, auth: Auth, metrics: Metrics, stop: threading.Event, metrics_dir: Path | None
    ) -> None:
        self._config = config
        self._metrics_dir = metrics_dir
        self._metrics = metrics
        self._stop = stop
        self._stops: dict[str, threading.Event] = {}
        self._following: dict[str, list[Follower]] = {}
        self._registry = registry_at(config.tracking_uri, auth)
        self._local = LocalFiles(Path(config.model_dir))
        self._threads: list[threading.Thread] = []

    def follow(self, refs: Sequence[Ref]) -> None:
        """Follow these models from now on, and no others."""
        for name in self._stops.keys() - {ref.name for ref in refs}:
            self._stops.pop(name).set()
            _wake(self._following.pop(name))
        for ref in refs:
            if ref.name not in self._stops:
                self._stops[ref.name] = stop = threading.Event()
                self._following[ref.name] = []
                self._threads = [thread for thread in self._threads if thread.is_alive()]
                self._begin(ref, stop)

    def wake(self) -> None:
        """Have every model looked at that is asked for."""
        for followers in self._following.values():
            _wake(followers)

    def _begin(self, ref: Ref, stop: threading.Event) -> None:
        config, folder = self._config, Path(self._config.state_dir)
        champion, challenger = ModelState(folder, ref.name), ModelState(folder, ref.name, ModelState.CHALLENGER)
        one = len(config.models) == 1 and ref.name == Ref.parse(config.models[0]).name
        url = f"{config.url}/predict" if one else f"{config.url}/models/{quote(ref.name)}/predict"
        self._follow(self._follower(ref, champion, challenger.bundles, url=url), stop)
        if ref.alias in (None, CHALLENGER):
            return
        challenge = Challenge(champion, Part.parse(config.challenger))
        rival = self._follower(Ref(ref.name, CHALLENGER), challenger, champion.bundles, challenge=challenge)
        self._follow(rival, stop)
        self._start(ShadowKeeper(self._shadow(ref.name), self._metrics).keep, stop)
        if config.bounds is not None and self._metrics_dir is not None:
            self._start(self._probation(ref.name, ref.alias, config.bounds, self._metrics_dir).watch, stop)

    def _follow(self, follower: Follower, stop: threading.Event) -> None:
        self._following[follower.ref.name].append(follower)
        self._start(follower.follow, stop, self._config.poll_interval_s)

    def _start(self, work: Callable[..., None], *given: Any) -> None:
        thread = threading.Thread(target=work, args=given)
        thread.start()
        self._threads.append(thread)

    def _follower(self, ref: Ref, state: ModelState, others: Path, **more: Any) -> Follower:
        _remove_leftovers(state)
        return Follower(
            ref,
            self._registry,
            self._local,
            state,
            self._prepare,
            keep_bundles=self._config.keep_bundles,
            on_failure=partial(_count_failure, self._metrics, ref.name),
            others=others,
            **more,
        )

    def _shadow(self, name: str) -> Task:
        config, ledger = self._config, self._config.ledger
        return Task(
            model=name,
            bundle="",
            state_dir=config.state_dir,
            log_level=config.log_level,
            log_format=config.log_format,
            ledger_sample=ledger.sample if ledger else 0.0,
            ledger_omit=ledger.omit if ledger else (),
            ledger_spool_bytes=ledger.spool_bytes if ledger else 0,
        )

    def _probation(self, name: str, alias: str, bounds: Bounds, metrics_dir: Path) -> Probation:
        folder = Path(self._config.state_dir)
        counted = Exposition(Roster(self._config.models, folder), folder, metrics_dir)
        return Probation(
            name,
            alias,
            folder,
            bounds,
            counted.collect,
            partial(roll_back_in_child, self._config.tracking_uri),
            on_rollback=partial(_count_rollback, self._metrics, name),
            look=partial(look, ModelState(folder, name)),
        )

    def _prepare(self, version: Version, into: Path) -> Bundle:
        return prepare_in_child(version, self._config.tracking_uri, into, self._config.prepare_timeout_s, self._stop)

    def join(self) -> None:
        """Stop, and wait until every thread has seen it."""
        self.follow([])
        for thread in self._threads:
            thread.join()


def _wake(followers: Sequence[Follower]) -> None:
    for follower in followers:
        follower.wake()


def _count_failure(metrics: Metrics, model: str, reason: str) -> None:
    metrics.load_failures.labels(model, reason).inc()


def _count_rollback(metrics: Metrics, model: str, reason: str) -> None:
    metrics.rollbacks.labels(model, reason).inc()


def _contests(roster: Roster, state_dir: Path) -> list[Any]:
    """What champions and challengers are live, and since when they are compared."""
    from serving.ledger.contests import Contest

    found = []
    for name in roster.names:
        champion = notes.read(ModelState(state_dir, name).desired) or {}
        challenger = notes.read(ModelState(state_dir, name, ModelState.CHALLENGER).desired) or {}
        if champion.get("version") and challenger.get("bundle"):
            found.append(Contest(name, champion["version"], challenger["version"], challenger["since"]))
    return found


def _start_writer(
    config: Config, url: str, metrics: Metrics, contests: Callable[[], list[Any]], stop: threading.Event
) -> threading.Thread | None:
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
    keep_days, max_rows = config.ledger.keep_days, config.ledger.max_rows
    try:
        state = LedgerState(Path(config.state_dir))
        writer = Writer(url, state, hooks=hooks, keep_days=keep_days, max_rows=max_rows, contests=contests)
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
    ledger = Ledger(**{**plain["ledger"], "omit": tuple(plain["ledger"]["omit"])}) if plain["ledger"] else None
    bounds = Bounds(**plain["bounds"]) if plain["bounds"] else None
    config = Config(**{**plain, "models": tuple(plain["models"]), "ledger": ledger, "bounds": bounds})
    telemetry.log_to_stdout(config.log_level, config.log_format)
    stop = threading.Event()

    def watch() -> None:
        os.read(sys.stdin.fileno(), 1)
        stop.set()
        ring(bell_of(Path(config.state_dir)))

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


def look(state: ModelState) -> str:
    """Have the agent look now, without waiting for it; what the asking is called."""
    ask_id = uuid.uuid4().hex
    state.asks.mkdir(parents=True, exist_ok=True)
    (state.asks / ask_id).touch()
    ring(state.bell)
    return ask_id


def ask(state: ModelState, timeout_s: float) -> dict[str, Any] | None:
    """Have the agent look now; its outcome, or None when there was none in time."""
    ask_id = look(state)
    answer = state.answers / ask_id
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        outcome = notes.read(answer)
        if outcome is not None:
            answer.unlink(missing_ok=True)
            return outcome
        time.sleep(ANSWER_LOOK_S)
    (state.asks / ask_id).unlink(missing_ok=True)
    return None


if __name__ == "__main__":
    main()
