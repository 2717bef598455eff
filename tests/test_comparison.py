"""Champion and challenger side by side, of what was counted and what is on record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from serving import notes
from serving.comparison import NoChallenger, compare
from serving.exposition import Exposition
from serving.metrics import Metrics
from serving.roster import Roster
from serving.state import LedgerState, ModelState

SINCE = "2026-01-01T00:00:00+00:00"


class Pod:
    """The notes and counters of a service with two versions of ``m``."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        registry = CollectorRegistry()
        self.metrics = Metrics(registry)
        self.exposition = Exposition(Roster(["m"], state_dir), state_dir, None, registry)
        notes.write(ModelState(state_dir, "m").desired, self.note("1", "champion"))

    @staticmethod
    def note(version: str, alias: str) -> dict[str, Any]:
        return {"generation": 1, "bundle": f"bundles/{version}", "version": version, "alias": alias, "since": SINCE}

    def challenge(self, part: str) -> None:
        state = ModelState(self.state_dir, "m", ModelState.CHALLENGER)
        notes.write(state.desired, {**self.note("2", "challenger"), "part": part})

    def labelled(self, rows: int, ours: float, theirs: float) -> None:
        """What the ledger says of rows that both answered."""
        empty = dict.fromkeys(("brier", "log_loss", "mean_absolute_error"))

        def side(mean: float, variance: float = 0.1) -> dict[str, Any]:
            return {"labelled_rows": rows, "accuracy": {"mean": mean, "variance": variance}, **empty}

        sides = {"champion": side(ours), "challenger": side(theirs)}
        standing = {"model": "m", "champion": "1", "challenger": "2", "since": SINCE, "sides": sides}
        contests = [{**standing, "pairs": side(theirs - ours, 0.05)}]
        notes.write(LedgerState(self.state_dir).status, {"reachable": True, "quality": [], "contests": contests})

    def compare(self, **options: Any) -> dict[str, Any]:
        return compare("m", self.state_dir, self.exposition, **options)


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_without_a_challenger_there_is_nothing_to_compare(pod: Pod) -> None:
    with pytest.raises(NoChallenger, match="no version challenges 'm'"):
        pod.compare()


def test_why_there_is_none_is_said(pod: Pod) -> None:
    state = ModelState(pod.state_dir, "m", ModelState.CHALLENGER)
    notes.write(state.status, {"registry": None, "refused": {"message": "m version 2 refused: it hangs"}})
    with pytest.raises(NoChallenger, match="m version 2 refused: it hangs"):
        pod.compare()


def test_before_anything_happened(pod: Pod) -> None:
    pod.challenge("shadow")
    found = pod.compare()
    assert (found["champion"]["version"], found["challenger"]["version"], found["part"]) == ("1", "2", "shadow")
    assert found["challenger"]["error_ratio"] is None
    assert (found["gain"], found["agreement"]) == (None, None)
    assert found["verdict"]["decision"] == "wait"
    assert found["verdict"]["labels_needed"] == 100


def test_a_share_is_counted_like_the_champion(pod: Pod) -> None:
    pod.challenge("10%")
    for version, ok, error, seconds in (("1", 900, 0, 0.002), ("2", 90, 10, 0.2)):
        pod.metrics.predictions.labels("m", version, "ok").inc(ok)
        pod.metrics.predictions.labels("m", version, "error").inc(error)
        for _ in range(100):
            pod.metrics.inference_s.labels("m", version).observe(seconds)
    found = pod.compare()
    assert (found["champion"]["rows"], found["champion"]["error_ratio"]) == (900, 0.0)
    assert (found["challenger"]["rows"], found["challenger"]["error_ratio"]) == (100, 0.1)
    assert 0.001 <= found["champion"]["latency"]["p95_s"] <= 0.0025
    assert 0.1 <= found["challenger"]["latency"]["p95_s"] <= 0.25
    failed = {check["what"] for check in found["verdict"]["checks"] if check["passed"] is False}
    assert failed == {"errors", "latency"}
    assert found["verdict"]["decision"] == "keep"


def test_a_shadow_is_counted_by_what_it_was_shown(pod: Pod) -> None:
    pod.challenge("shadow")
    for outcome, rows in (("agreed", 90), ("disagreed", 10), ("failed", 0), ("dropped", 7)):
        pod.metrics.shadow_rows.labels("m", "2", outcome).inc(rows)
    pod.metrics.shadow_difference.labels("m", "2").inc(5.0)
    found = pod.compare()
    assert (found["challenger"]["rows"], found["challenger"]["error_ratio"]) == (100, 0.0)
    assert found["agreement"] == {
        "rows": 100,
        "agreed_ratio": 0.9,
        "mean_difference": 0.05,
        "failed_rows": 0,
        "dropped_rows": 7,
    }


@pytest.mark.parametrize(("theirs", "decision"), [(0.95, "promote"), (0.7, "keep"), (0.801, "wait")])
def test_the_verdict(pod: Pod, theirs: float, decision: str) -> None:
    pod.challenge("10%")
    for version in ("1", "2"):
        pod.metrics.predictions.labels("m", version, "ok").inc(1000)
        for _ in range(100):
            pod.metrics.inference_s.labels("m", version).observe(0.001)
    pod.labelled(1000, 0.8, theirs)
    found = pod.compare()
    assert found["verdict"]["decision"] == decision
    assert (found["verdict"]["labels_needed"] == 0) == (decision != "wait")
    quality = found["challenger"]["quality"]
    assert quality["accuracy"]["low"] < theirs < quality["accuracy"]["high"]
    assert "brier" not in quality


def test_a_margin_decides_too(pod: Pod) -> None:
    pod.challenge("10%")
    pod.metrics.predictions.labels("m", "2", "ok").inc(1000)
    for version in ("1", "2"):
        pod.metrics.inference_s.labels("m", version).observe(0.001)
    pod.labelled(10_000, 0.8, 0.8)
    assert (pod.compare()["verdict"]["decision"], pod.compare(margin=0.05)["verdict"]["decision"]) == (
        "wait",
        "promote",
    )


def test_of_another_contest_nothing_is_used(pod: Pod) -> None:
    pod.challenge("10%")
    pod.labelled(1000, 0.8, 0.95)
    notes.write(ModelState(pod.state_dir, "m").desired, pod.note("3", "champion"))
    assert pod.compare()["gain"] is None
