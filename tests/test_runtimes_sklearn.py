"""The scikit-learn runtime: models as MLflow saves them answer as the estimator itself does, to the last bit."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.models import infer_signature
from samples import CLASS_NAMES, Loaded, flowers, save_sklearn, write_sklearn
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from serving.errors import InvalidInput, VersionRefused
from serving.tensors import Field

X, Y = flowers()
ROWS = X.iloc[::10]


def loaded(tmp_path: Path, estimator: Any, inputs: Any = None, *, format: str = "pickle", **options: Any) -> Loaded:
    """Saved by MLflow with the signature of ``inputs``, converted, and loaded as a worker does."""
    if inputs is not None:
        options["signature"] = infer_signature(inputs, estimator.predict(inputs))
    folder = save_sklearn(tmp_path / "model", estimator, format=format, **options)
    return Loaded("sklearn", folder, tmp_path / "bundle")


def json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The frame's rows as they come in a request."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    read: list[dict[str, Any]] = json.loads(json.dumps(rows))
    return read


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["skops", "pickle", "cloudpickle"])
def test_every_format_of_mlflow_is_read(tmp_path: Path, format: str) -> None:
    forest = RandomForestClassifier(3, random_state=0).fit(X, Y)
    model = loaded(tmp_path, forest, X, format=format, metadata={"class_names": list(CLASS_NAMES)})
    answer = model.answer(ROWS.to_numpy().tolist())
    assert np.array_equal(answer.values, forest.predict(ROWS))
    assert answer.probabilities is not None
    assert np.array_equal(answer.probabilities, forest.predict_proba(ROWS))
    assert model.description.classes is not None
    assert model.description.classes.names == CLASS_NAMES
    assert model.description.libraries == ("scikit-learn",)


def test_skops_refuses_a_type_that_the_version_does_not_trust(tmp_path: Path) -> None:
    forest = RandomForestClassifier(1, random_state=0).fit(X, Y)
    folder = save_sklearn(tmp_path / "model", forest, format="skops")
    written = yaml.safe_load((folder / "MLmodel").read_text())
    written["flavors"]["sklearn"]["skops_trusted_types"] = None
    (folder / "MLmodel").write_text(yaml.safe_dump(written))
    with pytest.raises(Exception, match=r"sklearn\.tree\._tree\.Tree"):
        Loaded("sklearn", folder, tmp_path / "bundle")


def test_a_model_file_outside_its_folder_is_refused(tmp_path: Path) -> None:
    folder = save_sklearn(tmp_path / "model", LinearRegression().fit(X, Y))
    (folder / "model.pkl").rename(tmp_path / "outside.pkl")
    written = yaml.safe_load((folder / "MLmodel").read_text())
    written["flavors"]["sklearn"]["pickled_model"] = "../outside.pkl"
    (folder / "MLmodel").write_text(yaml.safe_dump(written))
    with pytest.raises(VersionRefused, match="lies outside its folder") as caught:
        Loaded("sklearn", folder, tmp_path / "bundle")
    assert caught.value.reason == "bad_path"


def test_what_cannot_predict_is_refused(tmp_path: Path) -> None:
    folder = save_sklearn(tmp_path / "model", StandardScaler().fit(X))
    with pytest.raises(VersionRefused, match="StandardScaler has no predict method"):
        Loaded("sklearn", folder, tmp_path / "bundle")


CODE = """
class Doubler:
    n_features_in_ = 1

    def predict(self, rows):
        return rows[:, 0] * 2
