"""The report: what was to reach, what was measured, how to repeat it. Markdown that reads well in a terminal."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers import Peer
from benchmarks.results import Case, Results, quotient

MISSING = "–"
SHOWN = ("rate", "p50_ms", "p99_ms")
ONE_16, ONE_1 = Case("forest", 1, 16), Case("forest", 1, 1)
MANY_16 = Case("forest", 1_000, 16)
FLIPPING = Case("forest", 1, 16, flips=True)
TITLES = {"forest": "Random forest of 100 trees", "boosting": "Gradient boosting, 100 stages"}
BUSY = 0.5  # a load average from which on figures are not to be trusted
CURVE_ROWS = (1, 10, 100, 1_000, 10_000, 100_000)


@dataclass(frozen=True)
class Conditions:
    """Where and how it was measured."""

    cpu: str
    cores: int
    system: str
    python: str
    rounds: int
    seconds: float
    minutes: float
    busy: float  # load average before it began

    @classmethod
    def here(cls, rounds: int, seconds: float, minutes: float, busy: float) -> Conditions:
        cores = os.cpu_count() or 1
        return cls(_cpu(), cores, platform.system(), platform.python_version(), rounds, seconds, minutes, busy)


@dataclass(frozen=True)
class Target:
    """A line of what is to be reached: a value at least, or at most, so high. ``aim`` is beyond it."""

    what: str
    wanted: float
    measured: float | None
    at_least: bool
    unit: str
    aim: str = ""

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted

    def cells(self) -> list[str]:
        bound = "at least" if self.at_least else "at most"
        wanted = f"{bound} {self.wanted:g}{self.unit}{self.aim}"
        verdict = {None: "not measured", True: "yes", False: "**no**"}[self.met]
        return [self.what, wanted, shown(self.measured, self.unit), verdict]


def document(results: Results, peers: list[Peer], here: Conditions) -> str:
    """The whole report."""
    sections = [
        _head(here),
        "## What was to be reached\n\nOne core, single rows, the random forest, 16 connections, unless said.\n",
        table(["", "to reach", "measured", "reached"], [target.cells() for target in targets(results)]),
        *_loads(results, peers),
        *_flips(results),
        *_starts(results, peers),
        *_curve(results),
        *_workers(results),
        *_faults(results),
        *_versions(results, peers),
        _method(here),
    ]
    return "\n".join(sections)


def targets(results: Results) -> list[Target]:
    """What issue and README promise, beside what was measured."""
    p99_flipping = quotient(results.load("ours", FLIPPING, "p99_ms"), results.load("ours", ONE_16, "p99_ms"))
    ratio = results.ratio
    return [
        Target("requests per second against `mlflow models serve`", 20, ratio(ONE_16, "ours", "mlflow"), True, " ×"),
        Target("requests per second against MLServer, its faster runtime", 13, _against_mlserver(results), True, " ×"),
        Target("against the empty Flask route", 0.85, ratio(ONE_16, "ours", "floor-flask"), True, " ×"),
        Target("against the empty Flask route on our own loop", 0.85, ratio(ONE_16, "ours", "floor-loop"), True, " ×"),
        Target("median at one connection", 0.5, results.load("ours", ONE_1, "p50_ms"), False, " ms"),
        Target("p99", 10, results.load("ours", ONE_16, "p99_ms"), False, " ms"),
        Target("rows per second, 1,000 a request, against mlflow", 10, ratio(MANY_16, "ours", "mlflow"), True, " ×"),
        Target("p99 while the alias flips, against p99 at rest", 1.5, p99_flipping, False, " ×"),
        Target("start to first answer, prepared", 1.0, results.start_s("ours", "forest"), False, " s"),
        Target("memory with one worker, agent included", 150, results.memory("ours", "forest"), False, " MB"),
        Target("two workers on two cores against one", 1.8, _second_worker(results, 1), True, " ×"),
    ]


def table(header: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table with its columns lined up; all but the first to the right."""
    lines = [header, *rows]
    widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [
            cells[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)),
        ]
        return f"| {' | '.join(padded)} |"

    rule = f"| {'-' * widths[0]} | {' | '.join('-' * (width - 1) + ':' for width in widths[1:])} |"
    return "\n".join([line(lines[0]), rule, *map(line, lines[1:])]) + "\n"


