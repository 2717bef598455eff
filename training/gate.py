"""The gate: may a new version take over from the one behind the alias?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.tensors import Signature

Metrics = Mapping[str, float]

# Means of the same numbers may differ in their last bits.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Rule:
    """What the gate asks of one metric.

    ``limit`` holds for every version, so that many small steps down cannot add up; a version may be worse than the one
    it replaces by at most ``tolerance``.
    """

    metric: str
    limit: float
    tolerance: float
    lower_is_better: bool = False

    def cost(self, metrics: Metrics) -> float:
        """The metric, turned so that less is better and rounded so that equal is equal."""
        value = metrics[self.metric]
        return round(value if self.lower_is_better else -value, 9)

    def allows(self, value: float, bound: float) -> bool:
        """Whether ``value`` is on the right side of ``bound``; one that is no number is not."""
        return value <= bound + ROUNDING if self.lower_is_better else value >= bound - ROUNDING


@dataclass(frozen=True)
class Contender:
    """A registered version as its files came back from the store: its metrics on the holdout, or why it has none."""

    version: str
    metrics: Metrics | None = None
    signature: Signature | None = None
    problem: str = ""


@dataclass(frozen=True)
class Check:
    """One thing that the gate looked at."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Verdict:
    """What the gate found."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """In a few words, for a tag."""
        return "passed" if self.passed else "refused: " + "; ".join(c.text for c in self.checks if not c.passed)


def judge(rules: Sequence[Rule], new: Contender, champion: Contender | None, breaking: bool = False) -> Verdict:
    """May ``new`` replace ``champion``, or be the first where there is none?

    ``breaking`` allows a signature that requests made for the champion do not fit.
    """
    if new.metrics is None:
        return Verdict((_unmeasured(new),))
    limits = tuple(_within_limit(rule, new.metrics) for rule in rules)
    if champion is None:
        return Verdict((*limits, Check(True, "no version to compare with")))
    if champion.metrics is None:
        return Verdict((*limits, _unmeasured(champion), *_signatures(new, champion, breaking)))
    steps = (_no_step_back(rule, new.metrics, champion.version, champion.metrics) for rule in rules)
    return Verdict((*limits, *steps, *_signatures(new, champion, breaking)))


def _within_limit(rule: Rule, metrics: Metrics) -> Check:
    value, bound = metrics[rule.metric], "at most" if rule.lower_is_better else "at least"
    return Check(rule.allows(value, rule.limit), f"{rule.metric} {value:.4f}, must be {bound} {rule.limit:g}")


def _no_step_back(rule: Rule, metrics: Metrics, version: str, theirs: Metrics) -> Check:
    mine, old = metrics[rule.metric], theirs[rule.metric]
    bound = old + (rule.tolerance if rule.lower_is_better else -rule.tolerance)
    text = f"{rule.metric} {mine:.4f}, version {version} has {old:.4f}, tolerance {rule.tolerance:g}"
    return Check(rule.allows(mine, bound), text)


def _unmeasured(contender: Contender) -> Check:
    return Check(False, f"version {contender.version} cannot be measured: {contender.problem}")


def _signatures(new: Contender, champion: Contender, breaking: bool) -> tuple[Check, ...]:
    if new.signature is None or champion.signature is None or new.signature.accepts(champion.signature):
        return ()
    declared = "a declared break" if breaking else "declare it with --breaking-change"
    return (Check(breaking, f"requests for version {champion.version} do not fit its signature: {declared}"),)
