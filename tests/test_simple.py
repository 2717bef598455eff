"""How predictions are written: many rows at once as one by one, to the last byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest

from serving.answers import dumps
from serving.protocols.simple import Wording
from serving.tensors import Classes, Prediction

ROWS = 300
CHANCES = np.random.default_rng(0).dirichlet([0.3, 0.3, 0.3], ROWS)
CHANCES[0], CHANCES[1], CHANCES[2] = [1, 0, 0], [1e-300, 1 - 1e-16, 5e-324], [np.nan, 0.1, 0.3]


@dataclass(eq=False)
class Version:
    """What a wording looks at of a live version."""

    classes: Classes | None
    threshold: float | None = None
    variant: dict[str, Any] | None = None
    name: str = "m"
    version: str = "1"
    alias: str | None = None

    @property
    def bundle(self) -> Version:
        return self


def together(wording: Wording, prediction: Prediction) -> bytes:
    return orjson.dumps(wording.many(prediction)["predictions"])


def singly(wording: Wording, prediction: Prediction) -> bytes:
    return dumps(list(wording._rows(prediction)))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ((0, 1, 2), ("setosa", "versicolor", "virginica")),
        (("a", "b", "c"), ("50 %", 'quo"te', "ü %b %s")),
        ((0, 1, 2), ("same", "same", "other")),
    ],
    ids=["numbers", "odd names", "one name twice"],
)
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_classes(labels: tuple[Any, ...], names: tuple[str, ...], kind: Any) -> None:
    wording: Any = Wording(Version(Classes(labels, names)))  # type: ignore[arg-type]
    prediction = Prediction(np.array(labels, dtype=object)[np.arange(ROWS) % 3], CHANCES.astype(kind))
    assert together(wording, prediction) == singly(wording, prediction)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_a_threshold_is_said_with_the_score_that_it_is_about(kind: Any) -> None:
    wording: Any = Wording(Version(Classes((0, 1), ("no", "100 % yes")), 0.07))  # type: ignore[arg-type]
    chances = np.random.default_rng(0).dirichlet([3, 0.3], ROWS).astype(kind)
    chances[0], chances[1] = [1, 0], [np.nan, 0.1]
    prediction = Prediction((chances[:, 1] >= 0.07).astype(np.int64), chances)
    assert together(wording, prediction) == singly(wording, prediction)
    rows = orjson.loads(together(wording, prediction))
    assert list(rows[0]) == ["class_id", "class_name", "confidence", "score", "threshold", "probabilities"]
    for row, answered in zip(rows, prediction.values.tolist(), strict=True):
        assert row["score"] == row["probabilities"]["100 % yes"]
        assert row["threshold"] == 0.07
        assert (row["score"] >= row["threshold"]) == bool(answered) == (row["class_name"] == "100 % yes")


def test_labels_alone() -> None:
    wording: Any = Wording(Version(Classes((0, 1), ("no", "yes"))))  # type: ignore[arg-type]
    assert orjson.loads(together(wording, Prediction(np.array([1, 0])))) == [
        {"class_id": 1, "class_name": "yes"},
        {"class_id": 0, "class_name": "no"},
    ]


def test_values() -> None:
    wording: Any = Wording(Version(None))  # type: ignore[arg-type]
    assert together(wording, Prediction(np.array([1.5, np.nan]))) == b'[{"value":1.5},{"value":null}]'
    assert together(wording, Prediction(np.array([[1, 2]]))) == b'[{"value":[1,2]}]'


def test_probabilities_of_another_number_of_classes_are_a_failure() -> None:
    wording: Any = Wording(Version(Classes((0, 1), ("no", "yes"))))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zip"):
        wording.many(Prediction(np.array([1]), np.array([[0.1, 0.2, 0.7]])))