"""

CONVERT = """
import sys, yaml
from pathlib import Path
from serving.runtimes import sklearn
model, into = map(Path, sys.argv[1:])
into.mkdir()
sklearn.convert(yaml.safe_load((model / "MLmodel").read_text()), model, into)
"""

LOAD = """
import sys
import numpy as np
from pathlib import Path
from serving.runtimes import sklearn
from serving.tensors import Batch
predict = sklearn.load(Path(sys.argv[1]))
print(predict(Batch(("x",), block=np.array([[1.0], [2.0]]))).values.tolist())
"""


def run(code: str, *arguments: Path) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_code_that_came_with_the_model_is_there_in_a_worker(tmp_path: Path) -> None:
    """In processes that know nothing of the training code; in the worker's the version's own files are gone."""
    code = tmp_path / "training" / "doubler_of_numbers.py"
    code.parent.mkdir()
    code.write_text(CODE)
    sys.path.insert(0, str(code.parent))
    try:
        doubler = importlib.import_module(code.stem).Doubler()
        save_sklearn(tmp_path / "model", doubler, format="cloudpickle", code_paths=[str(code)])
    finally:
        sys.path.remove(str(code.parent))
    code.unlink()
    run(CONVERT, tmp_path / "model", tmp_path / "bundle")
    (tmp_path / "model").rename(tmp_path / "gone")
    assert run(LOAD, tmp_path / "bundle") == "[2.0, 4.0]"


# --- input -----------------------------------------------------------------------------------------------------------


def people(rows: int = 60) -> pd.DataFrame:
    """Text, numbers, whole numbers and booleans, some of them missing."""
    chance = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "city": chance.choice(["Wien", "Zürich", "Köln"], rows).astype(object),
            "income": chance.normal(3000, 500, rows),
            "age": chance.integers(18, 90, rows),
            "member": chance.choice([True, False], rows),
        }
    )
    frame.loc[::7, "city"] = None
    frame.loc[::5, "income"] = np.nan
    return frame


def mixed_pipeline() -> Any:
    texts = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    by_column = ColumnTransformer(
        [("t", texts, ["city"]), ("n", numbers, ["income", "age"]), ("b", "passthrough", ["member"])]
    )
    return make_pipeline(by_column, LogisticRegression())


@pytest.mark.parametrize("format", ["pickle", "cloudpickle"])
def test_frames_with_texts_and_gaps_go_through_a_column_transformer(tmp_path: Path, format: str) -> None:
    frame = people()
    pipeline = mixed_pipeline().fit(frame, frame["age"] > 50)
    model = loaded(tmp_path, pipeline, frame, format=format)
    assert model.description.signature.inputs == (
        Field("city", "string", required=False),
        Field("income", "double", required=False),
        Field("age", "long"),
        Field("member", "boolean"),
    )
    rows = json_rows(frame)
    assert any(row["city"] is None for row in rows)
    assert any(row["income"] is None for row in rows)
    answer = model.answer(rows)
    assert np.array_equal(answer.probabilities, pipeline.predict_proba(frame))  # type: ignore[arg-type]
    assert answer.values.tolist() == pipeline.predict(frame).tolist()


def test_a_city_that_was_never_seen_is_no_error(tmp_path: Path) -> None:
    frame = people()
    model = loaded(tmp_path, mixed_pipeline().fit(frame, frame["age"] > 50), frame)
    answer = model.answer({"city": "Bern", "income": 2000.0, "age": 30, "member": True})
    assert answer.values.shape == (1,)


def test_a_model_of_arrays_is_given_arrays(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=500).fit(X.to_numpy(), Y)
    model = loaded(tmp_path, estimator, X.to_numpy())
    assert model.description.signature.inputs == (Field("input_0", "float64", shape=(4,)),)
    answer = model.answer(ROWS.to_numpy().tolist())
    assert np.array_equal(answer.probabilities, estimator.predict_proba(ROWS.to_numpy()))  # type: ignore[arg-type]


def test_a_model_of_a_frame_without_names_is_given_its_columns_by_number(tmp_path: Path) -> None:
    frame = pd.DataFrame(X.to_numpy())
    estimator = DecisionTreeClassifier(max_depth=2, random_state=0).fit(frame, Y)
    model = loaded(tmp_path, estimator, frame)
    assert model.description.signature.names == ("0", "1", "2", "3")
    by_number = [dict(zip("0123", row, strict=True)) for row in ROWS.to_numpy().tolist()]
    for rows in (by_number, ROWS.to_numpy().tolist()):
        assert np.array_equal(model.answer(rows).values, estimator.predict(pd.DataFrame(ROWS.to_numpy())))


def test_a_text_pipeline_is_given_texts(tmp_path: Path) -> None:
    texts = ["good film", "bad film", "good actors", "bad ending"] * 3
    pipeline = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["+", "-"] * 6)
    model = loaded(tmp_path, pipeline, pd.Series(texts, name="review"))
    answer = model.answer([["good ending"], ["bad actors"]])
    assert answer.values.tolist() == ["+", "-"]
    assert np.array_equal(answer.probabilities, pipeline.predict_proba(["good ending", "bad actors"]))  # type: ignore[arg-type]


def test_a_text_pipeline_without_a_signature_is_given_texts(tmp_path: Path) -> None:
    texts = ["good film", "bad film"] * 3
    model = loaded(tmp_path, make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["+", "-"] * 3))
    assert (model.description.signature.layout, model.description.signature.origin) == ("unknown", "none")
    assert model.answer(["good"]).values.tolist() == ["+"]
    assert model.answer([["good"], ["bad"]]).values.tolist() == ["+", "-"]


# --- no signature ----------------------------------------------------------------------------------------------------


def test_without_a_signature_the_columns_are_those_of_the_frame_it_was_fitted_on(tmp_path: Path) -> None:
    estimator = DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, Y)
    model = loaded(tmp_path, estimator)
    signature = model.description.signature
    assert (signature.layout, signature.origin, signature.names) == ("columns", "inferred", tuple(X.columns))
    assert np.array_equal(model.answer(json_rows(ROWS)).values, estimator.predict(ROWS))
    with pytest.raises(InvalidInput, match="is missing"):
        model.answer({X.columns[0]: 1.0})


def test_without_a_signature_the_width_is_that_of_the_array_it_was_fitted_on(tmp_path: Path) -> None:
    estimator = LinearRegression().fit(X.to_numpy(), Y)
    model = loaded(tmp_path, estimator)
    assert model.description.signature.inputs == (Field("features", "float64", shape=(4,)),)
    assert model.description.signature.origin == "inferred"
    assert np.array_equal(model.answer(ROWS.to_numpy().tolist()).values, estimator.predict(ROWS.to_numpy()))
    with pytest.raises(InvalidInput, match="has 3 values, expected 4"):
        model.answer([1, 2, 3])


def test_a_mixed_pipeline_without_a_signature_takes_its_columns_as_they_come(tmp_path: Path) -> None:
    frame = people()
    pipeline = mixed_pipeline().fit(frame, frame["age"] > 50)
    model = loaded(tmp_path, pipeline)
    answer = model.answer(json_rows(frame))
    assert np.allclose(answer.probabilities, pipeline.predict_proba(frame), rtol=0, atol=1e-12)  # type: ignore[arg-type]


# --- missing values --------------------------------------------------------------------------------------------------


def test_arrays_may_have_gaps_where_the_estimator_says_so(tmp_path: Path) -> None:
    values = X.to_numpy().copy()
    values[::3, 1] = np.nan
    estimator = HistGradientBoostingClassifier(max_iter=2, random_state=0).fit(values, Y)
    model = loaded(tmp_path, estimator, values)
    answer = model.answer([[5.0, None, 1.5, 0.2], [5.0, 3.0, 1.5, 0.2]])
    expected = estimator.predict_proba(np.array([[5.0, np.nan, 1.5, 0.2], [5.0, 3.0, 1.5, 0.2]]))
    assert np.array_equal(answer.probabilities, expected)  # type: ignore[arg-type]


def test_arrays_may_have_no_gaps_where_the_estimator_takes_none(tmp_path: Path) -> None:
    model = loaded(tmp_path, LogisticRegression(max_iter=500).fit(X.to_numpy(), Y), X.to_numpy())
    with pytest.raises(InvalidInput, match="row 0, column 'input_0': is missing"):
        model.answer([5.0, None, 1.5, 0.2])


def test_whole_numbers_have_no_gaps_even_where_the_estimator_takes_them(tmp_path: Path) -> None:
    whole = (X.to_numpy() * 10).astype(np.int64)
    model = loaded(tmp_path, HistGradientBoostingClassifier(max_iter=2, random_state=0).fit(whole, Y), whole)
    with pytest.raises(InvalidInput, match="row 1, column 'input_0': is missing"):
        model.answer([[50, 30, 15, 2], [50, None, 15, 2]])


def test_a_text_where_a_model_without_signature_takes_a_number_is_the_callers_error(tmp_path: Path) -> None:
    folder = write_sklearn(tmp_path / "model", LogisticRegression(max_iter=500).fit(X, Y))
    model = Loaded("sklearn", folder, tmp_path / "bundle")
    with pytest.raises(InvalidInput, match="there is a text where the model takes a number"):
        model.answer([5.0, "x", 1.5, 0.2])


def test_what_the_estimator_says_of_missing_values_is_said_to_the_caller(tmp_path: Path) -> None:
    model = loaded(tmp_path, LogisticRegression(max_iter=500).fit(X, Y))
    with pytest.raises(InvalidInput, match="takes no missing or infinite values"):
        model.answer(dict.fromkeys(X.columns, None))


# --- output ----------------------------------------------------------------------------------------------------------


def test_a_regressor_gives_values(tmp_path: Path) -> None:
    estimator = RandomForestRegressor(3, random_state=0).fit(X.iloc[:, :3], X.iloc[:, 3])
    model = loaded(tmp_path, estimator, X.iloc[:, :3])
    answer = model.answer(ROWS.iloc[:, :3].to_numpy().tolist())
    assert np.array_equal(answer.values, estimator.predict(ROWS.iloc[:, :3]))
    assert (answer.probabilities, answer.named, model.description.classes) == (None, None, None)


def test_a_regressor_of_two_outputs_gives_two_values_a_row(tmp_path: Path) -> None:
    estimator = LinearRegression().fit(X.iloc[:, :2], X.iloc[:, 2:])
    model = loaded(tmp_path, estimator, X.iloc[:, :2])
    answer = model.answer(ROWS.iloc[:, :2].to_numpy().tolist())
    assert answer.values.shape == (len(ROWS), 2)
    assert np.array_equal(answer.values, estimator.predict(ROWS.iloc[:, :2]))


def test_a_classifier_of_two_outputs_gives_two_labels_a_row(tmp_path: Path) -> None:
    targets = np.stack([Y, Y > 0], axis=1)
    estimator = MultiOutputClassifier(DecisionTreeClassifier(max_depth=2, random_state=0)).fit(X, targets)
    model = loaded(tmp_path, estimator, X)
    answer = model.answer(ROWS.to_numpy().tolist())
    assert np.array_equal(answer.values, estimator.predict(ROWS))
    assert (answer.probabilities, model.description.classes) == (None, None)


def test_a_classifier_without_probabilities_gives_labels(tmp_path: Path) -> None:
    estimator = LinearSVC(random_state=0).fit(X, Y)
    model = loaded(tmp_path, estimator, X)
    answer = model.answer(ROWS.to_numpy().tolist())
    assert np.array_equal(answer.values, estimator.predict(ROWS))
    assert answer.probabilities is None
    assert model.description.classes is not None
    assert model.description.classes.labels == (0, 1, 2)


def test_a_clustering_gives_values(tmp_path: Path) -> None:
    estimator = KMeans(3, n_init=1, random_state=0).fit(X.to_numpy())
    model = loaded(tmp_path, estimator, X.to_numpy())
    assert np.array_equal(model.answer(ROWS.to_numpy().tolist()).values, estimator.predict(ROWS.to_numpy()))
    assert model.description.classes is None


@pytest.mark.parametrize(
    ("labels", "plain"),
    [
        (np.array(CLASS_NAMES)[Y], ("setosa", "versicolor", "virginica")),
        (np.array(CLASS_NAMES, dtype=object)[Y], ("setosa", "versicolor", "virginica")),
        (np.where(Y == 0, -1, 1), (-1, 1)),
        (Y == 0, (False, True)),
        (Y * 10.0, (0, 10, 20)),
    ],
    ids=["text", "object", "negative", "boolean", "float"],
)
def test_labels_of_every_kind_come_as_they_are(tmp_path: Path, labels: np.ndarray, plain: tuple[Any, ...]) -> None:
    estimator = DecisionTreeClassifier(max_depth=2, random_state=0).fit(X, labels)
    model = loaded(tmp_path, estimator, X)
    answer = model.answer(ROWS.to_numpy().tolist())
    assert model.description.classes is not None
    assert model.description.classes.labels == plain
    assert answer.values.tolist() == estimator.predict(ROWS).tolist()
    assert set(answer.values.tolist()) <= set(plain)
    assert answer.probabilities is not None
    assert answer.probabilities.shape == (len(ROWS), len(plain))


# --- manners ---------------------------------------------------------------------------------------------------------


def test_a_model_uses_one_thread(tmp_path: Path) -> None:
    import pickle

    forest = RandomForestClassifier(2, random_state=0, n_jobs=-1).fit(X, Y)
    loaded(tmp_path, make_pipeline(StandardScaler().fit(X), forest))
    with (tmp_path / "bundle" / "model.pickle").open("rb") as file:
        assert pickle.load(file)[-1].n_jobs == 1


def test_a_fault_of_the_model_is_not_put_on_the_caller(tmp_path: Path) -> None:
    def fail(values: Any) -> Any:
        raise ValueError("a bug in the model's own code")

    pipeline = make_pipeline(FunctionTransformer(fail), LinearRegression())
    pipeline.steps[1][1].fit(X.to_numpy(), Y)
    model = loaded(tmp_path, pipeline, format="cloudpickle")
    with pytest.raises(ValueError, match="a bug in the model's own code"):
        model.answer([[1.0, 2.0, 3.0, 4.0]])
