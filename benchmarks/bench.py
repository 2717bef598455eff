"""``python -m benchmarks.bench``: every server in turn, in several rounds; prints the report and writes it.

``ROUNDS`` (3), ``SECONDS`` of each run (3), ``ONLY`` a comma list of servers; a bench of some only prints.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException

import numpy as np

from benchmarks import answers, load, models, report
from benchmarks.environments import NotInstalled
from benchmarks.load import Measured
from benchmarks.models import VERSIONS, Model
from benchmarks.peers import BY_NAME, PEERS, ROOT, Peer, Place
from benchmarks.processes import Failed, Server, free_port, post
from benchmarks.results import Case, Results

HOME = ROOT / ".bench"
DOCUMENT = ROOT / "docs" / "BENCHMARKS.md"
SERVER_CORE, LOAD_CORE = "0", "1"
CORES = os.sched_getaffinity(0)
ROWS, CONNECTIONS = (1, 1_000), (1, 16)
CURVE_ROWS = (1, 10, 100, 1_000, 10_000, 100_000)
FLIP_S = 6.0  # at least: fewer flips tell nothing of tails
CHECKED_ROWS = 20
WARM_S = 1.0
LONGEST_S = 25 * 60.0  # of all rounds
INSTALLS_AT_ONCE = 3


class Bench:
    """One run of everything; `results` fills as it goes."""

    def __init__(self, peers: list[Peer], rounds: int, seconds: float) -> None:
        self.peers, self.rounds, self.seconds = peers, rounds, seconds
        self.results = Results()
        self.models: dict[str, Model] = {}

    def run(self) -> Results:
        """Install, train, measure."""
        say("models: trained and logged once with MLflow")
        self.models = models.prepare(HOME)
        with ThreadPoolExecutor(INSTALLS_AT_ONCE) as pool:
            installed = list(pool.map(self._installed, self.peers))
        self.peers = [peer for peer, there in zip(self.peers, installed, strict=True) if there]
        began = time.monotonic()
        for turn in range(self.rounds):
            if another_fits(turn, time.monotonic() - began):
                self._round(turn)
                self.results.rounds += 1
            else:
                say(f"no time for round {turn + 1}")
        return self.results

    def _round(self, turn: int) -> None:
        """Every server once; another one begins each time."""
        first = turn % len(self.peers)
        for model in self.models.values():
            for peer in self.peers[first:] + self.peers[:first]:
                if not peer.floor or model.name == "forest":
                    say(f"round {turn + 1} of {self.rounds}: {model.name}, {peer.title}")
                    self._guarded(self._visit, peer, model)
        if BY_NAME["ours"] in self.peers:
            say(f"round {turn + 1} of {self.rounds}: one worker and two")
            self._guarded(self._scale, BY_NAME["ours"], self.models["forest"])

    def _installed(self, peer: Peer) -> bool:
        environment = peer.environment(HOME)
        try:
            if peer.venv:
                say(f"{peer.title}: its environment")
                environment.install()
            self.results.versions[peer.name] = environment.versions(peer.shown)
            return True
        except NotInstalled as err:
            say(f"{peer.title}: {err}")
            self.results.absent[peer.name] = str(err)
            return False

    def _guarded(self, visit: object, peer: Peer, model: Model) -> None:
        """A server that fails is told of, and the others go on."""
        try:
            visit(peer, model)
        except (Failed, answers.Wrong, load.Unusable, OSError, HTTPException, ValueError, LookupError) as err:
            self._fault(peer, f"{model.name}: {err}")

    def _fault(self, peer: Peer, what: str) -> None:
        say(f"  does not count: {what}")
        self.results.faults.append(f"{peer.title}, {what}")

    # --- one server ---------------------------------------------------------------------------------------------------

    def _visit(self, peer: Peer, model: Model) -> None:
        if peer.name == "ours":
            peer.forget(place_of(peer, model))
            with self._started(peer, model, f"{model.name}, unprepared"):
                pass
        with self._started(peer, model, model.name) as asked:
            asked.check()
            cases = [Case(model.name, rows, connections) for rows in ROWS for connections in CONNECTIONS]
            asked.load(cases[0], WARM_S)
            for case in cases if not peer.floor else cases[:2]:
                self._measure(asked, case, self.seconds)
            self.results.memory_mb[peer.name, model.name].append(asked.server.memory_mb())
            if peer.name == "ours" and model.name == "forest":
                self._flips(asked)
                self._curve(asked)
            asked.check()

    @contextmanager
    def _started(self, peer: Peer, model: Model, what: str) -> Iterator[Asked]:
        place = place_of(peer, model)
        server = Server.start(peer.start(place), place.port, SERVER_CORE)
        asked = Asked(peer, model, server)
        try:
            took_s = server.await_answer(peer.path, peer.body(models.some_rows(1)))
            self.results.starts[peer.name, what].append(took_s)
            yield asked
        finally:
            server.stop()

    def _measure(self, asked: Asked, case: Case, seconds: float, cores: str = LOAD_CORE) -> None:
        self._keep(asked.peer, case, asked.load(case, seconds, cores))

    def _keep(self, peer: Peer, case: Case, run: Measured) -> None:
        say(f"  {case}: {run.rate:,.0f} /s, p50 {run.p50_ms:.2f} ms, p99 {run.p99_ms:.2f} ms")
        if run.fault:
            self._fault(peer, f"{case}: {run.fault}")
        self.results.loads[peer.name, case].append(run)

    # --- ours alone ---------------------------------------------------------------------------------------------------

    def _flips(self, asked: Asked) -> None:
        """The alias goes to and fro while callers wait; every answer must be that of one of the two versions."""
        case = Case(asked.model.name, 1, 16, flips=True)
        command = [sys.executable, "-m", "benchmarks.flip", asked.model.uri, asked.model.name, str(asked.server.port)]
        flipper = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            flipper.stdout.readline()
            asked.learn_both(case.rows)
            flipper.stdin.write("go\n")
            flipper.stdin.flush()
            run = asked.load(case, max(FLIP_S, self.seconds))
            output, _ = flipper.communicate("stop\n", timeout=30)
        finally:
            flipper.kill()
            asked.show("1")
        fault, count = flips_fault(output, max(FLIP_S, self.seconds))
        if fault:
            self._fault(asked.peer, f"{case}: {fault}")
        else:
            self.results.flips += count
            self._keep(asked.peer, case, run)

    def _curve(self, asked: Asked) -> None:
        for rows in CURVE_ROWS:
            case = Case(asked.model.name, rows, 1)
            if rows not in ROWS:  # those are measured anyway
                self._measure(asked, case, max(2.0, 4 * asked.takes_s(rows)))

    def _scale(self, peer: Peer, model: Model) -> None:
        """One worker and two, both with two cores; wrk takes what the machine has beside them, or shares them."""
        for workers in (1, 2):
            place = place_of(peer, model)
            start = peer.start(place)
            start.environment["WEB_CONCURRENCY"] = str(workers)
            server = Server.start(start, place.port, "0,1")
            try:
                server.await_answer(peer.path, peer.body(models.some_rows(1)))
                asked = Asked(peer, model, server)
                asked.await_workers(workers)
                for rows in (1, 1_000):
                    self._measure(asked, Case(model.name, rows, 16, workers=workers), self.seconds, cores_beside())
            finally:
                server.stop()


class Asked:
    """A server that runs, and what its right answers look like."""

    def __init__(self, peer: Peer, model: Model, server: Server) -> None:
        self.peer, self.model, self.server = peer, model, server
        self._fragments: dict[int, list[bytes]] = {}

    def load(self, case: Case, seconds: float, cores: str = LOAD_CORE) -> Measured:
        """Load with answers that are looked at; the first ones are compared with scikit-learn's."""
        rows = models.some_rows(case.rows)
        if case.rows not in self._fragments:
            self._fragments[case.rows] = [self._learn(rows)]
        return load.run(
            f"http://127.0.0.1:{self.server.port}{self.peer.path}",
            self.peer.body(rows),
            self._fragments[case.rows],
            connections=case.connections,
            duration_s=seconds,
            cores=cores,
            folder=HOME / "load",
        )

    def takes_s(self, rows: int) -> float:
        """How long one answer takes to so many rows."""
        started = time.perf_counter()
        self._ask(models.some_rows(rows))
        return time.perf_counter() - started

    def check(self, version: str = "1") -> None:
        """Rows one by one and many at once. Raises `Wrong`."""
        if self.peer.floor:
            return
        rows = models.some_rows(1_000)
        batches = [*(rows[place : place + 1] for place in range(CHECKED_ROWS)), rows]
        for batch in batches:
            answers.check(self.peer.said(self._ask(batch)), self.model.expected(batch, version))

    def learn_both(self, rows: int) -> None:
        """Right answers of both versions; the first is shown again."""
        learned = []
        for version in reversed(VERSIONS):
            self.show(version)
            self.check(version)
            learned.append(self._learn(models.some_rows(rows), version))
        self._fragments[rows] = learned

    def show(self, version: str) -> None:
        """Point the alias at ``version`` and have it live. Raises `Failed`."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.model.uri, registry_uri=self.model.uri)
        client.set_registered_model_alias(self.model.name, models.ALIAS, version)
        status, body = post(self.server.port, "/model/reload", b"")
        if status != 200:
            raise Failed(f"version {version} did not go live: {body.decode()[:200]}")
        self._fragments = {}

    def await_workers(self, count: int) -> None:
        """Until as many workers serve. Raises `Failed`."""
        for _ in range(200):
            status, body = post(self.server.port, "/model/reload", b"")
            if status == 200 and f'"total":{count}' in body.decode().replace(" ", ""):
                return
            time.sleep(0.1)
        raise Failed(f"there are not {count} workers")

    def _learn(self, rows: np.ndarray, version: str = "1") -> bytes:
        """What every right answer to ``rows`` has."""
        if self.peer.floor:
            return b"{}"
        first = self._ask(rows)
        answers.check(self.peer.said(first), self.model.expected(rows, version))
        return answers.steady_part(first, self._ask(rows), self._ask(models.unlike(rows)))

    def _ask(self, rows: np.ndarray) -> bytes:
        status, body = post(self.server.port, self.peer.path, self.peer.body(rows))
        if status != 200:
            raise Failed(f"answers {status}: {body.decode(errors='replace')[:200]}")
        return body


def flips_fault(output: str, seconds: float) -> tuple[str | None, int]:
    """What went wrong with the flips, and how many there were."""
    flips = json.loads(output)
    failed = [flip for flip in flips if flip["status"] != 200 or flip["live"] != flip["version"]]
    if failed:
        return f"{len(failed)} of {len(flips)} reloads failed: {failed[0]}", len(flips)
    if len(flips) < seconds * 0.6:
        return f"only {len(flips)} flips in {seconds:g} s", len(flips)
    return None, len(flips)


def another_fits(done: int, took_s: float) -> bool:
    """Whether a round like those that are done ends before `LONGEST_S`; the first one always may."""
    return done == 0 or took_s + took_s / done <= LONGEST_S


def place_of(peer: Peer, model: Model) -> Place:
    return Place(HOME / "run", peer.environment(HOME), (free_port(), free_port(), free_port()), model)


def cores_beside() -> str:
    """Cores for wrk where servers have 0 and 1: the others, or the same two if there are no others."""
    others = sorted(CORES - {0, 1})
    return ",".join(map(str, others or [0, 1]))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chosen(only: str) -> list[Peer]:
    """The servers that ``only`` names, or all. Raises SystemExit for a name that is none."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BY_NAME]:
        raise SystemExit(f"ONLY names {unknown[0]!r}; there are {', '.join(BY_NAME)}")
    return [peer for peer in PEERS if not names or peer.name in names]


def main() -> None:
    peers = chosen(os.environ.get("ONLY", ""))
    rounds, seconds = int(os.environ.get("ROUNDS", "3")), float(os.environ.get("SECONDS", "3"))
    try:
        load.check_wrk()
    except load.Unusable as err:
        raise SystemExit(f"cannot measure: {err}") from None
    if not {int(SERVER_CORE), int(LOAD_CORE)} <= CORES:
        raise SystemExit("cannot measure: servers need core 0 and the load generator core 1")
    os.sched_setaffinity(0, {int(LOAD_CORE)})  # whatever the bench does itself stays off the servers' core
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server under test is ended too
    started, busy = time.monotonic(), os.getloadavg()[0]
    results = Bench(peers, rounds, seconds).run()
    minutes = (time.monotonic() - started) / 60
    text = report.document(results, peers, report.Conditions.here(results.rounds, seconds, minutes, busy))
    print(text)
    (HOME / "report.md").write_text(text, encoding="utf-8")
    if len(peers) == len(PEERS):
        DOCUMENT.write_text(text, encoding="utf-8")
    raise SystemExit(1 if results.faults else 0)


if __name__ == "__main__":
    main()
