"""What a call of a model costs, and how soon company comes: measured once, then learned while it serves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from serving.tensors import Batch, Prediction

HANDOVER_S = 0.0001  # what it costs to give a request to another thread and take the answer back
GAINS_FROM_S = 10 * HANDOVER_S  # faster models never gain from company
TRIED_ROWS, TRIED_S, RUNS = 64, 0.25, 5  # a measurement's largest batch, about its longest call, and calls of each size
KEEP = 0.9  # how much an observation still weighs after the next one
OUTLIER = 4.0  # one call counts for at most so many times what was expected


@dataclass(frozen=True)
class Cost:
    """What a call of a model takes: ``fixed_s`` and ``per_row_s`` for each row. ``rows``: the largest batch tried."""

    fixed_s: float
    per_row_s: float
    rows: int

    def of(self, rows: float) -> float:
        """The seconds that a call with ``rows`` takes."""
        return self.fixed_s + self.per_row_s * rows

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Cost:
        return cls(float(plain["fixed_s"]), float(plain["per_row_s"]), int(plain["rows"]))


def measure(predict: Callable[[Batch], Prediction], batch: Batch) -> Cost:
    """Time ``predict`` with single rows and with many, taken from ``batch`` (at least one row) over and over.

    Takes under ten seconds for a model that answers a row within half a second. Raises what ``predict`` raises.
    """

    def seconds(rows: int) -> float:
        taken = [_pick(batch, np.arange(start, start + rows) % batch.rows) for start in range(RUNS + 1)]
        predict(taken.pop())  # the first call of a shape may set things up
        return median(_timed(predict, some) for some in taken)

    single_s = seconds(1)
    rows = max(2, min(TRIED_ROWS, int(TRIED_S / single_s)))
    per_row_s = min(max(0.0, (seconds(rows) - single_s) / (rows - 1)), single_s)
    return Cost(single_s - per_row_s, per_row_s, rows)


def pays(cost: Cost) -> bool:
    """Whether callers gain when they are answered together: what a call costs beside its rows is large against
    handing requests over, and no smaller than a row."""
    return cost.fixed_s >= max(GAINS_FROM_S, cost.per_row_s)


def _pick(batch: Batch, rows: np.ndarray) -> Batch:
    """The rows of ``batch`` at these positions."""
    if batch.block is not None:
        return Batch(batch.names, block=batch.block[rows])
    return Batch(batch.names, tuple(column[rows] for column in batch.columns))


def _timed(predict: Callable[[Batch], Prediction], batch: Batch) -> float:
    started = time.perf_counter()
    predict(batch)
    return time.perf_counter() - started


class LearnedCost:
    """A model's cost as it is now: least squares over its calls, of which older ones weigh less."""

    def __init__(self, seed: Cost) -> None:
        self.now = seed
        self._sums = np.zeros(5)  # of 1, rows, seconds, rows², rows × seconds
        for rows in (1, seed.rows) * 2:
            self._add(rows, seed.of(rows))

    def saw(self, rows: int, seconds: float) -> None:
        """Learn from one call. A single slow one (the machine was busy) moves the cost only so far."""
        self._add(rows, min(seconds, OUTLIER * max(self.now.of(rows), HANDOVER_S)))
        weight, x, y, xx, xy = self._sums.tolist()
        x, y = x / weight, y / weight
        spread = xx / weight - x * x
        if spread > 0.1 * x * x:
            per_row_s = min(max(0.0, (xy / weight - x * y) / spread), y / x)
        else:  # all calls of about one size say how much, but not what of it is fixed: keep that share
            per_row_s = self.now.per_row_s * y / max(self.now.of(x), 1e-9)
        self.now = Cost(max(0.0, y - per_row_s * x), per_row_s, max(self.now.rows, rows))

    def _add(self, rows: int, seconds: float) -> None:
        self._sums = self._sums * KEEP + (1, rows, seconds, rows * rows, rows * seconds)


class Company:
    """How long the next caller takes to come when so many wait: a moving mean for each number of callers.

    Five callers that ask again as soon as they are answered are soon with each other, but a sixth never comes:
    a single rate of arrivals could not tell.
    """

    def __init__(self) -> None:
        self._after_s: dict[int, float] = {}
        self._watched: tuple[Hashable, int] | None = None  # the kind that one more is awaited of, and how many wait
        self._since, self._held = 0.0, False

    def await_one_more(self, kind: Hashable, callers: int, *, held: bool) -> None:
        """From now on, unless it is so already, see when somebody joins these; ``held``: they still wait for it."""
        if self._watched != (kind, callers):
            self._watched, self._since = (kind, callers), time.monotonic()
        self._held = held

    def came(self, kind: Hashable, at_most_s: float) -> None:
        """A caller came. Later than ``at_most_s`` is all the same: too late."""
        if self._watched is None or self._watched[0] != kind:
            return
        callers, now = self._watched[1], time.monotonic()
        after_s = min(now - self._since, at_most_s)
        before_s = self._after_s.get(callers, after_s)
        self._after_s[callers] = before_s + 0.2 * (after_s - before_s)
        self._watched, self._since = (kind, callers + 1) if self._held else None, now

    def expected_s(self, callers: int) -> float:
        """Seconds; infinite where nothing is known, so nobody waits before it was seen that it pays."""
        return self._after_s.get(callers, math.inf)
