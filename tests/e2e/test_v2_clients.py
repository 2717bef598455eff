"""Triton's own HTTP client against a service with two workers, for models of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import Running
from registries import empty_registry
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from serving.digest import folder_digest
from serving.registry import DIGEST_TAG

MODELS = ("flowers", "heights", "houses", "pairs", "graph")
ROUNDS = 12  # over two workers


class Shelf:
    """A registry with one model of each kind, and what scikit-learn or the graph itself answers."""

    def __init__(self, home: Path) -> None:
        from mlflow import MlflowClient

        self.home = home
        self.uri = empty_registry(home / "mlflow.db")
        self.client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        self.expected: dict[str, Callable[[Any], Any]] = {}

    def add(self, name: str, folder: Path, tags: dict[str, str] | None = None) -> str:
        if name not in {model.name for model in self.client.search_registered_models()}:
            self.client.create_registered_model(name)
        recorded = {DIGEST_TAG: folder_digest(folder), **(tags or {})}
        version = str(self.client.create_model_version(name, str(folder), tags=recorded).version)
        self.client.set_registered_model_alias(name, "champion", version)
        return version

    def add_estimator(self, name: str, estimator: Any, frame: Any, **options: Any) -> str:
        import mlflow

        folder = self.home / f"{name}-{len(list(self.home.iterdir()))}"
        signature = mlflow.models.infer_signature(frame, estimator.predict(frame))
        mlflow.sklearn.save_model(
            estimator,
            folder,
            signature=signature,
            input_example=frame.head(3),
            serialization_format="cloudpickle",
            pip_requirements=[],
            **options,
        )
        return self.add(name, folder)


def _graph(folder: Path) -> Path:
    """Two inputs, of which one is FP32 and one INT64, and two outputs: their sums, and which of them is positive."""
    import mlflow
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    shift = helper.make_tensor_value_info("shift", TensorProto.INT64, [None, 3])
    total = helper.make_tensor_value_info("total", TensorProto.FLOAT, [None, 3])
    negative = helper.make_tensor_value_info("negative", TensorProto.FLOAT, [None, 3])
    nodes = [
        helper.make_node("Cast", ["shift"], ["moved"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "moved"], ["total"]),
        helper.make_node("Neg", ["total"], ["negative"]),
    ]
    graph = helper.make_graph(nodes, "sums", [x, shift], [total, negative])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    example = {"x": np.ones((2, 3), np.float32), "shift": np.ones((2, 3), np.int64)}
    answered = {"total": np.ones((2, 3), np.float32), "negative": np.ones((2, 3), np.float32)}
    signature = mlflow.models.infer_signature(example, answered)
    mlflow.onnx.save_model(model, folder, signature=signature, pip_requirements=[])
    return folder


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.datasets import load_iris
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    X, y = load_iris(return_X_y=True, as_frame=True)
    flowers = RandomForestClassifier(10, random_state=0).fit(X, y)
    shelf.add_estimator("flowers", flowers, X, metadata={"class_names": ["setosa", "versicolor", "virginica"]})
    shelf.add_estimator(
        "heights", RandomForestRegressor(10, random_state=0).fit(X.iloc[:, 1:], X.iloc[:, 0]), X.iloc[:, 1:]
    )
    frame = pd.DataFrame({"town": ["Ulm", "Jena", "Ulm", "Köln"], "area": [50.0, 80.0, 110.0, 95.0]})
    columns = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["town"]), remainder="passthrough")
    shelf.add_estimator("houses", make_pipeline(columns, LinearRegression()).fit(frame, [1.0, 2.0, 3.0, 2.5]), frame)
    shelf.add_estimator("pairs", LinearRegression().fit(X.iloc[:, :2], X.iloc[:, 2:].to_numpy()), X.iloc[:, :2])
    shelf.add("graph", _graph(shelf.home / "graph"))
    return shelf


@pytest.fixture(scope="module")
def running(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = {"WEB_CONCURRENCY": "2", "MODELS": ",".join(MODELS), "POLL_INTERVAL_S": "600"}
    running = Running(tmp_path_factory.mktemp("v2") / "service", shelf.uri, settings)
    try:
        running.start(ready=False)
        _await_all(running)
        yield running
    finally:
        running.kill()


def _await_all(running: Running) -> None:
    from harness import wait_for

    def all_there() -> bool:
        lines = running.call("/models").json["models"]
        return all(line["ready"] and line["workers"] == {"acknowledged": 2, "total": 2} for line in lines)

    wait_for(all_there, 120, "not every worker has every model")


@pytest.fixture
def triton(running: Running) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(f"127.0.0.1:{running.port}") as client:
        yield client


def ask(triton: Any, model: str, arrays: dict[str, np.ndarray], *, as_block: bool = True, **options: Any) -> Any:
    """What the client reads off the answer, by its default or all in JSON."""
    inputs = []
    for name, array in arrays.items():
        given = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        given.set_data_from_numpy(array, binary_data=as_block)
        inputs.append(given)
    if not as_block and "outputs" not in options:
        names = [output["name"] for output in triton.get_model_metadata(model)["outputs"]]
        options["outputs"] = [InferRequestedOutput(name, binary_data=False) for name in names]
    return triton.infer(model, inputs, **options)


def columns(model: Any, rows: int) -> dict[str, np.ndarray]:
    """Rows for a model by its metadata alone."""
    made = {}
    random = np.random.default_rng(rows)
    for given in model["inputs"]:
        shape = [rows, *given["shape"][1:]]
        if given["datatype"] == "BYTES":
            made[given["name"]] = random.choice(np.array(["Ulm", "Jena", "Köln"], dtype=object), shape)
        elif given["datatype"] == "INT64":
            made[given["name"]] = random.integers(-5, 5, shape)
        else:
            dtype = {"FP64": np.float64, "FP32": np.float32}[given["datatype"]]
            made[given["name"]] = random.uniform(0.5, 90.0, shape).astype(dtype)
    return made


@pytest.mark.parametrize("rows", [1, 1000])
@pytest.mark.parametrize("model", MODELS)
def test_binary_and_json_answer_alike(triton: InferenceServerClient, model: str, rows: int) -> None:
    metadata = triton.get_model_metadata(model)
    arrays = columns(metadata, rows)
    told = {output["name"]: output for output in metadata["outputs"]}
    binary, plain = (ask(triton, model, arrays, as_block=as_block, request_id="7") for as_block in (True, False))
    for got in (binary, plain):
        response = got.get_response()
        assert (response["model_name"], response["model_version"], response["id"]) == (model, "1", "7")
        assert response["parameters"]["prediction_id"]
        assert [output["name"] for output in response["outputs"]] == list(told or ["total", "negative"])
    for output in binary.get_response()["outputs"]:
        name = output["name"]
        assert binary.as_numpy(name).shape[0] == rows
        np.testing.assert_array_equal(binary.as_numpy(name), plain.as_numpy(name))
        if told:
            assert (output["datatype"], output["shape"][1:]) == (told[name]["datatype"], told[name]["shape"][1:])


def test_the_graph_answers_what_it_computes(triton: InferenceServerClient) -> None:
    x, shift = np.array([[0.1, 2.5, -3.0]], np.float32), np.array([[1, 2, 3]])
    got = ask(triton, "graph", {"shift": shift, "x": x})
    np.testing.assert_array_equal(got.as_numpy("total"), x + shift.astype(np.float32))
    only = ask(triton, "graph", {"x": x, "shift": shift}, outputs=[InferRequestedOutput("negative")])
    assert [output["name"] for output in only.get_response()["outputs"]] == ["negative"]
    with pytest.raises(InferenceServerException, match="'x'"):
        ask(triton, "graph", {"x": np.array([[0.1, 2.5, -3.0]]), "shift": shift})  # 0.1 is no FP32


def test_classes_by_their_names(triton: InferenceServerClient) -> None:
    outputs = [InferRequestedOutput("probabilities", class_count=2), InferRequestedOutput("label")]
    got = ask(triton, "flowers", {"all": np.array([[5.1, 3.5, 1.4, 0.2]])}, outputs=outputs)
    score, position, name = got.as_numpy("probabilities")[0][0].decode().split(":")
    assert (float(score) > 0.5, position, name) == (True, "0", "setosa")
    assert got.as_numpy("label").tolist() == [0]


def test_many_at_once(triton: InferenceServerClient, running: Running) -> None:
    given = InferInput("x", [1, 4], "FP64")
    given.set_data_from_numpy(np.array([[5.1, 3.5, 1.4, 0.2]]))
    with InferenceServerClient(f"127.0.0.1:{running.port}", concurrency=8) as many:
        waiting = [many.async_infer("flowers", [given], request_id=str(number)) for number in range(40)]
        assert [one.get_result().get_response()["id"] for one in waiting] == [str(number) for number in range(40)]


def test_what_the_server_says(triton: InferenceServerClient) -> None:
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert {"binary_tensor_data", "classification", "model_repository"} <= set(
        triton.get_server_metadata()["extensions"]
    )
    assert triton.is_model_ready("graph", "1")
    assert not triton.is_model_ready("graph", "2")
    assert triton.get_model_metadata("graph")["platform"] == "onnx_onnxruntime"
    assert {line["name"]: line["state"] for line in triton.get_model_repository_index()} == dict.fromkeys(
        MODELS, "READY"
    )
    with pytest.raises(InferenceServerException, match="no model 'tulips'") as caught:
        triton.get_model_metadata("tulips")
    assert caught.value.status() == "404"
    with pytest.raises(InferenceServerException, match="encoded"):
        ask(triton, "pairs", columns(triton.get_model_metadata("pairs"), 1), request_compression_algorithm="gzip")


def test_unloaded_in_every_worker_and_loaded_again(triton: InferenceServerClient, running: Running) -> None:
    arrays = columns(triton.get_model_metadata("pairs"), 1)

    def states() -> set[bool]:
        found = set()
        for _ in range(ROUNDS):
            with InferenceServerClient(f"127.0.0.1:{running.port}") as fresh:
                found.add(fresh.is_model_ready("pairs"))
        return found

    triton.unload_model("pairs")
    assert states() == {False}
    with pytest.raises(InferenceServerException, match="unloaded") as caught:
        ask(triton, "pairs", arrays)
    assert caught.value.status() == "503"
    assert triton.is_server_ready()
    assert running.call("/models/pairs/predict", {"features": [1.0, 2.0]}).json["error"]["code"] == "model_not_ready"
    [line] = [line for line in triton.get_model_repository_index() if line["name"] == "pairs"]
    assert (line["state"], line["reason"]) == ("UNAVAILABLE", "unloaded")
    triton.load_model("pairs")
    assert states() == {True}
    assert ask(triton, "pairs", arrays).as_numpy(triton.get_model_metadata("pairs")["outputs"][0]["name"]).shape == (
        1,
        2,
    )


def test_load_is_a_reload_and_a_refused_version_says_why(
    triton: InferenceServerClient, running: Running, shelf: Shelf, tmp_path: Path
) -> None:
    import shutil

    good = next(path for path in shelf.home.iterdir() if path.name.startswith("heights-"))
    version = shelf.add("heights", Path(shutil.copytree(good, tmp_path / "again")))
    triton.load_model("heights")
    for _ in range(ROUNDS):
        with InferenceServerClient(f"127.0.0.1:{running.port}") as fresh:
            assert fresh.get_model_metadata("heights")["versions"] == [version]
    refused = shelf.add("heights", Path(shutil.copytree(good, tmp_path / "bad")), {DIGEST_TAG: "sha256:" + "0" * 64})
    with pytest.raises(InferenceServerException, match=f"version {refused} refused") as caught:
        triton.load_model("heights")
    assert caught.value.status() == "409"
    lines = [line for line in triton.get_model_repository_index() if line["name"] == "heights"]
    assert [(line["version"], line["state"]) for line in lines] == [(version, "READY"), (refused, "UNAVAILABLE")]
    assert "digest" in lines[1]["reason"]
    assert triton.is_model_ready("heights", version)
