"""What has no kernel is converted by skl2onnx: within the tolerance, in a child, and never where labels may jump."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from samples import save_sklearn
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.cross_decomposition import PLSRegression
from sklearn.datasets import load_diabetes, load_iris
from sklearn.decomposition import PCA, FastICA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, HistGradientBoostingClassifier, StackingClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, PoissonRegressor, RANSACRegressor, Ridge, TweedieRegressor
from sklearn.multioutput import MultiOutputClassifier, MultiOutputRegressor
from sklearn.neighbors import RadiusNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    Normalizer,
    OneHotEncoder,
    QuantileTransformer,
    StandardScaler,
)
from sklearn.svm import OneClassSVM
from threadpoolctl import threadpool_limits

from serving import compile as compilation
from serving import kernels
from serving.bundle import Bundle, Compilation
from serving.compile import NotCompiled, converted, proof
from serving.difference import largest_difference
from serving.errors import InvalidInput
from serving.kernels.graph import Graph
from serving.prepare import Job, prepare
from serving.registry import Auth, Version
from serving.runtimes import compiled
from serving.runtimes import sklearn as native
from serving.settings import ROOT
from serving.tensors import Batch, Field, Signature

IRIS, SPECIES = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
PATIENTS, PROGRESS = (part[:150] for part in load_diabetes(return_X_y=True))
CASES = np.random.default_rng(0).poisson(3, 150)
TOWNS = pd.DataFrame(
    {
        "town": np.array(["Ulm", "Jena", "Bonn"])[np.arange(150) % 3],
        "rooms": np.arange(150) % 5,
        "area": IRIS[:, 0],
        "year": np.where(np.arange(150) % 7 == 0, np.nan, IRIS[:, 1]),
        "garden": np.arange(150) % 2 == 0,
    }
)
TOWN_SIGNATURE = Signature(
    "columns",
    (
        Field("year", "double", required=False),
        Field("town", "string"),
        Field("rooms", "long"),
        Field("area", "double"),
        Field("garden", "boolean"),
    ),
)


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The whole proof is for prepare; here some rows of each kind do."""
    monkeypatch.setattr(proof, "ROWS", 600)
    monkeypatch.setattr(proof, "CUTS", ((1, 10), (2, 3), (17, 2)))
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        yield


def of_doubles(width: int) -> Signature:
    return Signature("columns", tuple(Field(f"c{k}", "double") for k in range(width)))


def of_towns(frame: pd.DataFrame) -> Batch:
    names = TOWN_SIGNATURE.names
    return Batch(names, tuple(frame[name].to_numpy(object if name == "town" else None) for name in names))


def proven(estimator: Any, signature: Signature, known: Batch, folder: Path) -> tuple[Any, Compilation]:
    """The kernels of a fitted estimator as they were read back, and what the proof says of them."""
    (folder / compiled.FOLDER).mkdir()
    (folder / native.FILE_NAME).write_bytes(pickle.dumps(estimator))
    kernels.save(converted.convert(estimator, signature), folder / compiled.FOLDER)
    root = kernels.load(folder / compiled.FOLDER)
    predict = compiled.predictor(root)
    return root, proof.compare(native.load(folder), predict, root, signature, [known], tolerance=converted.TOLERANCE)


# --- what is converted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "rows", "targets"),
    [
        (LinearDiscriminantAnalysis(), IRIS, NAMES),
        (LinearDiscriminantAnalysis(), IRIS, SPECIES * 1.0),
        (QuadraticDiscriminantAnalysis(), IRIS, SPECIES > 0),
        (make_pipeline(PCA(2), LogisticRegression()), IRIS, NAMES),
        (make_pipeline(StandardScaler(), TruncatedSVD(2), Normalizer(), Ridge()), PATIENTS, PROGRESS),
        (make_pipeline(QuantileTransformer(n_quantiles=20), "passthrough", LogisticRegression()), IRIS, SPECIES),
        (PLSRegression(2), PATIENTS, PROGRESS),
        (TweedieRegressor(power=1.5), PATIENTS, PROGRESS),
        (RANSACRegressor(random_state=0), PATIENTS, PROGRESS),
        (MultiOutputRegressor(Ridge()), PATIENTS, np.c_[PROGRESS, -PROGRESS]),
        (MultiOutputClassifier(LogisticRegression()), IRIS, np.c_[SPECIES, SPECIES > 0]),
        (CalibratedClassifierCV(LinearDiscriminantAnalysis(), cv=2), IRIS, SPECIES),
        (BaggingClassifier(LogisticRegression(), 3, random_state=0), IRIS, NAMES),
    ],
    ids=lambda value: type(value[-1] if hasattr(value, "steps") else value).__name__,
)
def test_it_answers_within_the_tolerance(estimator: Any, rows: np.ndarray, targets: np.ndarray, tmp_path: Path) -> None:
    estimator.fit(rows, targets)
    signature = of_doubles(rows.shape[1])
    with pytest.raises(NotCompiled):
        compilation.build_model(estimator, signature)
    root, verdict = proven(estimator, signature, Batch(signature.names, block=rows), tmp_path)
    assert any(isinstance(part, Graph) for part in kernels.walk(root))
    assert verdict.largest_difference < 1e-10


