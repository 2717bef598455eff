"""The shadow: a process that answers copies of what a model is asked with its challenger, and compares.

It stands apart from the callers. Workers leave copies behind their answers; the kernel runs the shadow only when nobody
else wants a processor, and the shadow itself rests as long as it has worked. The agent keeps it alive, ends it when a
page takes too long, and throws away what it died of.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from serving import agreement, copies, notes, telemetry
from serving.batching import part
from serving.copies import Copy
from serving.exposition import claim
from serving.ledger import Spool
from serving.ledger.twins import twin
from serving.live import Live, Loader
from serving.metrics import Metrics
from serving.observer import Record, Recorder, Seen
from serving.routing import SHADOW
from serving.state import LedgerState, ModelState
from serving.tensors import Batch, Prediction

TICK_S = 0.05
NICENESS = 10  # while it loads; a machine that is never idle would not let it begin at all
AT_WORK = "at-work.json"  # the page that it is at, for whoever finds it dead or hung
IDLE = getattr(os, "SCHED_IDLE", None)

log = logging.getLogger("serving.shadow")


@dataclass(frozen=True)
class Task:
    """What a shadow is told, by plain values."""

    model: str
    bundle: str  # as the challenger's note names it
    state_dir: str
    log_level: str
    log_format: str
    ledger_sample: float
    ledger_omit: tuple[str, ...]
    ledger_spool_bytes: int


class Shadow:
    """One challenger at work on copies."""

    def __init__(self, live: Live, state: ModelState, metrics: Metrics, record: Record | None) -> None:
        """``record`` takes what it answered, for the ledger."""
        self._live = live
        self._folder = state.shadow
        self._metrics = metrics
        self._record = record
        self._of = live.bundle.name, live.bundle.version
        metrics.start_shadow_at_zero(*self._of)

    def work(self) -> bool:
        """Answer the oldest page; False where none waits."""
        pages = copies.waiting(self._folder)
        if not pages:
            return False
        page = pages[0]
        notes.write(self._folder / AT_WORK, {"page": page.name, "since": time.time()})
        try:
            self._answer(copies.decode(page.read_bytes()))
        except (OSError, ValueError, KeyError) as err:
            log.error("%s: a page of copies cannot be read: %s", self._of[0], err)
        page.unlink(missing_ok=True)
        (self._folder / AT_WORK).unlink(missing_ok=True)
        return True

    def _answer(self, copy: Copy) -> None:
        count, started = self._metrics.shadow_rows, time.process_time()
        try:
            answered = self._live.predictor(copy.batch)
            agreed, apart = agreement.compare(copy.answered, answered)
        except Exception as err:
            count.labels(*self._of, "failed").inc(copy.batch.rows)
            log.warning("%s: version %s fails on copies: %s: %s", *self._of, type(err).__name__, str(err)[:300])
            return
        same = int(np.count_nonzero(agreed))
        count.labels(*self._of, "agreed").inc(same)
        count.labels(*self._of, "disagreed").inc(copy.batch.rows - same)
        self._metrics.shadow_difference.labels(*self._of).inc(float(apart.sum()))
        self._metrics.shadow_cpu_s.labels(*self._of).inc(time.process_time() - started)
        self._watch(copy, answered)

    def _watch(self, copy: Copy, answered: Prediction) -> None:
        """Drift and ledger, as for every version that answers; a label of the champion's prediction counts for both."""
        if self._live.drift is not None:
            self._live.drift.count(copy.batch, answered)
        if self._record is None:
            return
        seen, start = [], 0
        for prediction_id, at, request_id, rows in zip(copy.ids, copy.at, copy.requests, copy.rows, strict=True):
            here = slice(start, start + rows)
            start += rows
            one = Seen(self._live, _cut(copy.batch, here), part(answered, here), twin(prediction_id), request_id, at)
            seen.append(one)
        self._record(self._live, seen)


def _cut(batch: Batch, rows: slice) -> Batch:
    if batch.block is not None:
        return Batch(batch.names, block=batch.block[rows])
    return Batch(batch.names, [column[rows] for column in batch.columns])


# --- the process -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Work at what the command line's JSON describes, until standard input closes: its keeper is gone then."""
    plain = json.loads(sys.argv[1])
    task = Task(**{**plain, "ledger_omit": tuple(plain["ledger_omit"])})
    telemetry.log_to_stdout(task.log_level, task.log_format)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICENESS)
    if shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        claim(Path(shared), os.getpid())
    shadow = _shadow(task)
    _stand_back()
    while True:
        started = time.perf_counter()
        # As long a rest as the work took: where a container's share of the machine is limited, it is the callers'.
        time.sleep(time.perf_counter() - started if shadow.work() else TICK_S)


def _shadow(task: Task) -> Shadow:
    folder = Path(task.state_dir)
    state, metrics = ModelState(folder, task.model, ModelState.CHALLENGER), Metrics(CollectorRegistry())
    desired = notes.read(state.desired) or {}
    live = Loader(metrics).load(task.model, state.home, {**desired, "bundle": task.bundle}, SHADOW)
    record = None
    if task.ledger_sample:
        spool = Spool(LedgerState(folder).spool, task.ledger_spool_bytes)
        record = Recorder(spool, metrics.ledger, sample=task.ledger_sample, omit=task.ledger_omit)
    return Shadow(live, state, metrics, record)


def _stand_back() -> None:
    """From now on only what nobody else wants of the processors."""
    if IDLE is not None:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, IDLE, os.sched_param(0))


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def command(task: Task) -> list[str]:
    """What starts it."""
    return [sys.executable, "-m", "serving.shadow", json.dumps(asdict(task))]


def left_at_work(state: ModelState) -> dict[str, Any] | None:
    """The page that a shadow is at, and since when (seconds since 1970); None where it is at none."""
    return notes.read(state.shadow / AT_WORK)


if __name__ == "__main__":
    main()
