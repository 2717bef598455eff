from __future__ import annotations

import math

import pytest

from serving.tensors import Field, Signature
from training.gate import Contender, Rule, judge

RULES = (Rule("accuracy", limit=0.9, tolerance=0.02), Rule("log_loss", limit=0.4, tolerance=0.05, lower_is_better=True))


def contender(accuracy: float, log_loss: float, version: str = "2") -> Contender:
    return Contender(version, {"accuracy": accuracy, "log_loss": log_loss})


@pytest.mark.parametrize(
    ("accuracy", "log_loss", "passed"),
    [
        (0.9, 0.4, True),
        (0.89, 0.1, False),
        (0.99, 0.41, False),
        (math.nan, 0.1, False),
        (0.99, math.nan, False),
    ],
)
def test_first_version_has_limits_only(accuracy: float, log_loss: float, passed: bool) -> None:
    assert judge(RULES, contender(accuracy, log_loss), None).passed is passed


@pytest.mark.parametrize(
    ("accuracy", "log_loss", "passed"),
    [
        (0.98, 0.10, True),
        (0.96, 0.15, True),  # worse by exactly the tolerance
        (0.95, 0.10, False),
        (0.98, 0.16, False),
        (1.0, 0.0, True),
    ],
)
def test_later_version_may_be_worse_by_the_tolerance(accuracy: float, log_loss: float, passed: bool) -> None:
    assert judge(RULES, contender(accuracy, log_loss), contender(0.98, 0.10, "1")).passed is passed


def test_small_steps_down_end_at_the_limit() -> None:
    assert not judge(RULES, contender(0.89, 0.1), contender(0.9, 0.1, "1")).passed


def test_refusal_names_what_failed() -> None:
    verdict = judge(RULES, contender(0.95, 0.10), contender(0.98, 0.10, "7"))
    assert str(verdict) == "refused: accuracy 0.9500, version 7 has 0.9800, tolerance 0.02"


@pytest.mark.parametrize("broken", ["new", "champion"])
def test_version_without_metrics_is_refused(broken: str) -> None:
    fine, none = contender(0.98, 0.1, "1"), Contender("9", problem="no such file")
    verdict = judge(RULES, none, fine) if broken == "new" else judge(RULES, fine, none)
    assert not verdict.passed
    assert "version 9 cannot be measured: no such file" in str(verdict)


def test_signature_that_breaks_clients_must_be_declared() -> None:
    narrow, wide = (
        Contender(version, {"accuracy": 1.0, "log_loss": 0.0}, Signature("columns", (Field("a", kind),)))
        for version, kind in (("2", "integer"), ("1", "double"))
    )
    assert judge(RULES, wide, narrow).passed
    assert not judge(RULES, narrow, wide).passed
    assert judge(RULES, narrow, wide, breaking=True).passed
