"""Two versions, the same rows: where do they agree, and by how much do they differ?"""

from __future__ import annotations

import numpy as np
import pytest

from serving.agreement import compare
from serving.tensors import Prediction


def test_labels_by_their_probabilities() -> None:
    ours = Prediction(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]))
    theirs = Prediction(np.array([0, 0, 1]), np.array([[0.8, 0.2], [0.6, 0.4], [0.2, 0.8]]))
    agreed, apart = compare(ours, theirs)
    assert agreed.tolist() == [True, False, True]
    assert apart == pytest.approx([0.1, 0.2, 0.0])


def test_labels_without_probabilities() -> None:
    agreed, apart = compare(Prediction(np.array(["a", "b"])), Prediction(np.array(["a", "c"])))
    assert (agreed.tolist(), apart.tolist()) == ([True, False], [0.0, 1.0])


def test_numbers_within_a_hundredth() -> None:
    ours, theirs = Prediction(np.array([100.0, 100.0, 0.0, np.nan])), Prediction(np.array([100.9, 102.0, 0.0, 1.0]))
    agreed, apart = compare(ours, theirs)
    assert agreed.tolist() == [True, False, True, False]
    assert apart == pytest.approx([0.9 / 100.9, 2 / 102, 0.0, 1.0])


def test_vectors_by_their_angle() -> None:
    ours, theirs = (
        Prediction(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])),
        np.array([[2.0, 0.01], [0.0, 1.0], [0.0, 0.0]]),
    )
    agreed, apart = compare(ours, Prediction(theirs))
    assert agreed.tolist() == [True, False, False]
    assert apart[1] == pytest.approx(1.0)


def test_another_shape_agrees_nowhere() -> None:
    agreed, apart = compare(Prediction(np.zeros((2, 3))), Prediction(np.zeros((2, 4))))
    assert (agreed.tolist(), apart.tolist()) == ([False, False], [1.0, 1.0])