def test_the_steps_before_it_keep_their_kernels(tmp_path: Path) -> None:
    """Texts, gaps and the order of columns are theirs; the graph gets one block of numbers."""
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["town"]), (numbers, ["area", "year"]))
    estimator = make_pipeline(columns, PoissonRegressor()).fit(TOWNS, CASES)
    root, verdict = proven(estimator, TOWN_SIGNATURE, of_towns(TOWNS), tmp_path)
    assert [type(step).__name__ for step in root.steps][-1] == "Graph"
    assert sum(isinstance(part, Graph) for part in kernels.walk(root)) == 1
    assert verdict.largest_difference < 1e-10


def test_a_choice_of_columns_gets_an_input_for_each(tmp_path: Path) -> None:
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore"), ["town"]), (PCA(1), ["area", "rooms"]), ("passthrough", ["rooms"])
    )
    frame = TOWNS.drop(columns="year")
    estimator = make_pipeline(columns, Ridge()).fit(frame, CASES)
    root, verdict = proven(estimator, TOWN_SIGNATURE, of_towns(TOWNS), tmp_path)
    graph = next(part for part in kernels.walk(root) if isinstance(part, Graph))
    assert dict(zip(graph.inputs, graph.types, strict=True)) == {
        **{"town": "string", "rooms": "int64", "area": "double", "garden": "bool"},
    }
    assert verdict.largest_difference < 1e-10


# --- what is not -----------------------------------------------------------------------------------------------------


class Shifted(PCA):
    """An estimator of a project's own."""


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (BaggingClassifier(n_estimators=2), r"it has trees \(DecisionTreeClassifier\)"),
        (AdaBoostClassifier(n_estimators=2), r"it has trees \(DecisionTreeClassifier\)"),
        (make_pipeline(PCA(2), HistGradientBoostingClassifier(max_iter=2)), "it has trees"),
        (StackingClassifier([("a", BaggingClassifier(n_estimators=2))]), "it has trees"),
        (make_pipeline(KBinsDiscretizer(), LogisticRegression()), "KBinsDiscretizer cuts its input at thresholds"),
        (RadiusNeighborsClassifier(5), "RadiusNeighborsClassifier chooses among equally near rows"),
        (make_pipeline(Shifted(2), LogisticRegression()), "Shifted is none of scikit-learn's"),
        (make_pipeline(FastICA(2), LogisticRegression()), "skl2onnx does not convert FastICA: MissingShapeCalculator"),
        (OneClassSVM(), "skl2onnx does not convert OneClassSVM: its SVMRegressor computes in float32"),
        (make_pipeline(FunctionTransformer(np.log1p), Ridge()), "FunctionTransformer"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_it_says_why_something_is_not_converted(estimator: Any, why: str) -> None:
    with pytest.raises(NotCompiled, match=why):
        converted.convert(estimator.fit(IRIS, SPECIES), of_doubles(4))


def test_texts_are_not_split_otherwise_than_by_scikit_learn() -> None:
    texts = ["good day", "bad day", "so so"] * 5
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, list(range(3)) * 5)
    with pytest.raises(NotCompiled, match="TfidfVectorizer splits texts"):
        converted.convert(estimator, Signature("columns", (Field("text", "string"),)))


class Plain:
    """Not even a scikit-learn estimator by its methods."""

    def predict(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, 0]


