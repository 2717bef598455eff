"""What this worker serves: watch, load, warm, swap, acknowledge; nothing else.

Readers take no lock: a prediction takes the live model once and keeps it, so a swap is one assignment. Two models are
in memory for that moment.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from serving import bundle as bundles
from serving import drift, notes
from serving.batching import Batcher
from serving.batching.cost import GAINS_FROM_S, Cost
from serving.bundle import Bundle, BundleUnreadable
from serving.errors import ModelNotReady, UnknownModel
from serving.metrics import Metrics
from serving.runtimes import Predictor, runtime
from serving.state import ModelState, Workers
from serving.transforms import tabular

WATCH_S = 0.02
WARM_UP_RUNS = 3

log = logging.getLogger("serving.store")


@dataclass(frozen=True, eq=False)
class Live:
    """A version that this worker serves."""

    bundle: Bundle
    predictor: Predictor
    alias: str | None
    source: str
    generation: int
    loaded_at: str
    reader: tabular.Reader
    warm_s: float = math.inf  # for one row, once warm; infinite where there is no example to tell
    batcher: Batcher | None = None  # behind ``predictor``, where callers are answered together
    drift: drift.Counter | None = None  # where the version has a profile


@dataclass(frozen=True)
class Batching:
    """How models are batched that gain from it."""

    max_batch_rows: int
    max_queue_rows: int
    deadline_s: float


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
    """The live version of each model in this process. The first of ``names`` answers where none is named."""

    def __init__(
        self, names: Sequence[str], state_dir: Path, metrics: Metrics, batching: Batching | None = None
    ) -> None:
        """Without ``batching`` every request is answered by itself."""
        self._names = tuple(names)
        self._states = {name: ModelState(state_dir, name) for name in names}
        self._metrics = metrics
        self._batching = batching
        self._live: dict[str, Live] = {}
        self._seen: dict[str, tuple[int, int] | None] = {}
        self._errors: dict[str, dict[str, Any]] = {}
        self._service = state_dir / "service.json"
        self._unloaded: set[str] = set()
        self._unloaded_seen: dict[str, tuple[int, int] | None] = {}
        self._workers = Workers(state_dir)
        self._id = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._lock = self._workers.lock(self._id)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="store-watch", daemon=True)

    def start(self) -> None:
        """Load what is desired now, then follow it in a thread.

        The worker counts as living before it reads what is desired, so a reload that runs meanwhile waits for it.
        """
        self._lock.acquire()
        for name in self._names:
            self._metrics.start_at_zero(name)
        self._acknowledge()
        self._refresh()
        self._thread.start()

    def close(self) -> None:
        """Stop following, and no longer count as a living worker."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for live in self._live.values():
            if live.batcher is not None:
                live.batcher.close()
        self._workers.note(self._id).unlink(missing_ok=True)
        self._lock.path.unlink(missing_ok=True)
        self._lock.release()

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

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
        if version is not None and version != live.bundle.version:
            raise UnknownModel(f"version {version!r} of {name!r} is not live; version {live.bundle.version} is")
        return live

    def ready(self) -> bool:
        """Whether every model has a warm version; one that was unloaded is meant to have none."""
        return all(name in self._live or self.unloaded(name) for name in self._names)

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

    def _refresh(self) -> None:
        for name, state in self._states.items():
            if self._let_go(name, state.unloaded):
                continue
            stamp = notes.stamp(state.desired)
            if stamp is None or stamp == self._seen.get(name):
                continue
            desired = notes.read(state.desired)
            if desired is not None:
                self._swap(name, desired)
            self._seen[name] = stamp

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
        self._seen.pop(name, None)  # what is desired is loaded again when the note is gone
        previous = self._live.pop(name, None)
        if previous is not None and previous.batcher is not None:
            previous.batcher.retire()
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
        started = time.perf_counter()
        try:
            live = self._load(name, desired)
        except Exception as err:
            log.exception("%s: version %s cannot be loaded", name, desired.get("version"))
            self._metrics.load_failures.labels(name, "worker_load_failed").inc()
            self._errors[name] = {"generation": desired.get("generation", 0), "error": f"{type(err).__name__}: {err}"}
            self._acknowledge()
            return
        previous = self._live.get(name)
        self._live[name] = live
        if previous is not None and previous.batcher is not None:
            previous.batcher.retire()
        self._errors.pop(name, None)
        duration_s = time.perf_counter() - started
        self._metrics.load_s.labels(name).observe(duration_s)
        self._acknowledge()
        log.info("%s: version %s is live (%s, %.3f s)", name, live.bundle.version, live.source, duration_s)

    def _load(self, name: str, desired: dict[str, Any]) -> Live:
        bundle = bundles.read(self._states[name].home / desired["bundle"])
        if bundle.name != name:
            raise BundleUnreadable(f"the bundle is of {bundle.name}")
        predictor = runtime(bundle.runtime).load(bundle.folder)
        reader = tabular.Reader(bundle.signature)
        warm_s = _warm(predictor, reader, bundle.example["features"]) if bundle.example is not None else math.inf
        loaded_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        alias, source, generation = desired["alias"], desired["source"], desired["generation"]
        batcher = self._batcher(bundle, predictor) if warm_s >= GAINS_FROM_S else None
        if batcher is not None:
            predictor = partial(batcher, deadline_s=self._batching.deadline_s if self._batching else None)
        counter = self._drift_counter(bundle)
        return Live(bundle, predictor, alias, source, generation, loaded_at, reader, warm_s, batcher, counter)

    def _drift_counter(self, bundle: Bundle) -> drift.Counter | None:
        """What counts this version's rows; a profile that cannot be used costs the watching, not the serving."""
        self._metrics.start_version_at_zero(bundle.name, bundle.version)
        plain = notes.read(bundle.folder / drift.FILE_NAME)
        if plain is None:
            return None
        try:
            profile = drift.Profile.from_json(plain)
        except ValueError as err:
            log.warning("%s: version %s is not watched for drift: %s", bundle.name, bundle.version, err)
            return None
        return drift.Counter(profile, bundle.classes, self._metrics.drift(bundle.name, bundle.version))

    def _batcher(self, bundle: Bundle, predictor: Predictor) -> Batcher | None:
        """For a version whose callers gain when they are answered together, by what prepare measured."""
        if self._batching is None or not bundle.batching or bundle.cost is None:
            return None
        self._metrics.queue_limit_rows.labels(bundle.name).set(self._batching.max_queue_rows)
        return Batcher(
            predictor,
            max_batch_rows=self._batching.max_batch_rows,
            max_queue_rows=self._batching.max_queue_rows,
            cost=Cost.from_json(bundle.cost),
            on_batch=self._metrics.batch_rows.labels(bundle.name).observe,
            on_dropped=self._metrics.dropped_rows.labels(bundle.name).inc,
            on_waiting=self._metrics.waiting_rows.labels(bundle.name).set,
            on_waited=self._metrics.queue_s.labels(bundle.name).observe,
        )

    def _acknowledge(self) -> None:
        """Say what this worker serves. A full disk must not stop it from serving."""
        models = {name: _said(live) for name, live in self._live.items()}
        try:
            said = {"pid": os.getpid(), "models": models, "errors": self._errors, "unloaded": sorted(self._unloaded)}
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


def _warm(predictor: Predictor, reader: tabular.Reader, features: list[Any]) -> float:
    """Run the model until it is warm; the least time that one row took, in seconds."""
    batch, many = reader(features)
    predictor(batch)
    row, _ = reader(features[:1]) if many else (batch, many)
    times = []
    for _ in range(WARM_UP_RUNS):
        started = time.perf_counter()
        predictor(row)
        times.append(time.perf_counter() - started)
    return min(times)
