"""What answers for a version in this process: its bundle loaded, warm, and watched."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from serving import bundle as bundles
from serving import drift, notes, processes
from serving.batching import Batcher
from serving.batching.cost import GAINS_FROM_S, Cost
from serving.bundle import Bundle, BundleUnreadable
from serving.errors import DeadlineExceeded
from serving.metrics import Metrics
from serving.routing import CHAMPION
from serving.runtimes import Limits, Predictor, limited, runtime
from serving.tensors import Batch, Prediction
from serving.transforms import tabular

WARM_UP_RUNS = 3
SLOW_S = 0.02  # what takes longer for a row has its calls counted

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
    route: str = CHAMPION
    load_s: float = 0.0  # what it took to load and warm it
    memory_bytes: int = 0  # by how much the process has grown meanwhile


@dataclass(frozen=True)
class Batching:
    """How models are batched that gain from it."""

    max_batch_rows: int
    max_queue_rows: int
    deadline_s: float


class Loader:
    """Makes bundles answer."""

    def __init__(self, metrics: Metrics, batching: Batching | None = None, limits: Limits | None = None) -> None:
        """Without ``batching`` every request is answered by itself."""
        self._metrics = metrics
        self._batching = batching
        self._turns = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._limits = limits or Limits()

    def load(self, name: str, home: Path, desired: dict[str, Any], route: str = CHAMPION) -> Live:
        """What the note ``desired`` in ``home`` names of the model ``name``, warm.

        Raises `BundleUnreadable`, or whatever the version raises when it is loaded and answers its example.
        """
        started, before = time.perf_counter(), processes.resident_bytes()
        bundle = bundles.read(home / desired["bundle"])
        if bundle.name != name:
            raise BundleUnreadable(f"the bundle is of {bundle.name}")
        predictor = runtime(bundle.runtime).load(bundle.folder)
        reader = tabular.Reader(bundle.signature)
        warm_s = _warm(predictor, reader, bundle.example["features"]) if bundle.example is not None else math.inf
        batcher = self._batcher(bundle, predictor) if warm_s >= GAINS_FROM_S else None
        if batcher is not None:
            predictor = partial(batcher, deadline_s=self._batching.deadline_s if self._batching else None)
        elif SLOW_S <= warm_s < math.inf:
            wait_s = self._batching.deadline_s if self._batching else None
            predictor = partial(_in_turn, threading.BoundedSemaphore(self._turns), wait_s, predictor)
        return Live(
            bundle=bundle,
            predictor=limited(bundle.runtime, predictor, self._limits),
            alias=desired["alias"],
            source=desired["source"],
            generation=desired["generation"],
            loaded_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            reader=reader,
            warm_s=warm_s,
            batcher=batcher,
            drift=self._drift_counter(bundle),
            route=route,
            load_s=time.perf_counter() - started,
            memory_bytes=max(0, processes.resident_bytes() - before),
        )

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


def _in_turn(turns: threading.BoundedSemaphore, wait_s: float | None, predictor: Predictor, batch: Batch) -> Prediction:
    """No more calls at once than there are processors: more would only take memory, and each as long as all.

    Raises `DeadlineExceeded` when it was nobody's turn for ``wait_s``.
    """
    if not turns.acquire(timeout=wait_s):
        raise DeadlineExceeded(f"the model was busy with others for {wait_s:g} s")
    try:
        return predictor(batch)
    finally:
        turns.release()


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
