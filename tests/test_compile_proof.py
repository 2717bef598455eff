"""The proof catches every planted fault: one number or one name of a compiled model changed, and it is refused."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import numpy_helper
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits

from serving import kernels
from serving.bundle import Compilation
from serving.compile import NotCompiled, build_model, proof
from serving.kernels.masks import Masks
from serving.runtimes import compiled
from serving.runtimes import sklearn as native
from serving.tensors import Batch, Field, Signature

IRIS, SPECIES = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[SPECIES]
ON_ARRAYS = Signature("tensors", (Field("x", "float64", True, (4,)),))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), threadpool_limits(1):  # its boosting would wait for busy cores
        warnings.simplefilter("ignore")
        yield


class Model:
    """A model compiled into a folder, whose files a test may damage before they are proven."""

    def __init__(self, estimator: Any, signature: Signature, known: Batch, folder: Path) -> None:
        self.signature, self.known, self.folder = signature, known, folder / compiled.FOLDER
        self.folder.mkdir()
        (folder / native.FILE_NAME).write_bytes(pickle.dumps(estimator))
        self.native = native.load(folder)
        kernels.save(build_model(estimator, signature), self.folder)

    def proven(self) -> Compilation:
        root = kernels.load(self.folder)
        routed = compiled.predictor(kernels.without(root, Masks))
        return proof.compare(
            self.native, compiled.predictor(root), root, self.signature, [self.known], others=(routed,)
        )

    @property
    def plain(self) -> Any:
        return json.loads((self.folder / "kernels.json").read_text())

    def rewrite(self, old: str, new: str) -> None:
        """Change one thing in the kernels' plain values."""
        text = (self.folder / "kernels.json").read_text()
        assert old in text
        (self.folder / "kernels.json").write_text(text.replace(old, new, 1))

    def change(self, array: dict[str, Any], change: Callable[[np.ndarray], np.ndarray]) -> None:
        """Replace one array of the kernels by what ``change`` makes of it."""
        content = bytearray((self.folder / "arrays.bin").read_bytes())
        count = int(np.prod(array["shape"]))
        before = np.frombuffer(content, array["array"], count, array["at"]).reshape(array["shape"])
        after = change(before.copy()).astype(before.dtype).tobytes()
        assert len(after) == before.nbytes
        content[array["at"] : array["at"] + len(after)] = after
        (self.folder / "arrays.bin").write_bytes(content)

    def array(self, kind: str, field: str) -> dict[str, Any]:
        """Where the array (the first, if several) lies that a kernel of this ``kind`` has as its ``field``."""
        return named(self.plain, kind, field)[0]


def named(plain: Any, kind: str, field: str) -> list[dict[str, Any]]:
    if isinstance(plain, list):
        return [name for item in plain for name in named(item, kind, field)]
    if not isinstance(plain, dict) or "kernel" not in plain:
        return []
    found = []
    if plain["kernel"] == kind:
        value = plain["fields"][field]
        found = value if isinstance(value, list) else [value]
    return found + [name for value in plain["fields"].values() for name in named(value, kind, field)]


def in_graph(tensor: str, damage: Callable[[np.ndarray], None]) -> Callable[[np.ndarray], np.ndarray]:
    """Change a tensor of a ``TreeEnsemble`` in the graph's bytes."""

    def change(content: np.ndarray) -> np.ndarray:
        model = onnx.load_from_string(content.tobytes())
        attribute = next(found for found in model.graph.node[0].attribute if found.name == tensor)
        values = numpy_helper.to_array(attribute.t).copy()
        damage(values)
        attribute.t.CopyFrom(numpy_helper.from_array(values, tensor))
        return np.frombuffer(model.SerializeToString(), np.uint8)

    return change


def at(position: Any, change: Callable[[Any], Any]) -> Callable[[np.ndarray], Any]:
    """Change one value of an array."""

    def damage(values: np.ndarray) -> np.ndarray:
        values = values if values.flags.writeable else values.copy()
        values[position] = change(values[position])
        return values

    return damage


def one_of(values: np.ndarray) -> np.ndarray:
    """Zeros of the same shape, but the first is one."""
    first = np.zeros_like(values)
    first.flat[0] = 1.0
    return first


@pytest.fixture
def forest(tmp_path: Path) -> Model:
    estimator = make_pipeline(StandardScaler(), RandomForestClassifier(8, max_depth=4, random_state=0)).fit(IRIS, NAMES)
    return Model(estimator, ON_ARRAYS, Batch(("x",), block=IRIS[::5].copy()), tmp_path)


@pytest.fixture
def linear(tmp_path: Path) -> Model:
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(IRIS, NAMES)
    return Model(estimator, ON_ARRAYS, Batch(("x",), block=IRIS[::5].copy()), tmp_path)


@pytest.fixture
def encoded(tmp_path: Path) -> Model:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"size": random.normal(size=200), "city": random.choice(["Bern", "Genf", "Chur"], 200)})
    encode = ColumnTransformer([("a", StandardScaler(), ["size"]), ("b", OneHotEncoder(), ["city"])])
    estimator = make_pipeline(encode, LinearRegression()).fit(frame, frame["size"] + (frame.city == "Bern"))
    signature = Signature("columns", (Field("size", "double"), Field("city", "string")))
    known = Batch(("size", "city"), (frame["size"].to_numpy()[:20], frame.city.to_numpy(dtype=object)[:20]))
    return Model(estimator, signature, known, tmp_path)