@pytest.mark.parametrize("make", [Plain, BaseEstimator], ids=["plain", "no columns"])
def test_an_estimator_that_tells_nothing_of_itself_is_left_alone(make: Callable[[], Any]) -> None:
    with pytest.raises(NotCompiled, match=r"Plain is none of|BaseEstimator does not tell how many columns"):
        converted.convert(make(), of_doubles(4))


def test_columns_that_are_not_the_signatures() -> None:
    estimator = LinearDiscriminantAnalysis().fit(pd.DataFrame(IRIS, columns=list("abcd")), SPECIES)
    with pytest.raises(NotCompiled, match="its columns are not those of its signature"):
        converted.convert(estimator, of_doubles(4))


@pytest.mark.parametrize("labels", [SPECIES + 10_000_000, np.c_[SPECIES, SPECIES + 10_000_000]], ids=["one", "several"])
def test_labels_that_the_tolerance_would_take_for_one_another(labels: np.ndarray) -> None:
    """To the proof labels are numbers too."""
    estimator = LogisticRegression() if labels.ndim == 1 else MultiOutputClassifier(LogisticRegression())
    estimator.fit(IRIS, labels)
    with pytest.raises(NotCompiled, match="lie too close together"):
        converted._labels(estimator)


def test_a_wrong_conversion_does_not_pass_the_proof(tmp_path: Path) -> None:
    """A real fault: skl2onnx gives the softmax of both signs of the score of two classes, not its expit."""
    estimator = LinearDiscriminantAnalysis().fit(IRIS, SPECIES > 0)
    with pytest.raises(NotCompiled, match=r"answers otherwise in a batch of 150: by 0\.0003"):
        proven(estimator, of_doubles(4), Batch(of_doubles(4).names, block=IRIS), tmp_path)


def test_a_conversion_is_never_called_exact_nor_slow_for_many_rows() -> None:
    found = Compilation(1000, 0.0, 0.0, {"1": 2e-3, "1000": 4e-3}, {"1": 1e-3, "1000": 7e-3})
    assert converted.accepted(found) == replace(found, tolerance=converted.TOLERANCE)
    with pytest.raises(NotCompiled, match=r"it answers 1,000 rows in 9\.0 ms, scikit-learn in 4\.0 ms"):
        converted.accepted(replace(found, compiled_s={"1": 1e-3, "1000": 9e-3}))


# --- the child -------------------------------------------------------------------------------------------------------


class Trap:
    """In place of a fitted array: whoever reads it runs ``does``."""

    def __init__(self, does: Callable[[], Any]) -> None:
        self.__dict__["does"] = does

    def __getattr__(self, name: str) -> Any:
        return self.does()


