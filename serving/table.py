"""Words for a terminal: two versions side by side, what was checked, and the versions that there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from serving.registry.moves import Listed

NOTHING = "-"
SIDES = ("champion", "challenger")
TIMES = {
    "p50_s": "half of the calls take",
    "p95_s": "95 % take",
    "p99_s": "99 % take",
    "row_s": "one row, when prepared",
}
QUALITY = ("accuracy", "brier", "log_loss", "mean_absolute_error")
WORDS = {True: "yes", False: "no", None: "not yet"}

Plain = Mapping[str, Any]


def side_by_side(found: Plain) -> str:
    """What `serving.comparison.compare` found, as a table and a verdict."""
    sides = [found[side] for side in SIDES]
    rows = [
        ("", *SIDES),
        ("version", *(side["version"] for side in sides)),
        ("rows", *(f"{side['rows']:,}" for side in sides)),
        ("failed", *(_share(side["error_ratio"]) for side in sides)),
        *((words, *(_ms(side["latency"].get(name)) for side in sides)) for name, words in TIMES.items()),
        ("labelled rows", *(f"{side['quality']['labelled_rows']:,}" for side in sides)),
        *((name, *(_bounded(side["quality"].get(name)) for side in sides)) for name in _known(sides)),
    ]
    head = f"{found['model']}: the challenger takes part by {found['part']}, since {found['since']}"
    return "\n".join([head, "", *aligned(rows), "", *_agreement(found["agreement"]), *_verdict(found["verdict"])])


def check_lines(checks: Sequence[Plain]) -> list[str]:
    """Each thing that was looked at, in a line."""
    return aligned([(check["what"], WORDS[check["passed"]], check["text"]) for check in checks])


def version_lines(versions: Sequence[Listed]) -> list[str]:
    """Versions to choose from, the newest first."""
    rows = [(one.version, ", ".join(one.aliases), one.gate or "", _past(one)) for one in versions]
    return aligned([("version", "aliases", "gate", ""), *rows]) if rows else []


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines with their columns below each other."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _verdict(verdict: Plain) -> list[str]:
    needed = verdict["labels_needed"]
    missing = f", about {needed:,} more labels" if needed and verdict["decision"] == "wait" else ""
    return [*check_lines(verdict["checks"]), "", f"verdict: {verdict['decision']}{missing}"]


def _agreement(agreement: Plain | None) -> list[str]:
    if agreement is None or agreement["agreed_ratio"] is None:
        return []
    said = f"both agree in {_share(agreement['agreed_ratio'])} of {agreement['rows']:,} rows that both answered"
    lost = [f"{agreement[f'{how}_rows']:,} {how}" for how in ("failed", "dropped") if agreement[f"{how}_rows"]]
    return [f"{said} ({', '.join(lost)})" if lost else said, ""]


def _known(sides: Sequence[Plain]) -> list[str]:
    return [name for name in QUALITY if any(side["quality"].get(name) for side in sides)]


def _bounded(measure: Plain | None) -> str:
    return f"{measure['mean']:.4f} ({measure['low']:.4f} to {measure['high']:.4f})" if measure else NOTHING


def _share(ratio: float | None) -> str:
    return NOTHING if ratio is None else f"{100 * ratio:.3g} %"


def _ms(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{1000 * seconds:.3g} ms"


def _past(one: Listed) -> str:
    return "rolled back" if one.rolled_back else ""