@pytest.mark.parametrize("model", ["forest", "linear", "encoded"])
def test_an_undamaged_model_is_exact_over_ten_thousand_rows(model: str, request: pytest.FixtureRequest) -> None:
    verdict = request.getfixturevalue(model).proven()
    assert verdict.largest_difference == 0.0
    assert verdict.rows >= 10_000
    assert set(verdict.native_s) == set(verdict.compiled_s) == {"1", "1000"}


def test_a_damaged_leaf_is_refused(forest: Model) -> None:
    forest.change(forest.array("Trees", "graph"), in_graph("leaf_weights", at(0, lambda weight: weight - 1e-6)))
    with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
        forest.proven()


def test_a_damaged_leaf_that_few_rows_reach_is_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(2000, 6))
    estimator = RandomForestRegressor(5, random_state=0).fit(rows, random.normal(size=2000))
    signature = Signature("tensors", (Field("x", "float64", False, (6,)),))
    for place in (7, 3001, -1):
        folder = tmp_path / str(place)
        folder.mkdir()
        model = Model(estimator, signature, Batch(("x",), block=rows[:50].copy()), folder)
        model.change(model.array("Trees", "graph"), in_graph("leaf_weights", at(place, lambda weight: weight + 1e-6)))
        with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
            model.proven()


def test_labels_alone_are_not_called_exact(tmp_path: Path) -> None:
    estimator = SVC().fit(IRIS, SPECIES)
    signature = Signature("tensors", (Field("x", "float64", False, (4,)),))
    verdict = Model(estimator, signature, Batch(("x",), block=IRIS[::5].copy()), tmp_path).proven()
    assert (verdict.largest_difference, verdict.exact) == (0.0, False)


def test_a_damaged_leaf_of_the_masks_is_refused(forest: Model) -> None:
    forest.change(forest.array("Masks", "weights"), at(0, lambda weight: weight + 1e-6))
    with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
        forest.proven()


@pytest.mark.parametrize("way", [np.inf, -np.inf], ids=["up", "down"])
def test_a_threshold_one_float32_step_off_is_refused(forest: Model, way: float) -> None:
    def beside(threshold: float) -> np.float32:
        narrow = np.float32(threshold)
        last = narrow if narrow <= threshold else np.nextafter(narrow, np.float32(-np.inf))  # the last to go left
        return np.nextafter(last, np.float32(way))

    forest.change(forest.array("Trees", "graph"), in_graph("nodes_splits", at(0, beside)))
    with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
        forest.proven()


def test_a_threshold_of_doubles_one_step_off_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "CUTS", ((1, 10),))  # rows one by one take this estimator long
    estimator = HistGradientBoostingClassifier(max_iter=3).fit(IRIS, SPECIES)
    signature = Signature("tensors", (Field("x", "float64", False, (4,)),))
    model = Model(estimator, signature, Batch(("x",), block=IRIS[::5].copy()), tmp_path)
    damage = in_graph("nodes_splits", at(1, lambda threshold: np.nextafter(threshold, np.inf)))
    model.change(model.array("Trees", "graph"), damage)
    with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
        model.proven()


@pytest.mark.parametrize("model", ["forest", "linear"])
def test_a_damaged_class_label_is_refused(model: str, request: pytest.FixtureRequest) -> None:
    damaged: Model = request.getfixturevalue(model)
    damaged.rewrite("versicolor", "versicolour")
    with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
        damaged.proven()


def test_a_damaged_category_is_refused(encoded: Model) -> None:
    encoded.rewrite("Genf", "Genève")
    with pytest.raises(NotCompiled):
        encoded.proven()


@pytest.mark.parametrize("model", ["forest", "linear", "encoded"])
def test_a_damaged_scaler_is_refused(model: str, request: pytest.FixtureRequest) -> None:
    damaged: Model = request.getfixturevalue(model)
    damaged.change(damaged.array("Arithmetic", "operands"), at(0, lambda mean: mean + 1e-6))
    with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
        damaged.proven()


@pytest.mark.parametrize("model", ["linear", "encoded"])
def test_a_damaged_coefficient_is_refused(model: str, request: pytest.FixtureRequest) -> None:
    damaged: Model = request.getfixturevalue(model)
    damaged.change(damaged.array("Linear", "weights"), lambda weights: weights + 1e-6 * one_of(weights))
    with pytest.raises(NotCompiled, match="compiled it answers otherwise"):
        damaged.proven()


def test_what_answers_where_scikit_learn_refuses_is_refused(forest: Model) -> None:
    forest.rewrite('"takes": "missing"', '"takes": "all"')
    forest.rewrite('"clip": null', '"clip": [-1e30, 1e30]')  # the numbers stay, and none is infinite any more
    with pytest.raises(NotCompiled, match="what scikit-learn refuses"):
        forest.proven()


def test_a_model_that_is_slower_compiled_is_refused(linear: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "ROWS", 1000)
    fast, root = linear.native, kernels.load(linear.folder)

    def slow(batch: Batch) -> Any:
        for _ in range(3):
            fast(batch)
        return fast(batch)

    with pytest.raises(NotCompiled, match="compiled it answers a row in"):
        proof.compare(fast, slow, root, linear.signature, [linear.known])
