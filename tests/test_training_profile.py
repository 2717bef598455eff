"""The profile: bins that fit the data, and thresholds that its own spread sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serving.drift import MAX_BINS, Profile, psi
from serving.tensors import Batch, Classes, Prediction
from training.iris import FAMILY
from training.profile import profile

CLASSES = Classes((0, 1), ("no", "yes"))
SEEDS = range(20)


def of(**columns: Any) -> Profile:
    batch = Batch(tuple(columns), tuple(np.asarray(values) for values in columns.values()))
    answered = Prediction(np.arange(batch.rows) % 2, np.tile([0.3, 0.7], (batch.rows, 1)))
    return profile(batch, answered, CLASSES)


def objects(*values: Any) -> np.ndarray:
    return np.array(values, dtype=object)


def test_numbers_are_cut_at_their_quantiles() -> None:
    bins = of(x=np.arange(1000.0)).features[0]
    assert bins.kind == "numeric"
    assert len(bins.bins) == 10
    assert bins.ratios == pytest.approx([0.1] * 10, abs=0.002)
    assert bins.bins[0].startswith("<= ")
    assert bins.bins[-1].startswith("> ")


def test_few_rows_make_few_bins() -> None:
    assert len(of(x=np.arange(60.0)).features[0].bins) == 3


def test_edges_that_are_close_are_still_told_apart() -> None:
    bins = of(x=1e9 + np.arange(1000.0) / 1000).features[0]
    assert len(set(bins.bins)) == len(bins.bins) == 10


def test_a_number_of_few_values_is_a_category() -> None:
    bins = of(flag=np.arange(100) % 2).features[0]
    assert (bins.kind, set(bins.bins)) == ("category", {"0", "1", "other"})
    assert bins.count(np.array([0.0, 1.0, 7.0]))[0].tolist() == [1, 1, 1]


def test_a_constant_that_moves_is_seen() -> None:
    bins = of(constant=np.full(500, 3.5)).features[0]
    assert bins.threshold is not None
    assert psi(bins.count(np.full(500, 3.6))[0].tolist(), bins.ratios) > bins.threshold


def test_rare_categories_share_a_bin() -> None:
    values = [f"town {k % 30}" for k in range(3000)]
    bins = of(town=objects(*values)).features[0]
    assert len(bins.bins) == MAX_BINS
    assert bins.bins[-1] == "other"
    assert bins.ratios[-1] == pytest.approx(19 / 30, abs=0.01)


def test_long_categories_keep_different_names() -> None:
    bins = of(town=objects(*(["x" * 100 + "a", "x" * 100 + "b"] * 50))).features[0]
    assert len(set(bins.bins)) == 3
    assert max(map(len, bins.bins)) < 50


def test_missing_values_are_a_share_and_no_bin() -> None:
    bins = of(x=np.where(np.arange(1000) % 4 == 0, np.nan, np.arange(1000.0))).features[0]
    assert bins.missing == pytest.approx(0.25)
    assert sum(bins.ratios) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (np.zeros((50, 3)), "more than one value"),
        (np.arange(50).astype("datetime64[D]"), "times"),
        (np.full(50, np.nan), "no value"),
        (objects(*[{"a": 1}] * 50), "neither numbers nor texts"),
        (objects(*map(str, range(50))), "free text"),
    ],
)
def test_what_cannot_be_watched_is_said(column: np.ndarray, why: str) -> None:
    made = of(odd=column)
    assert made.features == ()
    assert why in made.unwatched["odd"]


def test_no_more_than_fifty_features_are_watched() -> None:
    made = of(**{f"x{k}": np.arange(40.0) for k in range(52)})
    assert len(made.features) == 50
    assert set(made.unwatched) == {"x50", "x51"}


def test_a_class_that_was_never_answered_has_a_bin() -> None:
    batch = Batch(("x",), (np.arange(50.0),))
    made = profile(batch, Prediction(np.zeros(50, int)), CLASSES)
    assert made.outputs[0].bins == ("no", "yes")


def test_of_many_classes_the_most_frequent_are_watched() -> None:
    many = Classes(tuple(range(1000)), tuple(f"class {k}" for k in range(1000)))
    batch = Batch(("x",), (np.arange(50.0),))
    made = profile(batch, Prediction(np.arange(50) % 20), many)
    assert len(made.outputs[0].bins) == MAX_BINS


def test_a_regressor_is_watched_by_its_values() -> None:
    batch = Batch(("x",), (np.arange(500.0),))
    outputs = profile(batch, Prediction(np.arange(500.0)), None).outputs
    assert [bins.name for bins in outputs] == ["value"]


# --- thresholds ------------------------------------------------------------------------------------------------------


def test_much_data_has_the_least_threshold() -> None:
    assert of(x=np.random.default_rng(0).normal(size=20_000)).features[0].threshold == 0.1


def test_little_data_is_judged_with_care() -> None:
    assert of(x=np.random.default_rng(0).normal(size=80)).features[0].threshold > 0.15


@pytest.fixture(scope="module")
def iris() -> tuple[Profile, Any, Any]:
    """The profile of the real family, and its rows: all, and those it did not learn from."""
    data = FAMILY.data()
    model = FAMILY.make(FAMILY.candidates[0], 42).fit(data.train.inputs, data.train.labels)
    answered = FAMILY.flavor.predict(model, data.rows.inputs)
    classes = Classes.of([0, 1, 2], data.class_names)
    return profile(data.train.batch(), answered, classes), data.rows.inputs, data.holdout.inputs


def drifted(made: Profile, frame: Any) -> list[str]:
    scores = {
        bins.name: psi(bins.count(frame[bins.name].to_numpy())[0].tolist(), bins.ratios) for bins in made.features
    }
    return [bins.name for bins in made.features if scores[bins.name] > (bins.threshold or 0)]


@pytest.mark.parametrize("seed", SEEDS)
def test_unshifted_rows_raise_nothing(seed: int, iris: tuple[Profile, Any, Any]) -> None:
    made, rows, unseen = iris
    assert drifted(made, rows.sample(10_000, replace=True, random_state=seed)) == []
    assert drifted(made, unseen.sample(10_000, replace=True, random_state=seed)) == []


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("column", range(4))
def test_a_shift_of_one_deviation_is_found_where_it_is(column: int, sign: int, iris: tuple[Profile, Any, Any]) -> None:
    made, rows, _ = iris
    name = rows.columns[column]
    shifted = rows.sample(10_000, replace=True, random_state=column)
    shifted[name] += sign * rows[name].std()
    assert drifted(made, shifted) == [name]