def shown(value: float | None, unit: str = "") -> str:
    """Three figures that mean something, and the unit."""
    if value is None:
        return MISSING
    figures = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{figures}{unit}"


# --- sections --------------------------------------------------------------------------------------------------------


def _head(here: Conditions) -> str:
    return (
        "# Benchmarks\n\n"
        "Made by `make bench`, which sets up every server below in an environment of its own and asks all of them\n"
        "about the same model file. Absolute numbers are those of one machine; the ratios, taken in one run, count.\n\n"
        f"{here.cpu}, {here.cores} cores, {here.system}, Python {here.python}; medians of {here.rounds} "
        f"round{'s' if here.rounds > 1 else ''} of {here.seconds:g} s.\n"
        f"{_caution(here)}"
    )


def _caution(here: Conditions) -> str:
    """Other programs take time from servers, and not the same from each."""
    if here.busy <= BUSY:
        return ""
    return f"\n**The machine was busy before this began (load average {here.busy:.1f}): do not trust these figures.**\n"


def _loads(results: Results, peers: list[Peer]) -> Iterable[str]:
    header = ["", "1 conn: /s", "p50 ms", "p99 ms", "16 conns: /s", "p50 ms", "p99 ms", "ours is"]
    for model, title in TITLES.items():
        for rows in (1, 1_000):
            yield f"## {title}: {rows:,} row{'s' if rows > 1 else ''} a request\n"
            lines = [_load_line(results, peer, model, rows) for peer in peers]
            yield table(header, [line for line in lines if line is not None])


def _load_line(results: Results, peer: Peer, model: str, rows: int) -> list[str] | None:
    if peer.floor and (model, rows) != ("forest", 1):
        return None
    if peer.name in results.absent:
        return [peer.title, results.absent[peer.name], *[""] * 6]
    one, many = Case(model, rows, 1), Case(model, rows, 16)
    figures = [shown(results.load(peer.name, case, what)) for case in (one, many) for what in SHOWN]
    faster = MISSING if peer.name == "ours" else shown(results.ratio(many, "ours", peer.name), " ×")
    return [peer.title, *figures, faster]


def _flips(results: Results) -> Iterable[str]:
    if results.load("ours", FLIPPING, "rate") is None:
        return
    yield "## While the alias flips every second\n"
    yield (
        f"{results.flips} moves of the alias through MLflow's client, each followed by `POST /model/reload`; every\n"
        "answer was that of one of the two versions, with its number on it. The others need a restart to do this.\n"
    )
    cells = [
        [name, *(shown(results.load("ours", case, what)) for what in ("rate", "p50_ms", "p99_ms", "max_ms"))]
        for name, case in (("at rest", ONE_16), ("flipping", FLIPPING))
    ]
    yield table(["", "/s", "p50 ms", "p99 ms", "longest ms"], cells)


def _starts(results: Results, peers: list[Peer]) -> Iterable[str]:
    yield "## Start and memory\n"
    yield (
        "Seconds from the start of the process to its first right answer; memory is PSS summed over the process tree\n"
        "after load. *Unprepared*: with an empty state folder, so that the version is fetched and prepared first.\n"
    )
    lines = []
    for peer in peers:
        if peer.name == "ours":
            unprepared = [shown(results.start_s("ours", f"{model}, unprepared")) for model in TITLES]
            lines.append([f"{peer.title}, unprepared", unprepared[0], MISSING, unprepared[1], MISSING])
        starts = [shown(results.start_s(peer.name, model)) for model in TITLES]
        memory = [shown(results.memory(peer.name, model)) for model in TITLES]
        if peer.name not in results.absent:
            lines.append([peer.title, starts[0], memory[0], starts[1], memory[1]])
    yield table(["", "forest: s", "MB", "boosting: s", "MB"], lines)


