"""How right a prediction was: the same numbers as scikit-learn's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from ledgers import CLASSES, NAMES
from sklearn.metrics import brier_score_loss, log_loss

from serving.ledger.scores import EPSILON, Scores, meant, scores
from serving.tensors import Classes


def output(chances: list[float], names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    best = int(np.argmax(chances))
    return {"class_id": best, "class_name": names[best], "probabilities": dict(zip(names, chances, strict=True))}


@pytest.mark.parametrize("truth", [0, 1, 2])
def test_scores_of_a_classifier(truth: int) -> None:
    chances = [0.2, 0.5, 0.3]
    found = scores(output(chances), truth, CLASSES)
    assert found.class_name == NAMES[truth]
    assert found.correct == float(truth == 1)
    assert found.brier == pytest.approx(brier_score_loss([truth], [chances], labels=[0, 1, 2]))
    assert found.log_loss == pytest.approx(log_loss([truth], [chances], labels=[0, 1, 2]))
    assert found.absolute_error is None


def test_brier_of_two_classes_is_the_sum_over_both() -> None:
    two = Classes.of([0, 1])
    found = scores(output([0.7, 0.3], two.names), 1, two)
    assert found.brier == pytest.approx(2 * brier_score_loss([1], [0.3], labels=[0, 1]))


def test_a_chance_of_nothing_is_clipped_as_scikit_learn_does() -> None:
    found = scores(output([1.0, 0.0, 0.0]), 1, CLASSES)
    assert found.log_loss == pytest.approx(log_loss([1], [[1.0, 0.0, 0.0]], labels=[0, 1, 2]))
    assert scores(output([1.0, 0.0, 0.0]), 0, CLASSES).log_loss == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("label", ["tulip", 9, 0.5, -1])
def test_a_label_that_is_no_class_is_wrong_and_had_no_chance(label: Any) -> None:
    found = scores(output([0.2, 0.5, 0.3]), label, CLASSES)
    assert found == Scores(None, 0.0, pytest.approx(0.04 + 0.25 + 0.09 + 1), pytest.approx(-math.log(EPSILON)), None)


@pytest.mark.parametrize(
    ("labels", "names", "label", "means"),
    [
        ([0, 1, 2], NAMES, 1, "versicolor"),
        ([0, 1, 2], NAMES, "1", "versicolor"),
        ([0, 1, 2], NAMES, "1.0", "versicolor"),
        ([0, 1, 2], NAMES, "versicolor", "versicolor"),
        ([0, 1, 2], NAMES, True, "versicolor"),
        ([0, 1, 2], NAMES, "Versicolor", None),
        ([5, 7], None, 5, "5"),
        ([5, 7], None, 0, None),
        (["a", "b"], None, "b", "b"),
        (["a", "b"], None, 1, "b"),
        (["1", "0"], None, "0", "0"),
        (["1", "0"], None, 0, "1"),
        (["yes", "no"], ["paid", "failed"], "no", "failed"),
        ([False, True], None, True, "True"),
        ([False, True], None, "True", "True"),
        ([False, True], None, 1, "True"),
        ([0.5, 1.5], None, 1.5, "1.5"),
        (["", "x"], None, "", ""),
    ],
)
def test_what_a_label_means(labels: list[Any], names: Any, label: Any, means: str | None) -> None:
    assert meant(label, Classes.of(labels, names)) == means


def test_without_classes_a_label_is_compared_as_text() -> None:
    assert scores({"class_name": "5"}, 5, None) == Scores("5", 1.0)


def test_without_probabilities_there_is_only_right_and_wrong() -> None:
    assert scores({"class_id": 1, "class_name": "versicolor"}, 1, CLASSES) == Scores("versicolor", 1.0)
    broken = {"class_name": "setosa", "probabilities": {"setosa": None}}  # NaN, which JSON does not have
    assert scores(broken, 0, CLASSES) == Scores("setosa", 1.0)


@pytest.mark.parametrize(
    ("value", "label", "expected"),
    [
        (10.0, 12, Scores(absolute_error=2.0)),
        (10, "7.5", Scores(absolute_error=2.5)),
        (10.0, "ten", Scores()),
        (None, 1, Scores()),
        ([1.0, 2.0], 1, Scores()),
        ({"a": 1.0}, 1, Scores()),
        ("red", "red", Scores(correct=1.0)),
        (True, False, Scores(correct=0.0)),
    ],
)
def test_scores_of_values(value: Any, label: Any, expected: Scores) -> None:
    assert scores({"value": value}, label, None) == expected


def test_an_output_that_was_not_kept_has_no_scores() -> None:
    assert scores(None, 1, CLASSES) == Scores()