@pytest.mark.parametrize(
    ("does", "why"),
    [
        (lambda: time.sleep(60), "converting PCA takes more than 1 s"),
        (lambda: os._exit(3), "converting PCA ended with 3"),
        (lambda: bytearray(converted.LIMIT_BYTES + 1), "skl2onnx does not convert PCA: MemoryError"),
    ],
    ids=["hangs", "ends", "eats memory"],
)
def test_a_conversion_that_does_not_come_back(
    does: Callable[[], Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "LIMIT_S", 1 if "1 s" in why else 30)
    estimator = PCA(2).fit(IRIS)
    estimator.components_ = estimator.mean_ = Trap(does)
    with pytest.raises(NotCompiled, match=why):
        converted._graph(estimator, None)


# --- the kernel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def several() -> Graph:
    """A graph with a column of each type."""
    frame = TOWNS.drop(columns="year")
    columns = make_column_transformer((OneHotEncoder(), ["town"]), (PCA(1), ["area", "rooms"])).fit(frame)
    return converted._graph(columns, [TOWN_SIGNATURE.inputs[position] for position in (1, 2, 3, 4)])


@pytest.mark.parametrize(("position", "bad"), [(0, None), (1, None), (2, np.inf), (2, np.nan), (3, None)])
def test_what_is_missing_or_infinite_is_refused_by_row_and_column(several: Graph, position: int, bad: Any) -> None:
    frame = TOWNS[list(several.inputs)]
    table = tuple(frame[name].to_numpy(object if name == "town" else None) for name in several.inputs)
    assert several(table).shape == (150, 4)
    column = table[position].astype(object if bad is None else table[position].dtype)
    column[3] = bad
    with pytest.raises(InvalidInput) as caught:
        several((*table[:position], column, *table[position + 1 :]))
    assert (caught.value.row, getattr(caught.value, "position", None)) == (3, position)


# --- prepare and serve -----------------------------------------------------------------------------------------------


def prepared(estimator: Any, tmp_path: Path) -> Bundle:
    from mlflow.models import infer_signature

    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    folder = save_sklearn(tmp_path / "model", estimator, format="cloudpickle", signature=infer_signature(frame))
    (tmp_path / "work").mkdir()
    version = Version("iris", "1", "champion", "registry", str(folder), "0123abcd", None)
    return prepare(Job(version, "http://127.0.0.1:1", str(tmp_path / "work"), str(tmp_path / "bundle")), Auth())


SERVE = """
import sys
from pathlib import Path
import numpy as np
from serving.runtimes import compiled
from serving.tensors import Batch
answer = compiled.load(Path(sys.argv[1]))(Batch(tuple("abcd"), block=np.load(sys.argv[2])))
np.savez(sys.argv[3], values=answer.values.astype(str), probabilities=answer.probabilities)
print(sorted({"sklearn", "skl2onnx", "onnx", "pandas", "scipy", "mlflow"} & set(sys.modules)))
"""


def test_a_prepared_version_is_served_without_scikit_learn(tmp_path: Path) -> None:
    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    estimator = make_pipeline(StandardScaler(), QuadraticDiscriminantAnalysis()).fit(frame, NAMES)
    bundle = prepared(estimator, tmp_path)
    assert (bundle.runtime, bundle.native) == ("compiled", None)
    assert bundle.compilation is not None
    assert (bundle.compilation.exact, bundle.compilation.tolerance) == (False, converted.TOLERANCE)
    np.save(tmp_path / "rows.npy", IRIS)
    command = [sys.executable, "-c", SERVE, bundle.folder, tmp_path / "rows.npy", tmp_path / "answer.npz"]
    said = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said.strip() == "[]"
    with np.load(tmp_path / "answer.npz") as answer:
        assert answer["values"].tolist() == estimator.predict(frame).tolist()
        assert np.abs(answer["probabilities"] - estimator.predict_proba(frame)).max() < converted.TOLERANCE


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_scikit_learn_refuses_is_refused_by_row_and_column(bad: float, tmp_path: Path) -> None:
    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    estimator = QuadraticDiscriminantAnalysis().fit(frame, SPECIES)
    bundle = prepared(estimator, tmp_path)
    rows = IRIS.copy()
    rows[7, 2] = bad
    with pytest.raises(InvalidInput) as caught:
        compiled.load(bundle.folder)(Batch(tuple("abcd"), block=rows))
    assert (caught.value.status, caught.value.row, caught.value.column) == (400, 7, "c")


@pytest.mark.parametrize(
    ("estimator", "why"),
    [
        (LinearDiscriminantAnalysis(), "LinearDiscriminantAnalysis; converted: it answers otherwise in a batch of"),
        (BaggingClassifier(n_estimators=2), "BaggingClassifier; converted: it has trees"),
    ],
    ids=["differs", "trees"],
)
def test_what_stays_native_says_what_came_of_the_conversion(estimator: Any, why: str, tmp_path: Path) -> None:
    frame = pd.DataFrame(IRIS, columns=list("abcd"))
    bundle = prepared(estimator.fit(frame, SPECIES > 0), tmp_path)
    assert bundle.runtime == "sklearn"
    assert bundle.native is not None
    assert bundle.native.startswith("there is no kernel for sklearn.")
    assert why in bundle.native
    batch = Batch(tuple("abcd"), block=IRIS)
    answer = native.load(bundle.folder)(batch)
    assert np.array_equal(answer.values, estimator.predict(frame))
    assert largest_difference(answer, replace(answer, probabilities=estimator.predict_proba(frame))) == 0.0


def test_an_untested_release_of_scikit_learn_is_not_converted_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "TESTED", ((0, 1), (0, 2)))
    bundle = prepared(QuadraticDiscriminantAnalysis().fit(IRIS, SPECIES), tmp_path)
    assert bundle.native is not None
    assert bundle.native.startswith("scikit-learn ")
    assert bundle.native.endswith("is not among the tested releases (0.1 to 0.2)")
