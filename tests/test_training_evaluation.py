"""How candidates are tried: on folds, once, or not at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training import evaluation, iris

FOREST = {"n_estimators": 3, "max_depth": 2}
FAMILY = replace(iris.FAMILY, candidates=(FOREST, {"n_estimators": 1, "max_depth": 1}), folds=3)
DATA = iris.FAMILY.data()


def test_folds_answer_every_training_row_once() -> None:
    trial = evaluation.attempt(FAMILY, FOREST, DATA, seed=1)
    assert evaluation.attempts(FAMILY) == 6
    assert len(trial.folds) == 3
    assert trial.rows is not None
    assert trial.unseen is not None
    assert trial.unseen.probabilities is not None
    assert sorted(trial.rows.inputs.index) == sorted(DATA.train.inputs.index)
    assert len(trial.unseen.values) == len(trial.unseen.probabilities) == len(DATA.train)
    assert np.mean(trial.unseen.values == trial.rows.labels) > 0.8


def test_without_folds_each_candidate_is_judged_once_on_the_same_rows() -> None:
    family = replace(FAMILY, folds=0)
    one, other = (evaluation.attempt(family, params, DATA, seed=1) for params in family.candidates)
    assert evaluation.attempts(family) == 2
    assert len(one.folds) == len(other.folds) == 1
    assert one.rows is not None
    assert other.rows is not None
    assert len(one.rows) == len(DATA.train) // 5
    assert one.rows.inputs.equals(other.rows.inputs)
    assert evaluation.best(family, [other, one]) is one


def test_a_single_candidate_without_folds_is_not_tried() -> None:
    family = replace(FAMILY, folds=0, candidates=(FOREST,))
    assert evaluation.attempts(family) == 0
    trial = evaluation.Trial(FOREST)
    assert evaluation.best(family, [trial]) is trial
    assert trial.metrics == {}


@pytest.mark.parametrize("folds", [0, 3])
def test_the_best_may_be_settled_by_what_it_had_not_seen(folds: int) -> None:
    trial = evaluation.attempt(replace(FAMILY, folds=folds), FOREST, DATA, seed=1)
    estimator = FAMILY.make(FOREST, 1)
    assert trial.rows is not None
    assert trial.unseen is not None
    assert FAMILY.settle(estimator, trial.rows, trial.unseen) is estimator
