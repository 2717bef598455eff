"""Compiled trees, linear models, perceptrons and their pipelines answer as scikit-learn does, to the last bit."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer, make_column_selector
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from threadpoolctl import threadpool_limits

from serving import compile as compilation
from serving import kernels
from serving.compile import NotCompiled, build_model, proof
from serving.errors import InvalidInput
from serving.runtimes import compiled
from serving.runtimes import sklearn as native
from serving.tensors import Batch, Field, Signature

SEED: dict[str, Any] = {"random_state": 0}
IRIS, SPECIES = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
CELLS, BENIGN = (part[:200] for part in load_breast_cancer(return_X_y=True))
PATIENTS, PROGRESS = (part[:150] for part in load_diabetes(return_X_y=True))
CELLS = CELLS[:, :6]
DIGITS, NUMBERS = (part[:400] for part in load_digits(return_X_y=True))


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The whole proof is for prepare; here some rows of each kind do."""
    monkeypatch.setattr(proof, "ROWS", 600)
    monkeypatch.setattr(proof, "CUTS", ((1, 10), (2, 3), (17, 2)))
    with warnings.catch_warnings(), threadpool_limits(1):  # its boosting would wait for busy cores
        warnings.simplefilter("ignore")
        yield


def largest_difference(estimator: Any, signature: Signature, known: Batch, folder: Path) -> float:
    """What the proof finds of a fitted estimator, once its kernels were written and read back."""
    (folder / compiled.FOLDER).mkdir()
    (folder / native.FILE_NAME).write_bytes(pickle.dumps(estimator))
    kernels.save(build_model(estimator, signature), folder / compiled.FOLDER)
    root = kernels.load(folder / compiled.FOLDER)
    verdict = proof.compare(native.load(folder), compiled.predictor(root), root, signature, [known])
    return verdict.largest_difference


# --- arrays ----------------------------------------------------------------------------------------------------------

ON_ARRAYS: list[tuple[Any, np.ndarray, np.ndarray]] = [
    (RandomForestClassifier(8, **SEED), IRIS, NAMES),
    (RandomForestClassifier(5, min_samples_leaf=5, **SEED), IRIS, np.c_[SPECIES, SPECIES > 0]),
    (RandomForestRegressor(5, **SEED), PATIENTS, np.c_[PROGRESS, -PROGRESS]),
    (ExtraTreesClassifier(5, **SEED), CELLS, BENIGN),
    (DecisionTreeClassifier(max_depth=3, **SEED), IRIS, SPECIES),
    (DecisionTreeRegressor(**SEED), PATIENTS, PROGRESS),
    (GradientBoostingClassifier(n_estimators=5, **SEED), IRIS, NAMES),
    (GradientBoostingClassifier(n_estimators=5, **SEED), CELLS, BENIGN),
    (GradientBoostingRegressor(n_estimators=5, **SEED), PATIENTS, PROGRESS),
    (HistGradientBoostingClassifier(max_iter=5, **SEED), IRIS, SPECIES),
    (HistGradientBoostingClassifier(max_iter=5, **SEED), CELLS, BENIGN),
    (HistGradientBoostingClassifier(max_iter=4, **SEED), DIGITS, NUMBERS),
    (GradientBoostingClassifier(n_estimators=3, **SEED), DIGITS, NUMBERS),
    (HistGradientBoostingRegressor(max_iter=5, loss="poisson", **SEED), PATIENTS, PROGRESS),
    (LogisticRegression(max_iter=300), IRIS, NAMES),
    (make_pipeline(StandardScaler(), LogisticRegression()), CELLS, BENIGN),
    (LinearRegression(), PATIENTS, PROGRESS),
    (Ridge(), PATIENTS, np.c_[PROGRESS, PROGRESS]),
    (make_pipeline(RobustScaler(), SGDClassifier(loss="log_loss", **SEED)), IRIS, NAMES),
    (LinearSVC(**SEED), CELLS, BENIGN),
    (make_pipeline(StandardScaler(), MLPClassifier((6,), max_iter=5, **SEED)), IRIS, NAMES),
    (MLPClassifier((6,), max_iter=5, activation="logistic", **SEED), CELLS, BENIGN),
    (MLPRegressor(hidden_layer_sizes=(6, 4), max_iter=5, activation="tanh", **SEED), PATIENTS, PROGRESS),
    (make_pipeline(MinMaxScaler(clip=True), RandomForestClassifier(5, **SEED)), CELLS, BENIGN),
]


