"""Drift: rows fall into the right bins, however they are written, and the score is the one of the books."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serving import drift
from serving.drift import Bins, Counter, Profile, outputs_of, psi, report, smoothed
from serving.exposition import Counted
from serving.metrics import Metrics
from serving.tensors import Batch, Classes, Prediction

HALVES = (0.5, 0.5)
WIDTH = Bins(
    "width", "numeric", ("<= 1", "(1, 2]", "> 2"), tuple(smoothed([10, 10, 10])), edges=(1.0, 2.0), threshold=0.2
)
TOWN = Bins(
    "town", "category", ("Ulm", "Jena", "other"), tuple(smoothed([20, 10, 0])), values=("Ulm", "Jena"), threshold=0.2
)
GRADE = Bins("grade", "category", ("3", "1", "other"), tuple(smoothed([15, 15, 0])), values=(3, 1), threshold=0.2)
KIND = Bins("class", "category", ("no", "yes"), tuple(smoothed([15, 15])), values=("no", "yes"), threshold=0.1)
SURE = Bins("confidence", "numeric", ("<= 0.9", "> 0.9"), tuple(smoothed([15, 15])), edges=(0.9,))
PROFILE = Profile(30, (WIDTH, TOWN, GRADE), (KIND, SURE), {"accuracy": 0.9}, {"essay": "it is free text"})
CLASSES = Classes((0, 1), ("no", "yes"))


def column(*values: Any) -> np.ndarray:
    kinds = {type(value) for value in values}
    return np.array(values) if kinds <= {int, float} else np.array(values, dtype=object)


# --- the score -------------------------------------------------------------------------------------------------------


def test_equal_shares_score_nothing() -> None:
    assert psi([500, 500], HALVES) == 0.0


def test_the_score_is_the_one_of_the_books() -> None:
    """(0.1, 0.9) against (0.5, 0.5): 0.879 exactly, here with a thousandth added to each share."""
    exact = (0.1 - 0.5) * math.log(0.1 / 0.5) + (0.9 - 0.5) * math.log(0.9 / 0.5)
    assert psi([100, 900], HALVES) == pytest.approx(exact, abs=0.006)
    q = (0.1 + 0.001) / 1.002
    assert psi([100, 900], HALVES) == pytest.approx((q - 0.5) * math.log(q / 0.5) + (0.5 - q) * math.log((1 - q) / 0.5))


def test_the_score_is_of_the_shares_and_not_of_the_rows() -> None:
    assert psi([0, 100, 900], (0.2, 0.3, 0.5)) == pytest.approx(psi([0, 117, 1053], (0.2, 0.3, 0.5)))


def test_an_empty_bin_leaves_the_score_finite() -> None:
    assert 0 < psi([0, 1000], HALVES) < 10
    assert math.isfinite(psi([0, 0], HALVES))


def test_shares_add_up_to_one() -> None:
    assert sum(smoothed([0, 3, 1000])) == pytest.approx(1.0)


# --- bins ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bins", "values", "counts", "missing"),
    [
        (WIDTH, column(0.5, 1.0, 1.5, 2.0, 2.5, 1e300), [2, 2, 2], 0),
        (WIDTH, column(-math.inf, math.inf, math.nan), [1, 0, 1], 1),
        (WIDTH, column(1, 2, 3), [1, 1, 1], 0),
        (WIDTH, column(0.5, None, 2.5), [1, 0, 1], 1),
        (WIDTH, np.array([0.5, 2.5], dtype=np.float32), [1, 0, 1], 0),
        (TOWN, column("Ulm", "Jena", "Rome", None, "Ulm"), [2, 1, 1], 1),
        (TOWN, column("Ulm", math.nan, 7), [1, 0, 1], 1),
        (GRADE, column(3, 1, 2, 3.0, math.nan), [2, 1, 1], 1),
        (GRADE, column(3, 99), [1, 0, 1], 0),
        (GRADE, column(True, None, False), [0, 1, 1], 1),
    ],
)
def test_each_value_falls_into_its_bin(bins: Bins, values: np.ndarray, counts: list[int], missing: int) -> None:
    counted, without = bins.count(values)
    assert (counted.tolist(), without) == (counts, missing)


def test_a_class_that_training_knew_has_a_bin_of_its_own() -> None:
    assert KIND.count(np.array(["yes", "yes", "no", None], dtype=object))[0].tolist() == [1, 2]


# --- the profile on disk ---------------------------------------------------------------------------------------------


def test_a_profile_survives_its_file() -> None:
    assert Profile.from_json(json.loads(json.dumps(PROFILE.as_json()))) == PROFILE


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"format": 99}, "format"),
        ({"features": None}, "not as it was written"),
        ({"features": [{"name": "width"}]}, "not as it was written"),
        ({"features": [WIDTH.__dict__ | {"kind": "colour"}]}, "unknown kind"),
        ({"features": [WIDTH.__dict__ | {"edges": [2.0, 1.0]}]}, "edges ascend"),
        ({"features": [WIDTH.__dict__ | {"edges": [1.0]}]}, "one more than edges"),
        ({"features": [WIDTH.__dict__ | {"ratios": [0.5, 0.5]}]}, "one ratio"),
        ({"features": [WIDTH.__dict__ | {"ratios": [1.0, 0.0, 0.0]}]}, "above 0"),
        ({"features": [WIDTH.__dict__ | {"bins": ["a", "a", "b"]}]}, "differ in name"),
        ({"features": [TOWN.__dict__ | {"values": ["Ulm"] * 5}]}, "one bin"),
        ({"features": [WIDTH.__dict__] * 51}, "51 features"),
    ],
)
def test_a_profile_that_cannot_be_used_says_why(change: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Profile.from_json(PROFILE.as_json() | change)


def test_no_feature_has_more_bins_than_it_may() -> None:
    labels = tuple(f"b{k}" for k in range(13))
    many = Bins("wide", "numeric", labels, tuple(smoothed([1] * 13)), edges=tuple(map(float, range(12))))
    with pytest.raises(ValueError, match="at most 12 bins"):
        Profile.from_json(replace(PROFILE, features=(many,)).as_json())


# --- what is answered ------------------------------------------------------------------------------------------------


def test_a_classifier_is_watched_by_class_and_confidence() -> None:
    outputs = outputs_of(Prediction(np.array([0, 1]), np.array([[0.8, 0.2], [0.3, 0.7]])), CLASSES)
    assert outputs["class"].tolist() == ["no", "yes"]
    assert outputs["confidence"].tolist() == [0.8, 0.7]


@pytest.mark.parametrize(
    ("prediction", "classes", "names"),
    [
        (Prediction(np.array([1.5, 2.5])), None, {"value"}),
        (Prediction(np.array([1, 0])), CLASSES, {"class"}),
        (Prediction(np.zeros((2, 384))), None, set()),
        (Prediction(np.array(["a", "b"])), None, set()),
        (Prediction(np.array([1.0]), None, {"a": np.array([1.0])}), None, set()),
    ],
)
def test_what_has_no_single_answer_is_not_watched(
    prediction: Prediction, classes: Classes | None, names: set[str]
) -> None:
    assert set(outputs_of(prediction, classes)) == names


# --- counting and reporting ------------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def counter(registry: CollectorRegistry) -> Counter:
    return Counter(PROFILE, CLASSES, Metrics(registry).drift("houses", "3"))


def told(registry: CollectorRegistry) -> dict[str, Any]:
    return report(PROFILE, Counted(registry.collect(), "houses", "3"))


def rows(width: float, town: str | None, count: int) -> tuple[Batch, Prediction]:
    columns = np.full(count, width), np.full(count, town, dtype=object), np.full(count, 3)
    chances = np.tile([0.05, 0.95], (count, 1))
    return Batch(("width", "town", "grade"), columns), Prediction(np.ones(count, int), chances)


def test_every_bin_is_there_from_the_start(counter: Counter, registry: CollectorRegistry) -> None:
    labels = {"model": "houses", "version": "3", "feature": "town", "bin": "other"}
    assert registry.get_sample_value("ml_feature_bin_rows_total", labels) == 0


def test_rows_add_up(counter: Counter, registry: CollectorRegistry) -> None:
    counter.count(*rows(1.5, "Ulm", 400))
    counter.count(*rows(1.5, None, 200))
    by_name = {line["name"]: line for line in told(registry)["features"]}
    assert by_name["width"]["rows"] == 600
    assert by_name["town"]["rows"] == 400
    assert by_name["town"]["missing"] == {"rows": 200, "share": pytest.approx(1 / 3), "reference": 0.0}
    assert [line["rows"] for line in by_name["width"]["bins"]] == [0, 600, 0]


def test_what_moved_is_named(counter: Counter, registry: CollectorRegistry) -> None:
    for width, grade in ((0.5, 1), (1.5, 3), (2.5, 3), (2.5, 1)):
        batch, answered = rows(width, "Jena", 250)
        counter.count(Batch(batch.names, (*batch.columns[:2], np.full(250, grade))), answered)
    said = told(registry)
    assert (said["verdict"], said["drifted"], said["shifted"]) == ("drift", ["town"], ["class"])
    assert said["features"][0]["name"] == "town"
    assert said["unwatched"] == {"essay": "it is free text"}


def test_few_rows_are_not_judged(counter: Counter, registry: CollectorRegistry) -> None:
    counter.count(*rows(99.0, "Rome", drift.MIN_ROWS - 1))
    said = told(registry)
    assert said["verdict"] == "too few rows"
    assert said["drifted"] == []
    assert said["features"][0]["score"] > 1
    assert said["features"][0]["bins"][-1]["share"] == 1.0


def test_without_rows_there_is_no_score(counter: Counter, registry: CollectorRegistry) -> None:
    assert {line["score"] for line in told(registry)["features"]} == {None}


def test_a_column_that_is_not_there_is_not_counted(counter: Counter, registry: CollectorRegistry) -> None:
    batch, answered = rows(1.5, "Ulm", 10)
    counter.count(Batch(("width",), batch.columns[:1]), answered)
    by_name = {line["name"]: line["rows"] for line in told(registry)["features"]}
    assert by_name == {"width": 10, "town": 0, "grade": 0}


def test_another_version_counts_apart(counter: Counter, registry: CollectorRegistry) -> None:
    counter.count(*rows(1.5, "Ulm", 10))
    assert Counted(registry.collect(), "houses", "4").features("width", "(1, 2]") == 0
