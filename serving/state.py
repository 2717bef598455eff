"""Where a service keeps what its processes share: one folder, whose paths are named here and nowhere else.

<state>/service.lock, service.json        held by the service that uses this folder, and when it began
<state>/models.json                       which models were added since it began
<state>/agent.lock                        held by the one agent and the worker that keeps it
<state>/agent.bell                        rung to have the agent look now
<state>/models/<name>/desired.json        which bundle every worker should serve, by generation
<state>/models/<name>/status.json         what the agent saw last: registry, refused version
<state>/models/<name>/unloaded.json       this model is to answer nothing, by the service that was asked so
<state>/models/<name>/probation.json      what was counted when the version on probation went live
<state>/models/<name>/rolled_back.json    which version went back last without anybody being there, and why
<state>/models/<name>/asks, answers/      "look now", and what came of it
<state>/models/<name>/bundles/<key>/      prepared versions
<state>/models/<name>/challenger/…        the same of the version that challenges it
<state>/models/<name>/challenger/shadow/  what callers asked, on its way to a shadow
<state>/workers/<id>.lock, <id>.json      living workers, and what each serves
<state>/metrics/                          what each process counted
<state>/ledger/spool/                     pages of predictions that wait for the database
<state>/ledger/asks/, answers/            labels that wait for it, and what came of them
<state>/ledger/bad/                       what the database refused, for people to look at
<state>/ledger/status.json                whether the database answers, and live quality
<state>/ledger/writer.lock                held by the one writer
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def bell_of(state_dir: Path) -> Path:
    """What is rung to have the agent look now."""
    return state_dir / "agent.bell"


class ModelState:
    """The paths of one model, or of its challenger: ``of`` is `CHALLENGER` then."""

    CHALLENGER = "challenger"

    def __init__(self, state_dir: Path, name: str, of: str = "") -> None:
        self.home = state_dir / "models" / name / of
        self.bell = bell_of(state_dir)
        self.desired = self.home / "desired.json"
        self.status = self.home / "status.json"
        self.unloaded = self.home / "unloaded.json"
        self.probation = self.home / "probation.json"
        self.rolled_back = self.home / "rolled_back.json"
        self.asks = self.home / "asks"
        self.answers = self.home / "answers"
        self.bundles = self.home / "bundles"
        self.shadow = self.home / "shadow"


class LedgerState:
    """The paths of the ledger."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / "ledger"
        self.spool = self.path / "spool"
        self.asks = self.path / "asks"
        self.answers = self.path / "answers"
        self.bad = self.path / "bad"
        self.status = self.path / "status.json"
        self.lock = self.path / "writer.lock"
        self.default_url = f"sqlite:///{self.path / 'ledger.db'}"


class Lock:
    """An exclusive lock on a file, released by the kernel when its last holder dies.

    Children that are given the file descriptor hold it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody holds it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def fileno(self) -> int:
        """The open file, to hand to a child."""
        assert self._handle is not None, "the lock is not held"
        return self._handle

    def release(self) -> None:
        """Close our hold on it; a child that has the descriptor keeps the lock."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class _BornHeld(Lock):
    """A lock on a file of its own that appears already held, so that nobody takes its owner for dead meanwhile."""

    def acquire(self) -> bool:
        born = Lock(self.path.with_suffix(".born"))
        if not born.acquire():
            return False
        born.path.rename(self.path)
        self._handle = born.fileno()
        return True


class Workers:
    """The living workers of a service. Each holds a lock while it lives, so no pid is ever taken for another."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "workers"

    def note(self, worker_id: str) -> Path:
        """Where a worker says what it serves."""
        return self._folder / f"{worker_id}.json"

    def lock(self, worker_id: str) -> Lock:
        """What a worker holds while it lives."""
        return _BornHeld(self._folder / f"{worker_id}.lock")

    def living(self) -> list[str]:
        """The ids of living workers. What the dead left behind is removed on the way."""
        found = []
        for path in sorted(self._folder.glob("*.lock")):
            probe = Lock(path)
            try:
                dead = probe.acquire()
            except FileNotFoundError:
                continue  # another process was faster at removing it
            if not dead:
                found.append(path.stem)
                continue
            path.unlink(missing_ok=True)
            self.note(path.stem).unlink(missing_ok=True)
            probe.release()
        return found
