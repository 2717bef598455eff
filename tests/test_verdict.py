"""The verdict: better is promoted, worse and undecided are not, however often somebody looks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving import verdict
from serving.verdict import Check, decision, gain, labels_needed, width

FAST = {"error_ratio": 0.0, "latency": {"p95_s": 0.001, "row_s": 0.001}}


def spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "variance": float(values.var())}


def nothing(rows: int = 0) -> dict[str, Any]:
    return {"labelled_rows": rows, "accuracy": None, "brier": None, "log_loss": None, "mean_absolute_error": None}


def paired(difference: np.ndarray, metric: str = "accuracy") -> dict[str, Any]:
    pairs = {**nothing(len(difference)), metric: spread(difference)}
    return {"pairs": pairs, "sides": {"champion": nothing(), "challenger": nothing()}}


def sided(ours: np.ndarray, theirs: np.ndarray, metric: str = "accuracy") -> dict[str, Any]:
    sides = {"champion": ours, "challenger": theirs}
    return {
        "pairs": nothing(),
        "sides": {role: {**nothing(len(values)), metric: spread(values)} for role, values in sides.items()},
    }


def decided(standing: dict[str, Any], margin: float = 0.0) -> str:
    return decision(verdict.checks(FAST, FAST, gain(standing), margin))


def flips(random: np.random.Generator, rows: int, better: float, worse: float) -> np.ndarray:
    """Differences of correctness: 1 where only the challenger is right, -1 where only the champion is."""
    return random.choice([1.0, -1.0, 0.0], rows, p=[better, worse, 1 - better - worse])


def test_better_worse_and_undecided() -> None:
    random = np.random.default_rng(1)
    assert decided(paired(flips(random, 2000, 0.15, 0.05))) == "promote"
    assert decided(paired(flips(random, 2000, 0.05, 0.15))) == "keep"
    assert decided(paired(flips(random, 2000, 0.10, 0.10))) == "wait"
    assert decided(paired(flips(random, 50, 0.9, 0.0))) == "wait"  # too few labels to tell


def test_sides_that_answered_different_callers() -> None:
    random = np.random.default_rng(2)
    ours, better, worse = ((random.random(3000) < share).astype(float) for share in (0.8, 0.9, 0.7))
    assert decided(sided(ours, better)) == "promote"
    assert decided(sided(ours, worse)) == "keep"
    assert not gain(sided(ours, better)).paired  # type: ignore[union-attr]


def test_less_error_is_better() -> None:
    random = np.random.default_rng(3)
    assert decided(paired(random.normal(-1.0, 2.0, 2000), "mean_absolute_error")) == "promote"
    assert decided(paired(random.normal(1.0, 2.0, 2000), "brier")) == "keep"


def test_a_margin_lets_alike_pass() -> None:
    random = np.random.default_rng(4)
    alike = paired(flips(random, 20_000, 0.02, 0.02))
    assert (decided(alike), decided(alike, margin=0.02)) == ("wait", "promote")


def test_looking_after_every_label_is_seldom_wrong() -> None:
    """Two versions that are equally good: in how many of 300 trials is one called better at any of 100 looks?"""
    random, wrong = np.random.default_rng(5), 0
    for _ in range(300):
        values = flips(random, 5000, 0.1, 0.1)
        wrong += any(decided(paired(values[:rows])) != "wait" for rows in range(100, 5001, 49))
    assert wrong / 300 <= verdict.ALPHA + 0.03


def test_the_bounds_close_as_labels_come() -> None:
    widths = [width(0.5 / np.sqrt(rows), rows) for rows in (100, 1000, 10_000, 100_000)]
    assert widths == sorted(widths, reverse=True)
    assert width(0.5 / np.sqrt(1000), 1000) < 2 * 1.96 * 0.5 / np.sqrt(1000)


@pytest.mark.parametrize("rows", [0, 40, 400])
def test_labels_that_are_needed_are_enough(rows: int) -> None:
    random = np.random.default_rng(6)
    values = flips(random, 100_000, 0.105, 0.095)
    needed = labels_needed(gain(paired(values[:rows])) if rows else None)
    assert needed > 0
    found = gain(paired(values[:100_000]))
    assert found is not None
    assert labels_needed(found) == 0


def test_failures_and_slowness_speak_against_it() -> None:
    better = gain(paired(np.ones(200)))
    failing = {**FAST, "error_ratio": 0.02}
    slow = {**FAST, "latency": {"p95_s": 0.1}}
    silent = {"error_ratio": None, "latency": {}}
    assert decision(verdict.checks(FAST, failing, better)) == "keep"
    assert decision(verdict.checks(FAST, slow, better)) == "keep"
    assert decision(verdict.checks(FAST, silent, better)) == "wait"
    assert decision(verdict.checks(failing, failing, better)) == "promote"


def test_nothing_known_is_nothing_decided() -> None:
    standing = {"pairs": nothing(), "sides": {"champion": nothing(), "challenger": nothing()}}
    assert gain(standing) is None
    assert decision([Check("a", True, ""), Check("b", None, "")]) == "wait"
    assert gain(paired(np.ones(9)), metric="brier") is None
