"""The threshold by cost, against trying every one."""

from __future__ import annotations

import numpy as np
import pytest

from training.decision import Costs

COSTS = Costs(missed=10.0, false_alarm=1.0)


def test_what_is_right_costs_nothing() -> None:
    labels = np.array([1, 0, 1, 0])
    assert COSTS.mean(labels == 1, labels) == 0.0
    assert COSTS.mean(np.zeros(4, bool), labels) == 5.0
    assert COSTS.mean(np.ones(4, bool), labels) == 0.5


def test_the_curve_is_the_cost_of_every_threshold() -> None:
    random = np.random.default_rng(0)
    scores = np.round(random.random(200), 2)  # some of them equal
    labels = (random.random(200) < scores / 3).astype(int)
    thresholds, costs = COSTS.curve(scores, labels)
    assert len(thresholds) == len(set(scores.tolist())) + 1
    for threshold, cost in zip(thresholds, costs, strict=True):
        assert COSTS.mean(scores >= threshold, labels) == pytest.approx(cost)


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_is_no_dearer_than_any_other(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.random(300)
    labels = (random.random(300) < scores**3).astype(int)
    best = COSTS.mean(scores >= COSTS.best_threshold(scores, labels), labels)
    assert all(best <= COSTS.mean(scores >= other, labels) + 1e-12 for other in [*scores, 0.0, 1.1])


def test_of_true_probabilities_it_is_the_fair_one() -> None:
    random = np.random.default_rng(1)
    scores = random.random(200_000)
    labels = (random.random(200_000) < scores).astype(int)
    assert COSTS.fair_threshold == pytest.approx(1 / 11)
    assert COSTS.best_threshold(scores, labels) == pytest.approx(1 / 11, abs=0.03)


def test_nobody_is_flagged_where_there_is_nothing_to_find() -> None:
    assert COSTS.best_threshold(np.array([0.2, 0.9]), np.array([0, 0])) > 0.9


def test_everybody_is_flagged_where_all_are_cases() -> None:
    assert COSTS.best_threshold(np.array([0.2, 0.9]), np.array([1, 1])) < 0.2
