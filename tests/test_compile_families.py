"""Naive Bayes, ensembles, calibration and support vectors: compiled they answer as scikit-learn does."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC, NuSVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from serving import compile as compilation
from serving import kernels
from serving.compile import NotCompiled, proof
from serving.difference import largest_difference
from serving.errors import InvalidInput
from serving.kernels.ensembles import Steps
from serving.runtimes import compiled, sklearn
from serving.tensors import Batch, Field, Signature

ROWS = 200
IRIS, SPECIES = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
CELLS, BENIGN = (part[:200] for part in load_breast_cancer(return_X_y=True))
CELLS = CELLS[:, :3]
PATIENTS, PROGRESS = (part[:150] for part in load_diabetes(return_X_y=True))


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The whole proof is for prepare; here some rows of each kind do."""
    monkeypatch.setattr(proof, "ROWS", ROWS)
    monkeypatch.setattr(proof, "CUTS", ((1, 10), (2, 5), (17, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def signature_of(rows: np.ndarray) -> Signature:
    return Signature("tensors", (Field("x", "float64", True, (rows.shape[1],)),))


def batch_of(rows: np.ndarray) -> Batch:
    return Batch(("x",), block=np.ascontiguousarray(rows, np.float64))


def both(estimator: Any, folder: Path) -> tuple[Any, Any, Any]:
    """The model served by scikit-learn, by its kernels as they were written and read back, and the kernels."""
    (folder / compiled.FOLDER).mkdir()
    (folder / sklearn.FILE_NAME).write_bytes(pickle.dumps(estimator))
    root = compilation.build(estimator)
    kernels.save(root, folder / compiled.FOLDER)
    return sklearn.load(folder), compiled.load(folder), root


def difference(estimator: Any, rows: np.ndarray, targets: np.ndarray, folder: Path) -> float:
    """The largest that the proof finds; it raises for more than its tolerance, and where labels differ."""
    native, fast, root = both(estimator.fit(rows, targets), folder)
    return proof.compare(native, fast, root, signature_of(rows), [batch_of(rows[::5])]).largest_difference


@pytest.mark.parametrize(
    "estimator",
    [
        GaussianNB(),
        MultinomialNB(),
        ComplementNB(),
        ComplementNB(norm=True),
        BernoulliNB(binarize=2.5),
        BernoulliNB(binarize=None),
        make_pipeline(MinMaxScaler(clip=True), MultinomialNB()),
        make_pipeline(StandardScaler(), GaussianNB()),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rows", "targets"), [(IRIS, SPECIES), (IRIS, NAMES), (CELLS, BENIGN)], ids=["three", "texts", "two"]
)
def test_naive_bayes_answers_with_the_same_bits(
    estimator: Any, rows: np.ndarray, targets: np.ndarray, tmp_path: Path
) -> None:
    assert difference(estimator, rows, targets, tmp_path) == 0.0


def test_naive_bayes_of_a_single_class(tmp_path: Path) -> None:
    assert difference(ComplementNB(), IRIS, np.zeros(len(IRIS), int), tmp_path) == 0.0


def members() -> list[tuple[str, Any]]:
    linear = make_pipeline(StandardScaler(), LogisticRegression())
    return [("linear", linear), ("tree", DecisionTreeClassifier(max_depth=3)), ("bayes", GaussianNB())]


@pytest.mark.parametrize("voting", ["soft", "hard"])
@pytest.mark.parametrize("weights", [None, [0.2, 0.3, 0.1]], ids=["alike", "weighted"])
@pytest.mark.parametrize(("rows", "targets"), [(IRIS, NAMES), (CELLS, BENIGN)], ids=["texts", "two"])
def test_voting_classifiers_answer_with_the_same_bits(
    voting: str, weights: Any, rows: np.ndarray, targets: np.ndarray, tmp_path: Path
) -> None:
    assert difference(VotingClassifier(members(), voting=voting, weights=weights), rows, targets, tmp_path) == 0.0


@pytest.mark.parametrize("weights", [None, [2, 1]], ids=["alike", "weighted"])
def test_voting_regressors_answer_with_the_same_bits(weights: Any, tmp_path: Path) -> None:
    of = [("linear", LinearRegression()), ("tree", DecisionTreeRegressor(max_depth=4))]
    assert difference(VotingRegressor(of, weights=weights), PATIENTS, PROGRESS, tmp_path) == 0.0


def test_a_dropped_member_has_no_vote_and_no_weight(tmp_path: Path) -> None:
    voting = VotingClassifier(members(), voting="soft", weights=[1, 2, 3]).set_params(tree="drop")
    assert difference(voting, IRIS, NAMES, tmp_path) == 0.0


@pytest.mark.parametrize(("method", "ensemble"), [("sigmoid", True), ("isotonic", False)], ids=["folds", "one"])
@pytest.mark.parametrize(
    "base",
    [LogisticRegression(), LinearSVC(), DecisionTreeClassifier(max_depth=3), GaussianNB()],
    ids=["linear", "svc", "tree", "bayes"],
)
@pytest.mark.parametrize(("rows", "targets"), [(IRIS, NAMES), (CELLS, BENIGN)], ids=["texts", "two"])
def test_calibrated_classifiers_answer_with_the_same_bits(
    method: str, ensemble: bool, base: Any, rows: np.ndarray, targets: np.ndarray, tmp_path: Path
) -> None:
    model = CalibratedClassifierCV(make_pipeline(StandardScaler(), base), method=method, cv=2, ensemble=ensemble)
    assert difference(model, rows, targets, tmp_path) == 0.0


def test_a_model_that_was_fitted_before_is_calibrated(tmp_path: Path) -> None:
    fitted = LogisticRegression(max_iter=2000).fit(CELLS, BENIGN)
    assert difference(CalibratedClassifierCV(FrozenEstimator(fitted), cv=2), CELLS, BENIGN, tmp_path) == 0.0


@pytest.mark.parametrize("threshold", ["auto", 0.2, 0.97])
@pytest.mark.parametrize("positive", [None, 0, 1])
@pytest.mark.parametrize(
    "base", [LogisticRegression(max_iter=2000), DecisionTreeClassifier(max_depth=3)], ids=["linear", "tree"]
)
def test_a_threshold_decides_with_the_same_bits(base: Any, positive: Any, threshold: Any, tmp_path: Path) -> None:
    model = FixedThresholdClassifier(make_pipeline(StandardScaler(), base), threshold=threshold, pos_label=positive)
    assert difference(model, CELLS, BENIGN, tmp_path) == 0.0


def test_a_threshold_names_the_labels_of_the_model(tmp_path: Path) -> None:
    names = np.where(BENIGN == 1, "benign", "bad")
    fitted = FrozenEstimator(LogisticRegression(max_iter=2000).fit(CELLS, names))
    model = FixedThresholdClassifier(fitted, threshold=0.3, pos_label="bad")
    native, fast, _ = both(model.fit(CELLS, names), tmp_path)
    answered = fast(batch_of(CELLS))
    assert largest_difference(native(batch_of(CELLS)), answered) == 0.0
    assert (answered.values == "bad").tolist() == (answered.probabilities[:, 0] >= 0.3).tolist()


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (FixedThresholdClassifier(LogisticRegression(), response_method="decision_function"), "a decision function"),
        (FixedThresholdClassifier(LinearSVC()), "without probabilities"),
    ],
    ids=["scores", "no probabilities"],
)
def test_a_threshold_over_scores_stays_native(estimator: Any, why: str) -> None:
    with pytest.raises(NotCompiled, match=why):
        compilation.build(estimator.fit(CELLS, BENIGN))


@pytest.mark.parametrize(
    ("shape", "rows", "targets"), [("ovr", IRIS, NAMES), ("ovo", CELLS, BENIGN)], ids=["three", "two"]
)
def test_calibrated_support_vectors(shape: str, rows: np.ndarray, targets: np.ndarray, tmp_path: Path) -> None:
    base = make_pipeline(StandardScaler(), SVC(decision_function_shape=shape))
    assert difference(CalibratedClassifierCV(base, cv=2), rows, targets, tmp_path) < proof.TOLERANCE


@pytest.mark.parametrize(
    "estimator",
    [
        SVC(),
        SVC(kernel="linear"),
        SVC(kernel="poly", coef0=1.0, degree=4),
        SVC(kernel="sigmoid", gamma=0.1),
        SVC(break_ties=True),
        SVC(decision_function_shape="ovo"),
        SVC(probability=True, random_state=0),
        NuSVC(nu=0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("rows", "targets"), [(IRIS, SPECIES), (IRIS, NAMES), (CELLS, BENIGN)], ids=["three", "texts", "two"]
)
def test_support_vectors_answer_within_the_tolerance(
    estimator: Any, rows: np.ndarray, targets: np.ndarray, tmp_path: Path
) -> None:
    model = make_pipeline(StandardScaler(), estimator)
    assert difference(model, rows, targets, tmp_path) < proof.TOLERANCE


def test_sums_that_cancel_and_overflow_are_added_in_libsvms_order(tmp_path: Path) -> None:
    native, fast, _ = both(SVR(kernel="poly").fit(PATIENTS, PROGRESS), tmp_path)
    rows = np.repeat(PATIENTS[:1], 4, axis=0)
    rows[:, 1] = 1e39, -1e39, 1e160, 1e308  # that column holds two values only, and all but cancels
    with np.errstate(all="ignore"):
        assert largest_difference(native(batch_of(rows)), fast(batch_of(rows))) < 1e-12


@pytest.mark.parametrize("estimator", [SVR(), SVR(kernel="poly"), NuSVR(kernel="linear", C=10), NuSVR(C=50)], ids=str)
def test_support_vector_regressors_answer_within_the_tolerance(estimator: Any, tmp_path: Path) -> None:
    assert difference(estimator, PATIENTS, PROGRESS, tmp_path) < proof.TOLERANCE


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_probabilities_of_pairs_are_coupled_alike_for_few_rows_and_many(rows: int, tmp_path: Path) -> None:
    four = np.repeat(np.arange(4), 25)
    points = np.random.default_rng(0).normal(size=(100, 3)) + four[:, None]
    native, fast, _ = both(SVC(probability=True, random_state=0).fit(points, four), tmp_path)
    batch = batch_of(points[:rows])
    assert largest_difference(native(batch), fast(batch)) < 1e-12


@pytest.mark.parametrize(
    "estimator",
    [
        GaussianNB(),
        BernoulliNB(),
        VotingClassifier(members()),
        CalibratedClassifierCV(DecisionTreeClassifier(max_depth=2), method="isotonic", cv=2),
        SVC(),
    ],
    ids=str,
)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_scikit_learn_refuses_is_refused(estimator: Any, value: float, tmp_path: Path) -> None:
    _, fast, _ = both(estimator.fit(CELLS, BENIGN), tmp_path)
    rows = CELLS[:3].copy()
    rows[1, 2] = value
    if isinstance(estimator, CalibratedClassifierCV) and value != value:
        assert len(fast(batch_of(rows)).values) == 3  # its trees take missing values
        return
    with pytest.raises(InvalidInput) as refused:
        fast(batch_of(rows))
    assert refused.value.row == 1


def test_isotonic_calibration_refuses_a_score_that_is_not_finite() -> None:
    with pytest.raises(InvalidInput):
        Steps(np.array([0.0, 1.0]), np.array([0.0, 1.0]))(np.array([0.5, np.inf]))


def likeness(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return one @ other.T


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (CategoricalNB(), "there is no kernel"),
        (SVC(kernel=likeness), "a kernel of its own"),
        (SVC(gamma=1e6), "too far apart"),
        (KNeighborsClassifier(), "equally near"),
        (KNeighborsRegressor(), "equally near"),
        (CalibratedClassifierCV(LogisticRegression(), method="temperature", cv=2), "_TemperatureScaling"),
        (CalibratedClassifierCV(CategoricalNB(min_categories=99), cv=2), "there is no kernel"),
        (VotingClassifier([("a", CategoricalNB())]), "there is no kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_has_no_kernel_stays_native_and_says_why(estimator: Any, why: str) -> None:
    with pytest.raises(NotCompiled, match=why):
        compilation.build(estimator.fit(IRIS, SPECIES))
