"""The verdict on a challenger: is it better, by what turned out to be true, and no worse in what else callers feel?

People look again and again until they like what they see. So the bounds hold at every look at once: asymptotic
confidence sequences (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
confidence sequences", Annals of Statistics 2024, theorem 2.2). The price are bounds about half as wide again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ALPHA = 0.05  # how often the bounds are wrong at any look at all
TUNED_FOR = 1000  # labels; there the bounds are the tightest, elsewhere a little wider
LEAST_LABELS = 100
MOST_LABELS = 10_000_000
TELLING = 0.005  # a difference of a measure that is worth telling apart, where there is none so far
ERRORS_WORSE = 0.001  # by so much the share of failed rows may be larger
SLOWER, SLOWER_S = 1.25, 0.001  # so many times, and by so many seconds, it may be slower
BETTER_IF_HIGHER = ("accuracy",)
PREFERRED = ("brier", "accuracy", "mean_absolute_error")  # the first that both sides have decides

Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Gain:
    """How much better a challenger is by one metric; ``low`` and ``high`` bound the truth at every look."""

    metric: str
    paired: bool
    labels: int  # that it rests on; of two sides the smaller number
    gain: float
    low: float
    high: float
    error: float  # the standard error of ``gain``
    rows: int  # that the error is of

    def as_json(self) -> dict[str, Any]:
        names = ("metric", "paired", "labels", "gain", "low", "high")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. ``passed`` is None where it cannot be told yet."""

    what: str
    passed: bool | None
    text: str

    def as_json(self) -> dict[str, Any]:
        return {"what": self.what, "passed": self.passed, "text": self.text}


def width(error: float, rows: int) -> float:
    """Half of what is between the bounds, for a mean of ``rows`` values with the standard error ``error``."""
    if rows == 0:
        return math.inf
    likely = -2 * math.log(ALPHA)
    scale = rows * (likely + math.log(likely) + 1) / TUNED_FOR
    return error * math.sqrt(2 * (scale + 1) / scale * math.log(math.sqrt(scale + 1) / ALPHA))


def gain(standing: Measured, metric: str | None = None) -> Gain | None:
    """What `serving.ledger.contests.standing` says of ``metric``, or of the first of `PREFERRED` that both sides have.

    Rows that both answered are compared one by one; else the means of both sides. None where nothing is known.
    """
    pairs, sides = standing["pairs"], standing["sides"]
    known = [one for one in PREFERRED if pairs[one]] or [
        one for one in PREFERRED if sides["champion"][one] and sides["challenger"][one]
    ]
    chosen = metric or (known[0] if known else None)
    if chosen is None or chosen not in known:
        return None
    sign = 1.0 if chosen in BETTER_IF_HIGHER else -1.0
    if pairs[chosen]:
        rows = labels = pairs["labelled_rows"]
        value, error = pairs[chosen]["mean"], math.sqrt(_variance(pairs[chosen], rows) / rows)
    else:
        ours, theirs = sides["champion"], sides["challenger"]
        labels, rows = (
            min(ours["labelled_rows"], theirs["labelled_rows"]),
            ours["labelled_rows"] + theirs["labelled_rows"],
        )
        value = theirs[chosen]["mean"] - ours[chosen]["mean"]
        error = math.sqrt(
            sum(_variance(side[chosen], side["labelled_rows"]) / side["labelled_rows"] for side in (ours, theirs))
        )
    half = width(error, rows)
    return Gain(
        chosen, bool(pairs[chosen]), labels, sign * value, sign * value - half, sign * value + half, error, rows
    )


def _variance(spread: Measured, rows: int) -> float:
    """Of what the rows are a sample of."""
    return float(spread["variance"]) * rows / max(rows - 1, 1)


def interval(spread: Measured | None, rows: int) -> dict[str, float] | None:
    """A side's mean of one measure, with bounds; None where it has none."""
    if not spread or not rows:
        return None
    half = width(math.sqrt(_variance(spread, rows) / rows), rows)
    return {"mean": spread["mean"], "low": spread["mean"] - half, "high": spread["mean"] + half}


def labels_needed(found: Gain | None, margin: float = 0.0) -> int:
    """How many more labels it takes until the bounds tell, if the gain stays what it is: 0 where they do."""
    if found is None:
        return LEAST_LABELS
    if found.labels >= LEAST_LABELS and (found.low > -margin or found.high < -margin):
        return 0
    distance = max(abs(found.gain + margin), TELLING)
    rows = max(found.rows, LEAST_LABELS)
    while width(found.error * math.sqrt(found.rows / rows), rows) > distance and rows < MOST_LABELS:
        rows = math.ceil(rows * 1.05)
    return max(rows * found.labels // max(found.rows, 1) - found.labels, LEAST_LABELS - found.labels, 1)


def checks(champion: Measured, challenger: Measured, found: Gain | None, margin: float = 0.0) -> list[Check]:
    """What decides, live: errors, latency, enough labels, quality. Each side has ``error_ratio`` and ``latency``."""
    return [
        _errors(champion, challenger),
        _latency(champion, challenger),
        _enough(found),
        _quality(found, margin),
    ]


def decision(made: list[Check]) -> str:
    """``promote`` where all is well, ``keep`` where anything speaks against it, else ``wait``."""
    if any(check.passed is False for check in made):
        return "keep"
    return "promote" if all(check.passed for check in made) else "wait"


def _errors(champion: Measured, challenger: Measured) -> Check:
    ours, theirs = champion["error_ratio"], challenger["error_ratio"]
    if theirs is None:
        return Check("errors", None, "it has answered nothing yet")
    passed = theirs <= (ours or 0.0) + ERRORS_WORSE
    return Check("errors", passed, f"{theirs:.3%} of its rows failed, {ours or 0.0:.3%} of the champion's")


def _latency(champion: Measured, challenger: Measured) -> Check:
    ours, theirs = champion["latency"], challenger["latency"]
    for name, words in (("p95_s", "95 % of its calls take"), ("row_s", "when prepared, one row took")):
        if ours.get(name) is None or theirs.get(name) is None:
            continue
        passed = theirs[name] <= max(SLOWER * ours[name], ours[name] + SLOWER_S)
        text = f"{words} {_ms(theirs[name])}, of the champion {_ms(ours[name])}"
        return Check("latency", passed, text)
    return Check("latency", None, "it is not known how fast both are")


def _enough(found: Gain | None) -> Check:
    labels = found.labels if found is not None else 0
    if labels >= LEAST_LABELS:
        return Check("labels", True, f"{labels} labels")
    return Check("labels", None, f"{labels} labels, at least {LEAST_LABELS} are needed")


def _quality(found: Gain | None, margin: float) -> Check:
    if found is None:
        return Check("quality", None, "nothing is known of how right they were")
    text = f"{found.metric} is better by {found.gain:.4f}, between {found.low:.4f} and {found.high:.4f}"
    if margin:
        text += f"; it may be worse by {margin:g}"
    if found.labels < LEAST_LABELS:
        return Check("quality", None, text)
    passed = True if found.low > -margin else False if found.high < -margin else None
    return Check("quality", passed, text)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