def _curve(results: Results) -> Iterable[str]:
    cases = [Case("forest", rows, 1) for rows in CURVE_ROWS]
    if results.load("ours", cases[-1], "p50_ms") is None:
        return
    yield "## What a row costs: this service, random forest, one connection\n"
    lines = []
    for case in cases:
        p50 = results.load("ours", case, "p50_ms")
        each = None if p50 is None else p50 * 1000 / case.rows
        rate = results.load("ours", case, "rate")
        lines.append([f"{case.rows:,}", shown(p50), shown(each), shown(rate and rate * case.rows)])
    yield table(["rows a request", "median ms", "µs a row", "rows/s"], lines)


def _workers(results: Results) -> Iterable[str]:
    if _second_worker(results, 1) is None:
        return
    yield "## A second worker\n"
    beside = (
        "has cores of its own"
        if (os.cpu_count() or 1) > 2
        else "shares these two cores, which takes from the second worker"
    )
    yield f"This service on two cores, 16 connections; wrk {beside}.\n"
    lines = []
    for rows in (1, 1_000):
        one, two = (Case("forest", rows, 16, workers=count) for count in (1, 2))
        rates = [results.load("ours", case, "rate") for case in (one, two)]
        lines.append([f"{rows:,}", *map(shown, rates), shown(_second_worker(results, rows), " ×")])
    yield table(["rows a request", "1 worker: /s", "2 workers: /s", "ratio"], lines)


def _faults(results: Results) -> Iterable[str]:
    yield "## Right answers\n"
    if not results.faults:
        yield (
            "Before and after each load, answers were compared with scikit-learn's own: labels, and probabilities\n"
            "where a server gives them; under load every single answer was compared with those. All were right.\n"
        )
        return
    yield "These runs do not count:\n"
    yield "\n".join(f"- {fault}" for fault in results.faults) + "\n"


def _versions(results: Results, peers: list[Peer]) -> Iterable[str]:
    yield "## Versions\n"
    lines = []
    for peer in peers:
        if peer.floor:
            continue
        found = ", ".join(f"{name} {version}" for name, version in results.versions.get(peer.name, {}).items())
        lines.append(
            f"- {peer.title}: {found or results.absent.get(peer.name)}{f' ({peer.note})' if peer.note else ''}"
        )
    yield "\n".join(lines) + "\n"


def _method(here: Conditions) -> str:
    return (
        "## How to repeat it\n\n"
        "```\nmake bench                         # all of it; needs wrk (apt-get install wrk) and two cores\n"
        "make bench ONLY=ours,mlflow        # some servers only: prints, and leaves this file alone\n"
        "make bench ROUNDS=5 SECONDS=10     # longer\n```\n\n"
        "- One server runs at a time, on core 0, with whatever it is by default; wrk is on core 1. Servers take turns\n"
        "  in every round, so that a slow minute of the machine hits all of them.\n"
        "- Ours has all defaults on: validation, request ids, metrics, a log line for each request (to a file, as\n"
        "  with the others), and the agent, which follows the registry on the same core.\n"
        "- The plain services ask scikit-learn once a request and give it arrays, which it takes faster than frames.\n"
        "  The code of each is in `benchmarks/servers/`.\n"
        "- wrk keeps its connections busy: at 16 connections a median is mostly waiting for the 15 others.\n"
        f"- This run took {here.minutes:.0f} minutes, environments included.\n"
    )


def _against_mlserver(results: Results) -> float | None:
    """Against whichever of its runtimes is faster."""
    found = [results.ratio(ONE_16, "ours", name) for name in ("mlserver", "mlserver-mlflow")]
    return min((ratio for ratio in found if ratio is not None), default=None)


def _second_worker(results: Results, rows: int) -> float | None:
    one, two = (results.load("ours", Case("forest", rows, 16, workers=count), "rate") for count in (1, 2))
    return quotient(two, one)


def _cpu(read: Callable[[], str] = lambda: Path("/proc/cpuinfo").read_text(encoding="utf-8")) -> str:
    try:
        names = [line.split(":", 1)[1].strip() for line in read().splitlines() if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()
