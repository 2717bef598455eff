"""The proof's rows reach every leaf, also behind scalers and in columns of whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeRegressor

from serving import kernels
from serving.compile import build
from serving.compile.leaves import bounds, inside
from serving.compile.rows import Maker, critical_values, fields_of, ways_to_leaves
from serving.kernels.trees import Trees
from serving.tensors import Field, Signature

IRIS, SPECIES = load_iris(return_X_y=True)
PATIENTS, PROGRESS = load_diabetes(return_X_y=True)


def rows_for(model: Any, columns: int, kind: str = "double", **limits: int) -> np.ndarray:
    """The rows that lead to the leaves of ``model``."""
    signature = Signature("columns", tuple(Field(f"c{k}", kind, True) for k in range(columns)), "recorded")
    root = build(model)
    maker = Maker(signature, critical_values(root, len(fields_of(signature))), [])
    leading = maker.leading(ways_to_leaves(root, **limits), missing=frozenset(), unknown=frozenset())
    return np.stack(leading, axis=1)


def reached(trees: list[Any], rows: np.ndarray) -> list[tuple[int, int]]:
    """For each tree how many leaves the rows reach, and how many there are."""
    return [(len(np.unique(tree.apply(rows))), tree.get_n_leaves()) for tree in trees]


@pytest.mark.parametrize("scaled", [[], [StandardScaler()], [StandardScaler(), MinMaxScaler((-3, 9))]])
def test_every_leaf_of_a_forest_is_reached(scaled: list[Any]) -> None:
    forest = RandomForestClassifier(30, random_state=1)
    model = make_pipeline(*scaled, forest).fit(IRIS, SPECIES) if scaled else forest.fit(IRIS, SPECIES)
    rows = rows_for(model, 4)
    inner = model[:-1].transform(rows) if scaled else rows
    assert all(some == every for some, every in reached(forest.estimators_, inner))


def test_every_leaf_of_a_deep_tree_is_reached() -> None:
    tree = DecisionTreeRegressor(random_state=0).fit(PATIENTS, PROGRESS)
    ((some, every),) = reached([tree], rows_for(tree, 10))
    assert every > 400
    assert some == every


def test_every_leaf_of_stages_is_reached() -> None:
    model = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(IRIS, SPECIES)
    assert all(some == every for some, every in reached(list(model.estimators_.ravel()), rows_for(model, 4)))


def test_every_leaf_over_whole_numbers_is_reached() -> None:
    counts = np.random.default_rng(0).integers(0, 40, (300, 3))
    tree = DecisionTreeRegressor(random_state=0).fit(counts, counts[:, 0] * 3 - counts[:, 1] % 7)
    rows = rows_for(tree, 3, "long")
    assert (rows == np.rint(rows)).all()
    ((some, every),) = reached([tree], rows)
    assert some == every


def test_a_histogram_model_answers_with_every_leaf() -> None:
    model = HistGradientBoostingRegressor(max_iter=1, max_leaf_nodes=40, random_state=0).fit(PATIENTS, PROGRESS)
    (stage,) = model._predictors[0]
    assert len(np.unique(model.predict(rows_for(model, 10)))) == int(stage.nodes["is_leaf"].sum())


def test_of_too_many_leaves_some_are_taken_from_trees_at_random() -> None:
    forest = RandomForestClassifier(30, random_state=1).fit(IRIS, SPECIES)
    rows = rows_for(forest, 4, at_most=40)
    assert 20 <= len(rows) <= 40


def test_a_split_by_category_sets_no_bounds() -> None:
    rows = np.column_stack([IRIS[:, 0], SPECIES])
    model = HistGradientBoostingRegressor(max_iter=1, categorical_features=[1], random_state=0).fit(rows, IRIS[:, 2])
    (trees,) = (found for found in kernels.walk(build(model)) if isinstance(found, Trees))
    _, *ways = list(bounds(trees.graph.tobytes(), 100, np.random.default_rng(0)))[1:]  # behind the baseline's two
    assert len(ways) == 6
    assert all(set(way) == {1} for way in ways)  # categories are put first


@pytest.mark.parametrize(
    ("low", "high", "whole", "value"),
    [
        (-np.inf, np.inf, False, None),
        (1.0, 2.0, False, 1.5),
        (1.2, 3.4, True, 3.0),
        (1.0, 2.0, True, 2.0),
        (1.5, 1.7, True, np.float32(1.6)),  # no whole number lies there
        (-np.inf, 20.0, False, 18.0),
        (20.0, np.inf, False, 22.0),
        (1.0, np.nextafter(1.0, 2.0), False, np.nextafter(1.0, 2.0)),
        (2.0, 1.0, False, None),
    ],
)
def test_a_number_inside(low: float, high: float, whole: bool, value: float | None) -> None:
    assert inside(low, high, whole=whole) == value