@pytest.mark.parametrize(("estimator", "rows", "targets"), ON_ARRAYS, ids=[type(e).__name__ for e, _, _ in ON_ARRAYS])
def test_models_on_arrays_answer_with_the_same_bits(
    estimator: Any, rows: np.ndarray, targets: np.ndarray, tmp_path: Path
) -> None:
    signature = Signature("tensors", (Field("x", "float64", True, (rows.shape[1],)),))
    known = Batch(("x",), block=np.ascontiguousarray(rows[::5]))
    assert largest_difference(estimator.fit(rows, targets), signature, known, tmp_path) == 0.0


# --- frames ----------------------------------------------------------------------------------------------------------

TYPES = {"age": "double", "income": "double", "visits": "long", "member": "boolean", "city": "string", "job": "string"}
NUMBERS, TEXTS = ["age", "income", "visits"], ["city", "job"]
COUNT = 240


def people(*, gaps: bool) -> pd.DataFrame:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": random.normal(40, 12, COUNT).round(1),
            "income": random.lognormal(10, 1, COUNT),
            "visits": random.integers(0, 9, COUNT),
            "member": random.random(COUNT) < 0.5,
            "city": random.choice(["Bern", "Basel", "Genf", "Chur"], COUNT, p=[0.5, 0.3, 0.15, 0.05]),
            "job": random.choice(["a", "b", "c"], COUNT),
        }
    )
    if gaps:
        frame["visits"] = frame["visits"].astype(float)
        for name in (*NUMBERS, *TEXTS):
            frame.loc[random.random(COUNT) < 0.1, name] = None
    return frame


WHOLE, GAPS = people(gaps=False), people(gaps=True)
CLASS = np.array(["lo", "mid", "hi"])[(WHOLE.age > 40).astype(int) + (WHOLE.city == "Bern")]


def signature_of(frame: pd.DataFrame) -> Signature:
    fields = (Field(name, TYPES[name], not frame[name].isna().any()) for name in frame.columns)
    return Signature("columns", tuple(fields))


def batch_of(frame: pd.DataFrame) -> Batch:
    """As a caller's rows arrive: a missing text is None."""
    columns = []
    for name in frame.columns:
        column = frame[name].to_numpy()
        gone = frame[name].isna().to_numpy()
        texts = TYPES[name] == "string"
        columns.append(np.where(gone, None, column.astype(object)) if texts else column)  # type: ignore[call-overload]
    return Batch(tuple(frame.columns), tuple(columns))


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(5, **SEED)


def logistic() -> LogisticRegression:
    return LogisticRegression(max_iter=50)


def side_by_side(numbers: Any, texts: Any, **options: Any) -> ColumnTransformer:
    return ColumnTransformer([("numbers", numbers, NUMBERS), ("texts", texts, TEXTS)], **options)


def impute(strategy: str = "mean", **options: Any) -> SimpleImputer:
    return SimpleImputer(strategy=strategy, **options)


def hot(**options: Any) -> OneHotEncoder:
    return OneHotEncoder(**{"handle_unknown": "ignore", **options})


def numbered(**options: Any) -> OrdinalEncoder:
    return OrdinalEncoder(handle_unknown="use_encoded_value", **options)


FILLED = make_pipeline(impute("most_frequent"), hot())
SPARSE = side_by_side(StandardScaler(), hot(), sparse_threshold=1.0)

