"""What this worker serves: watch, load, warm, swap, acknowledge; nothing else.

Readers take no lock: a prediction takes the live model once and keeps it, so a swap is one assignment. Two models are
in memory for that moment.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving import notes
from serving.errors import ModelNotReady, UnknownModel
from serving.live import Live, Loader
from serving.metrics import Metrics
from serving.roster import Roster
from serving.routing import CHALLENGER, CHAMPION, SHADOW, SPLIT, Part, is_challengers
from serving.state import ModelState, Workers

ALL, ANY = "all", "any"  # when a service of several models is ready
WATCH_S = 0.02

log = logging.getLogger("serving.store")


@dataclass(frozen=True, eq=False)
class Split:
    """A challenger that answers a share (0 to 1) of a model's callers."""

    challenger: Live
    share: float


@dataclass(frozen=True)
class Acknowledged:
    """How many of the living workers serve what is desired, and how many could not load it."""

    acknowledged: int
    total: int
    failed: int = 0

    @property
    def settled(self) -> bool:
        """Whether there is nobody left to wait for."""
        return self.acknowledged + self.failed >= self.total


class Store:
    """The live version of each model in this process, and its challenger. The first model answers what names none."""

    def __init__(self, roster: Roster, state_dir: Path, metrics: Metrics, loader: Loader, *, ready: str = ALL) -> None:
        """Whether it is ready is asked of `ALL` or of `ANY` of its models."""
        self._roster = roster
        self._state_dir = state_dir
        self._metrics = metrics
        self._loader = loader
        self._ready_when = ready
        self._names: tuple[str, ...] = ()
        self._counted: set[str] = set()
        self._states: dict[str, ModelState] = {}
        self._challenger_states: dict[str, ModelState] = {}
        self._live: dict[str, Live] = {}
        self.splits: dict[str, Split] = {}  # by model, for who asks at every request whether there is any
        self._shadows: dict[str, str] = {}  # the version of a challenger that only sees copies
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._errors: dict[str, dict[str, Any]] = {}
        self._service = state_dir / "service.json"
        self._unloaded: set[str] = set()
        self._unloaded_seen: dict[str, tuple[int, int] | None] = {}
        self._workers = Workers(state_dir)
        self._id = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = self._workers.lock(self._id)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="store-watch", daemon=True)
        self._enrol()

    def start(self) -> None:
        """Load what is desired now, then follow it in a thread.

        The worker counts as living before it reads what is desired, so a reload that runs meanwhile waits for it.
        """
        self._lock.acquire()
        for name in self._names:
            self._count(name)
        self._acknowledge()
        self._refresh()
        self._thread.start()

    def close(self) -> None:
        """Stop following, and no longer count as a living worker."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for live in (*self._live.values(), *(split.challenger for split in self.splits.values())):
            if live.batcher is not None:
                live.batcher.close()
        self._workers.note(self._id).unlink(missing_ok=True)
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()

    @property
    def names(self) -> tuple[str, ...]:
        """All models; the same object until one is added."""
        return self._names

    def add(self, name: str) -> bool:
        """Have every process of this service serve the model too, until it starts anew; False where it does already.

        Raises OSError where it cannot be noted.
        """
        added = self._roster.add(name)
        self._enrol()
        return added

    def remove(self, name: str) -> None:
        """Take `add` back. Raises OSError."""
        self._roster.remove(name)
        self._enrol()

    def name(self, name: str | None) -> str:
        """``name``, or the default model's. Raises `UnknownModel`."""
        if name is None:
            return self._names[0]
        if name not in self._states:
            raise UnknownModel(f"no model {name[:80]!r} here; there is {', '.join(self._names)}")
        return name

    def live(self, name: str | None = None, version: str | None = None) -> Live:
        """The live version of a model. Raises `UnknownModel` or `ModelNotReady`."""
        name = self.name(name)
        live = self._live.get(name)
        if live is None and self.unloaded(name):
            raise ModelNotReady(f"{name!r} is unloaded, until it is loaded again")
        if live is None:
            raise ModelNotReady(f"no version of {name!r} is live yet")
        if version is None or version == live.bundle.version:
            return live
        split = self.splits.get(name)
        if split is not None and version == split.challenger.bundle.version:
            return split.challenger
        raise UnknownModel(f"version {version[:80]!r} of {name!r} is not live; version {live.bundle.version} is")

    def routed(self, live: Live, key: str) -> Live:
        """The version that answers the caller called ``key``: ``live``, or its challenger where that has a share."""
        split = self.splits.get(live.bundle.name)
        if split is None or live.route != CHAMPION or not is_challengers(split.share, live.bundle.name, key):
            return live
        return split.challenger

    def shadow(self, name: str) -> str | None:
        """The version that is to see copies of what the model is asked; None where there is none."""
        return self._shadows.get(name)

    def ready(self) -> bool:
        """Whether the models have a warm version, all or any of them; one that was unloaded is meant to have none."""
        here = [name in self._live or self.unloaded(name) for name in self._names]
        return all(here) if self._ready_when == ALL else any(here)

    def unloaded(self, name: str) -> bool:
        """Whether this worker knows that the model is to answer nothing."""
        return name in self._unloaded

    def unload(self, name: str) -> None:
        """Have every worker of this service let go of the model, and those that are still to start.

        The next start of the service serves it again. Raises OSError where that cannot be noted.
        """
        notes.write(self._states[name].unloaded, {"service": self._started_at()})

    def load(self, name: str) -> bool:
        """Take `unload` back, in every worker; whether there was anything to take back."""
        path = self._states[name].unloaded
        was = self._says_unloaded(path)
        path.unlink(missing_ok=True)
        return was

    def holding(self, name: str) -> int:
        """How many living workers have not let go of a model that is unloaded."""
        said = [notes.read(self._workers.note(worker)) or {} for worker in self._workers.living()]
        return sum(name not in note.get("unloaded", ()) for note in said)

    def acknowledged(self, name: str, generation: int | None = None) -> Acknowledged:
        """Count the workers that serve ``generation`` (default: what is desired now) or a later one."""
        if generation is None:
            generation = (notes.read(self._states[name].desired) or {}).get("generation", 0)
        said = [notes.read(self._workers.note(worker)) or {} for worker in self._workers.living()]
        serving = [note.get("models", {}).get(name, {}).get("generation", -1) for note in said]
        failing = [note.get("errors", {}).get(name, {}).get("generation", -1) for note in said]
        done = sum(served >= generation for served in serving)
        failed = sum(failed >= generation > served for failed, served in zip(failing, serving, strict=True))
        return Acknowledged(done, len(said), failed)

    # --- following ---

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_S):
            try:
                self._refresh()
            except Exception:
                log.exception("following what is desired failed")  # and is tried again at the next change
                self._stop.wait(1.0)

    def _enrol(self) -> None:
        """Know the models of the roster."""
        names = self._roster.names
        if names == self._names:
            return
        for name in names:
            if name not in self._states:
                self._challenger_states[name] = ModelState(self._state_dir, name, ModelState.CHALLENGER)
                self._states[name] = ModelState(self._state_dir, name)
        for name in set(self._states) - set(names):
            del self._states[name]
            self._dismiss(name)
            _retire(self._live.pop(name, None))
        self._names = names

    def counts(self, name: str) -> bool:
        """Whether the model has series; a name that somebody tried to add has none before there is such a model."""
        return name in self._counted

    def _count(self, name: str) -> None:
        """Have the model's series exist. Of one that was added only when it is there: anybody may name one."""
        if name not in self._counted:
            self._counted.add(name)
            self._metrics.start_at_zero(name)

    def _refresh(self) -> None:
        self._enrol()
        for name, state in list(self._states.items()):
            if self._let_go(name, state.unloaded):
                continue
            if (desired := self._changed(state.desired)) is not None:
                self._swap(name, desired)
            if (challenger := self._changed(self._challenger_states[name].desired)) is not None:
                self._challenge(name, challenger)

    def _changed(self, path: Path) -> dict[str, Any] | None:
        """The note at ``path``, if it is another than last time."""
        stamp = notes.stamp(path)
        if stamp is None or stamp == self._seen.get(path):
            return None
        self._seen[path] = stamp
        return notes.read(path)

    def _let_go(self, name: str, path: Path) -> bool:
        """Whether the model is unloaded; if that is new, it is from here on."""
        stamp = notes.stamp(path)
        if stamp == self._unloaded_seen.get(name):
            return name in self._unloaded
        self._unloaded_seen[name] = stamp
        if not self._says_unloaded(path):
            self._unloaded.discard(name)
            return False
        self._unloaded.add(name)
        for state in (self._states[name], self._challenger_states[name]):
            self._seen.pop(state.desired, None)  # what is desired is loaded again when the note is gone
        self._dismiss(name)
        _retire(self._live.pop(name, None))
        self._acknowledge()
        log.info("%s: unloaded", name)
        return True

    def _says_unloaded(self, path: Path) -> bool:
        """A note of a service that ran before this one says nothing."""
        note = notes.read(path)
        return note is not None and note.get("service") == self._started_at()

    def _started_at(self) -> str | None:
        return (notes.read(self._service) or {}).get("started_at")

    def _swap(self, name: str, desired: dict[str, Any]) -> None:
        """Load, warm, then one assignment. If anything fails the old version stays, and the note says why."""
        live = self._loaded(name, desired, self._states[name], CHAMPION)
        if live is None:
            return
        self._count(name)
        previous = self._live.get(name)
        self._live[name] = live
        _retire(previous)
        self._errors.pop(name, None)
        self._acknowledge()
        log.info("%s: version %s is live (%s, %.3f s)", name, live.bundle.version, live.source, live.load_s)

    def _challenge(self, name: str, desired: dict[str, Any]) -> None:
        """Have a challenger take its part, or none. One that only sees copies is not loaded here: see `shadow`."""
        part = Part.parse(desired["part"]) if desired["bundle"] is not None else None
        live, before = None, self.splits.get(name)
        if part is not None and part.kind == SPLIT:
            same = before is not None and before.challenger.bundle.folder.name == Path(desired["bundle"]).name
            state = self._challenger_states[name]
            live = before.challenger if before and same else self._loaded(name, desired, state, CHALLENGER)
        if live is None:
            self._dismiss(name)
        else:
            assert part is not None
            self.splits[name] = Split(live, part.share)
            if before is not None and before.challenger is not live:
                _retire(before.challenger)
        if part is not None and part.kind == SHADOW:
            self._shadows[name] = desired["version"]
        else:
            self._shadows.pop(name, None)
        self._acknowledge()
        said = f"version {desired['version']} takes part: {part}" if part else "nobody challenges"
        log.info("%s: %s", name, said)

    def _dismiss(self, name: str) -> None:
        """Nobody challenges from here on."""
        self._shadows.pop(name, None)
        split = self.splits.pop(name, None)
        _retire(split.challenger if split is not None else None)

    def _loaded(self, name: str, desired: dict[str, Any], state: ModelState, route: str) -> Live | None:
        """What ``desired`` names, warm; None where that fails, and the note says why."""
        try:
            live = self._loader.load(name, state.home, desired, route)
        except Exception as err:
            log.exception("%s: version %s cannot be loaded", name, desired.get("version"))
            self._metrics.load_failures.labels(name, "worker_load_failed").inc()
            if route == CHAMPION:
                failed = {"generation": desired.get("generation", 0), "error": f"{type(err).__name__}: {err}"}
                self._errors[name] = failed
            self._acknowledge()
            return None
        self._metrics.load_s.labels(name).observe(live.load_s)
        return live

    def _acknowledge(self) -> None:
        """Say what this worker serves. A full disk must not stop it from serving."""
        said = {
            "pid": os.getpid(),
            "models": {name: _said(live) for name, live in self._live.items()},
            "challengers": {
                name: {**_said(split.challenger), "share": split.share} for name, split in self.splits.items()
            },
            "errors": self._errors,
            "unloaded": sorted(self._unloaded),
        }
        try:
            notes.write(self._workers.note(self._id), said)
        except OSError as err:
            log.error("cannot acknowledge: %s", err.strerror)


def _said(live: Live) -> dict[str, Any]:
    """What a worker's note says of one version."""
    bundle = live.bundle
    return {
        "generation": live.generation,
        "version": bundle.version,
        "alias": live.alias,
        "source": live.source,
        "runtime": bundle.runtime,
        "digest": bundle.digest,
        "loaded_at": live.loaded_at,
    }


def _retire(live: Live | None) -> None:
    if live is not None and live.batcher is not None:
        live.batcher.retire()
