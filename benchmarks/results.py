"""What was measured, and medians of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

from benchmarks.load import Measured


@dataclass(frozen=True)
class Case:
    """One kind of load. ``workers`` is 0 where a server runs as it comes, on one core."""

    model: str
    rows: int
    connections: int
    flips: bool = False
    workers: int = 0

    def __str__(self) -> str:
        plural = "s" if self.rows > 1 else ""
        words = [f"{self.model}, {self.rows:,} row{plural}, {self.connections} connection"]
        words[0] += "s" if self.connections > 1 else ""
        words += ["alias flips"] if self.flips else []
        words += [f"{self.workers} worker{'s' if self.workers > 1 else ''}"] if self.workers else []
        return ", ".join(words)


@dataclass
class Results:
    """Everything of one bench, by server; lists have one entry for each round."""

    loads: dict[tuple[str, Case], list[Measured]] = field(default_factory=lambda: defaultdict(list))
    starts: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))  # (name, what) -> s
    memory_mb: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))  # (name, model)
    rounds: int = 0
    flips: int = 0
    absent: dict[str, str] = field(default_factory=dict)  # name -> why it was not measured
    faults: list[str] = field(default_factory=list)  # runs that do not count, and why
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def load(self, name: str, case: Case, what: str) -> float | None:
        """The median of ``what`` (a field of `Measured`) over the rounds that count; None if there are none."""
        found = [getattr(run, what) for run in self.loads.get((name, case), []) if run.fault is None]
        return median(found) if found else None

    def start_s(self, name: str, what: str) -> float | None:
        """The median of the seconds to a first right answer."""
        return _median(self.starts.get((name, what)))

    def memory(self, name: str, model: str) -> float | None:
        """The median of the megabytes after load."""
        return _median(self.memory_mb.get((name, model)))

    def ratio(self, case: Case, name: str, other: str, what: str = "rate") -> float | None:
        """``what`` of ``name`` over that of ``other``, median over median; None if either is missing."""
        return quotient(self.load(name, case, what), self.load(other, case, what))


def quotient(over: float | None, under: float | None) -> float | None:
    return over / under if over is not None and under else None


def _median(values: list[float] | None) -> float | None:
    return median(values) if values else None