PIPELINES: dict[str, tuple[pd.DataFrame, tuple[Any, ...]]] = {
    "median, scaled": (GAPS, (side_by_side(make_pipeline(impute("median"), StandardScaler()), FILLED), forest())),
    "gap as category": (GAPS, (side_by_side(impute(), hot(sparse_output=False)), forest())),
    "constants": (
        GAPS,
        (
            side_by_side(impute("constant", fill_value=-1), make_pipeline(impute("constant", fill_value="?"), hot())),
            forest(),
        ),
    ),
    "indicators": (
        GAPS,
        (
            side_by_side(impute(add_indicator=True), make_pipeline(impute("most_frequent", add_indicator=True), hot())),
            forest(),
        ),
    ),
    "infrequent": (
        GAPS,
        (side_by_side(impute(), hot(min_frequency=0.1, handle_unknown="infrequent_if_exist")), forest()),
    ),
    "infrequent, dropped": (
        GAPS,
        (side_by_side(impute(), hot(max_categories=3, drop="first", handle_unknown="infrequent_if_exist")), forest()),
    ),
    "infrequent, ignored": (GAPS, (side_by_side(impute(), hot(max_categories=3, dtype=np.float32)), forest())),
    "refusing": (WHOLE, (side_by_side(RobustScaler(), hot(handle_unknown="error")), forest())),
    "first dropped": (
        WHOLE,
        (side_by_side(MinMaxScaler(clip=True), hot(drop="first", sparse_output=False)), logistic()),
    ),
    "pairs dropped": (WHOLE, (side_by_side(MaxAbsScaler(), hot(drop="if_binary", sparse_output=False)), logistic())),
    "sparse, linear": (WHOLE, (SPARSE, logistic())),
    "sparse, perceptron": (WHOLE, (SPARSE, MLPClassifier((5,), max_iter=5, **SEED))),
    "sparse, forest": (WHOLE, (SPARSE, forest())),
    "sparse, scaled": (
        WHOLE,
        (ColumnTransformer([("texts", hot(), TEXTS)]), StandardScaler(with_mean=False), logistic()),
    ),
    "ordinal": (GAPS, (side_by_side(impute(), numbered(unknown_value=-1, encoded_missing_value=-2)), forest())),
    "ordinal, infrequent": (
        GAPS,
        (side_by_side(impute(), numbered(unknown_value=-1, encoded_missing_value=-2, max_categories=2)), forest()),
    ),
    "ordinal, boosted": (
        GAPS,
        (
            side_by_side("passthrough", numbered(unknown_value=np.nan)),
            HistGradientBoostingClassifier(max_iter=5, **SEED),
        ),
    ),
    "ordinal, refusing": (WHOLE, (side_by_side("passthrough", OrdinalEncoder()), forest())),
    "remainder": (WHOLE, (ColumnTransformer([("texts", hot(), TEXTS)], remainder="passthrough"), forest())),
    "selected": (
        WHOLE,
        (
            ColumnTransformer(
                [
                    ("texts", hot(), make_column_selector(dtype_exclude=["number", "bool"])),
                    ("first", "passthrough", slice(0, 1)),
                    ("none", "drop", [1]),
                ],
                remainder=StandardScaler(),
            ),
            forest(),
        ),
    ),
    "masked": (
        WHOLE,
        (
            ColumnTransformer(
                [("some", StandardScaler(), [True, False, True, False, False, False]), ("flag", "passthrough", [3])]
            ),
            forest(),
        ),
    ),
    "numbers as categories": (WHOLE, (ColumnTransformer([("all", hot(), ["visits", "member", "city"])]), forest())),
    "nested": (
        WHOLE,
        (
            ColumnTransformer(
                [
                    (
                        "numbers",
                        ColumnTransformer([("a", StandardScaler(), ["age"]), ("b", MinMaxScaler(), [1])]),
                        ["age", "income"],
                    ),
                    ("texts", hot(), TEXTS),
                ]
            ),
            forest(),
        ),
    ),
    "frames between": (
        WHOLE,
        (side_by_side(StandardScaler(), hot(sparse_output=False)).set_output(transform="pandas"), forest()),
    ),
    "empty column kept": (
        GAPS.assign(age=np.nan),
        (ColumnTransformer([("numbers", impute(keep_empty_features=True), NUMBERS)]), forest()),
    ),
    "empty column gone": (GAPS.assign(age=np.nan), (ColumnTransformer([("numbers", impute(), NUMBERS)]), forest())),
    "boosted by category": (
        GAPS,
        (HistGradientBoostingClassifier(max_iter=8, categorical_features=["city", "job", "visits"], **SEED),),
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_on_frames_answer_with_the_same_bits(name: str, tmp_path: Path) -> None:
    frame, steps = PIPELINES[name]
    estimator = (make_pipeline(*steps) if len(steps) > 1 else steps[0]).fit(frame, CLASS)
    assert largest_difference(estimator, signature_of(frame), batch_of(frame[:40]), tmp_path) == 0.0


@pytest.mark.parametrize("categorical", ["from_dtype", [4, 5], [False, False, True, True, True, True]])
def test_boosting_finds_its_categories(categorical: Any, tmp_path: Path) -> None:
    frame = WHOLE.astype(dict.fromkeys(TEXTS, "category"))
    estimator = HistGradientBoostingRegressor(max_iter=5, categorical_features=categorical, **SEED)
    estimator.fit(frame, WHOLE.income)
    assert largest_difference(estimator, signature_of(WHOLE), batch_of(WHOLE[:40]), tmp_path) == 0.0


def test_columns_in_another_order_are_taken_by_name(tmp_path: Path) -> None:
    estimator = make_pipeline(side_by_side(StandardScaler(), hot()), forest()).fit(WHOLE, CLASS)
    turned = WHOLE[WHOLE.columns[::-1]]
    assert largest_difference(estimator, signature_of(turned), batch_of(turned[:40]), tmp_path) == 0.0


def test_columns_in_an_order_that_scikit_learn_refuses_stay_with_it(tmp_path: Path) -> None:
    estimator = forest().fit(WHOLE[NUMBERS], CLASS)
    turned = WHOLE[NUMBERS[::-1]]
    with pytest.raises(NotCompiled, match="takes none of the rows"):
        largest_difference(estimator, signature_of(turned), batch_of(turned[:40]), tmp_path)


# --- what is refused -------------------------------------------------------------------------------------------------


def both(estimator: Any, folder: Path, signature: Signature) -> Iterator[Any]:
    (folder / native.FILE_NAME).write_bytes(pickle.dumps(estimator))
    yield native.load(folder)
    yield compiled.predictor(build_model(estimator, signature))


def test_an_unknown_category_is_a_fault_of_the_row(tmp_path: Path) -> None:
    estimator = make_pipeline(side_by_side(StandardScaler(), hot(handle_unknown="error")), forest()).fit(WHOLE, CLASS)
    by_sklearn, by_kernels = both(estimator, tmp_path, signature_of(WHOLE))
    batch = batch_of(WHOLE[:3].assign(job=["a", "b", "zz"]))
    with pytest.raises(InvalidInput, match="a category that the model does not know"):
        by_sklearn(batch)
    with pytest.raises(InvalidInput, match="'zz' is a category that the model does not know") as raised:
        by_kernels(batch)
    assert (raised.value.row, raised.value.column) == (2, "job")


def test_the_column_that_takes_no_gap_is_named(tmp_path: Path) -> None:
    steps = ColumnTransformer([("a", impute(), ["age"]), ("b", "passthrough", ["income"])]), logistic()
    frame = GAPS[["age", "income"]].assign(income=WHOLE.income)
    by_sklearn, by_kernels = both(make_pipeline(*steps).fit(frame, CLASS), tmp_path, signature_of(frame))
    batch = Batch(("age", "income"), block=np.array([[1.0, 2.0], [np.nan, np.nan]]))
    with pytest.raises(InvalidInput):
        by_sklearn(batch)
    with pytest.raises(InvalidInput) as raised:
        by_kernels(batch)
    assert (raised.value.row, raised.value.column) == (1, "income")


def test_a_missing_text_means_the_same_alone_and_among_others(tmp_path: Path) -> None:
    estimator = make_pipeline(side_by_side(impute(), hot()), forest()).fit(GAPS, CLASS)
    (tmp_path / native.FILE_NAME).write_bytes(pickle.dumps(estimator))
    predict = native.load(tmp_path)
    together = predict(batch_of(GAPS)).probabilities
    row = int(np.flatnonzero(GAPS.city.isna())[0])
    alone = predict(batch_of(GAPS[row : row + 1])).probabilities
    assert together is not None
    assert alone is not None
    assert np.array_equal(together[row], alone[0])


@pytest.mark.parametrize(
    "step",
    [
        FunctionTransformer(np.log1p),
        SimpleImputer(missing_values=0),
        type("Own", (StandardScaler,), {"__module__": "own"})(),
    ],
    ids=["function", "imputer", "class"],
)
def test_what_has_no_kernel_stays_with_scikit_learn(step: Any) -> None:
    with pytest.raises(NotCompiled):
        compilation.build(make_pipeline(step, LogisticRegression(max_iter=300)).fit(IRIS, SPECIES))


def test_an_estimator_that_lacks_what_is_known_of_it_stays_with_scikit_learn() -> None:
    with pytest.raises(NotCompiled, match="StandardScaler is not as it is known"):
        compilation.build(StandardScaler())


def test_releases_that_were_not_tested_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compilation.check_release()
    monkeypatch.setattr(compilation, "TESTED", ((0, 1), (0, 2)))
    with pytest.raises(NotCompiled, match=r"not among the tested releases \(0\.1 to 0\.2\)"):
        build_model(DecisionTreeClassifier().fit(IRIS, SPECIES), Signature("unknown", ()))
