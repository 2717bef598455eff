"""Observer: what is done with predictions behind their answers. Drift is counted, and the ledger gets its pages.

A request only leaves its arrays here. One thread takes them many at a time, so that counting and writing cost each
request a few microseconds, and nothing that goes wrong in it can fail or hold up an answer. It may come too late: when
`WAITING_ROWS` wait, what comes beyond is skipped and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from serving.batching import join, kind, whole
from serving.ledger import Sheet, Spool, Taken, sampled
from serving.live import Live
from serving.metrics import LedgerMetrics, Metrics
from serving.tensors import Batch, Prediction

log = logging.getLogger("serving.observer")


class Seen(NamedTuple):
    """One prediction that was answered."""

    live: Live
    batch: Batch
    prediction: Prediction
    prediction_id: str
    request_id: str
    at: float  # seconds since 1970


Record = Callable[[Live, list[Seen]], None]


class Observer:
    """Counts drift and hands predictions to ``record`` in a thread of its own. `close` must end it."""

    PAUSE_S = 0.1
    WAITING_ROWS = 50_000
    WAITING_BYTES = 64 * 1024 * 1024
    KEPT_BYTES_A_ROW = 8192  # of a larger row, such as a picture, nothing is kept but what was answered

    def __init__(self, metrics: Metrics, record: Record | None = None, copy: Record | None = None) -> None:
        """``record`` and ``copy`` are called with what one version answered, in order; drift is counted anyway."""
        self._metrics = metrics
        self._record = record
        self._copy = copy
        self._waiting: list[Seen] = []
        self._rows = self._bytes = 0
        self._lock = threading.Lock()
        self._some = threading.Event()
        self._closed = False
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._thread.start()

    def observe(self, seen: Seen) -> None:
        """Leave a prediction to be looked at later. Never raises or waits."""
        rows, size = seen.batch.rows, seen.batch.bytes
        if size > self.KEPT_BYTES_A_ROW * rows:
            seen, size = seen._replace(batch=_without_content(rows)), 0
        with self._lock:
            full = self._rows + rows > self.WAITING_ROWS or self._bytes + size > self.WAITING_BYTES
            if not full:
                self._rows += rows
                self._bytes += size
                self._waiting.append(seen)
        if full:
            self._metrics.unobserved_rows.labels(seen.live.bundle.name).inc(rows)
        elif not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Look at all that waits, then end."""
        self._closed = True
        self._some.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            if self._some.wait(self.PAUSE_S) and not self._closed:
                time.sleep(self.PAUSE_S)
            closed = self._closed  # before we look: what comes after it comes in vain
            self._metrics.in_flight.write()
            if self._waiting:
                self._look()
            if closed:
                return

    def _look(self) -> None:
        with self._lock:
            self._some.clear()
            waiting, self._waiting = self._waiting, []
            rows, self._rows, self._bytes = self._rows, 0, 0
        self._metrics.ledger.queue_rows.set(rows)
        for live, together in _by_version(waiting).items():
            self._guarded(live, "drift", _count, together)
            if self._record is not None:
                self._guarded(live, "ledger", self._record, together)
            if self._copy is not None:
                self._guarded(live, "shadow", self._copy, together)
        self._metrics.ledger.queue_rows.set(0)

    def _guarded(self, live: Live, what: str, work: Record, together: list[Seen]) -> None:
        """Whatever goes wrong here is said once for each version, and costs no more than what it was for."""
        try:
            work(live, together)
        except Exception:
            key = f"{what} {live.bundle.name} {live.bundle.version}"
            if key not in self._said:
                self._said.add(key)
                log.exception("%s: %s of version %s fails", live.bundle.name, what, live.bundle.version)


class Recorder:
    """Writes predictions into the ledger's spool."""

    def __init__(self, spool: Spool, metrics: LedgerMetrics, *, sample: float, omit: Sequence[str]) -> None:
        """``sample`` is the share of predictions that is kept; values of the columns in ``omit`` never are."""
        self._spool = spool
        self._metrics = metrics
        self._sample = sample
        self._omit = frozenset(omit)
        self._failing = False

    def __call__(self, live: Live, together: list[Seen]) -> None:
        alike: dict[tuple[str, ...], list[Taken]] = {}
        for seen in together:
            if sampled(seen.prediction_id, self._sample):
                taken = Taken(seen.prediction_id, seen.at, seen.request_id, seen.batch, seen.prediction)
                alike.setdefault(seen.batch.names, []).append(taken)
        if not alike:
            return
        page = b"".join(self._sheet(live, names).encode(taken) for names, taken in alike.items())
        self._write(page, sum(one.batch.rows for taken in alike.values() for one in taken))

    def _sheet(self, live: Live, names: tuple[str, ...]) -> Sheet:
        bundle = live.bundle
        return Sheet(
            model=bundle.name,
            version=bundle.version,
            digest=bundle.digest,
            route=live.route,
            features=names,
            classes=bundle.classes,
            never=self._omit,
        )

    def _write(self, page: bytes, rows: int) -> None:
        try:
            lost = "spool_full" if self._spool.write(page) is None else None
        except OSError as err:
            lost = "unwritable"
            if not self._failing:
                log.error("predictions cannot be kept for the ledger: %s", err.strerror)
        self._failing = lost == "unwritable"
        if lost is not None:
            self._metrics.lost_rows.labels(lost).inc(rows)


def _by_version(waiting: list[Seen]) -> dict[Live, list[Seen]]:
    versions: dict[Live, list[Seen]] = {}
    for seen in waiting:
        versions.setdefault(seen.live, []).append(seen)
    return versions


def _count(live: Live, together: list[Seen]) -> None:
    """Count the rows of one version into its bins: those whose columns have the same types at once."""
    if live.drift is None:
        return
    kinds: dict[object, list[Seen]] = {}
    for seen in together:
        kinds.setdefault(kind(seen.batch), []).append(seen)
    for alike in kinds.values():
        live.drift.count(join([one.batch for one in alike]), whole([one.prediction for one in alike]))


def _without_content(rows: int) -> Batch:
    batch = Batch((), ())
    batch.rows = rows
    return batch
