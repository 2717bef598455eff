"""MLflow's scoring protocol: what the wire cases do not show - probes, forms of answers, params, what is not echoed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from flask.testing import FlaskClient
from mlflow.models import ModelSignature, infer_signature
from mlflow.pyfunc import PythonModel
from mlflow.pyfunc.scoring_server import predictions_to_json
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Property
from mlflow.types.schema import Object as ObjectType
from samples import Loaded, save_pyfunc

from serving.errors import InvalidInput, ModelFailed
from serving.protocols.scoring import Scoring, Wording
from serving.tensors import Batch, Field, Own, Prediction, Signature
from serving.transforms.tabular import Reader

ROW = [5.1, 3.5, 1.4, 0.2]


# --- probes ----------------------------------------------------------------------------------------------------------


def test_ping_and_version_are_mlflows(client: FlaskClient) -> None:
    ping, told = client.get("/ping"), client.get("/version")
    assert (ping.status_code, ping.data, ping.content_type) == (200, b"\n", "application/json")
    assert (told.status_code, told.text, told.content_type) == (200, version("mlflow"), "application/json")


def test_the_prediction_can_be_found_again(client: FlaskClient) -> None:
    ids = {client.post("/invocations", json={"inputs": [ROW]}).headers["X-Prediction-Id"] for _ in range(3)}
    assert len(ids) == 3


def test_no_value_is_sent_back(client: FlaskClient) -> None:
    for rows in ([["s3cret-57", 1, 1, 1]], [[5.1, 1e308 * 10, 57575757, {"s3cret": 1}]]):
        answer = client.post("/invocations", json={"instances": rows})
        assert answer.status_code == 400
        assert "s3cret" not in answer.text
        assert "57575757" not in answer.text


def test_names_in_a_warning_are_cut_and_cannot_end_the_line(client: FlaskClient) -> None:
    given = {
        "inputs": [ROW],
        "params": {"a\r\nSet-Cookie: x": 1, 'ü"\\': 2, "y" * 900: 3, **dict.fromkeys("bcdefghijk", 0)},
    }
    answer = client.post("/invocations", json=given)
    warning = answer.headers["Warning"]
    assert answer.status_code == 200
    assert warning.startswith('299 - "')
    assert warning.isascii()
    assert "\n" not in warning
    assert "y" * 81 not in warning
    assert warning.endswith(' and 3 more"')
    assert "Set-Cookie" not in answer.headers


# --- answers ---------------------------------------------------------------------------------------------------------


def wording(
    runtime: str = "pyfunc", *, layout: str = "columns", origin: str = "model", method: str | None = None
) -> Wording:
    bundle = SimpleNamespace(
        runtime=runtime, pyfunc={"predict_fn": method, "params": []}, signature=Signature(layout, (), origin)
    )
    return Wording(SimpleNamespace(bundle=bundle))  # type: ignore[arg-type]


def model_of(answer: Callable[[Any], Any]) -> PythonModel:
    class Answering(PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return answer(model_input)

    return Answering()


FRAME = pd.DataFrame({"a": [1.0, 2.0, 3.0]})
TIMES = pd.to_datetime(["2020-01-02", "2020-01-02T03:04:05.25", "2020-01-02T03:04:05.123456789"], format="ISO8601")
ANSWERS: dict[str, Callable[[Any], Any]] = {
    "array": lambda frame: frame["a"].to_numpy(),
    "array of rows": lambda frame: frame.to_numpy().repeat(2, axis=1),
    "32-bit floats": lambda frame: (frame["a"] / 3).to_numpy().astype(np.float32),
    "truths": lambda frame: (frame["a"] > 1).to_numpy(),
    "texts": lambda _: np.array(["a", "b", "ü"]),
    "bytes": lambda _: [b"a" * 100, b"", b"\xff"],
    "times in a list": lambda _: [dt.datetime(2020, 1, 2), dt.date(2020, 1, 2), dt.time(3, 4)],
    "times in an array": lambda _: TIMES.to_numpy(),
    "times in a frame": lambda _: pd.DataFrame({"t": TIMES}),
    "list of objects": lambda _: [{"x": np.float64(1.5), 1: None}] * 3,
    "list of arrays": lambda _: [np.array([1, 2])] * 3,
    "tuple": lambda _: (1, 2, 3),
    "Series": lambda frame: frame["a"],
    "Series without a name": lambda _: pd.Series([1, 2, 3]),
    "frame": lambda _: pd.DataFrame({"x": [1, 2, 3], "y": ["a", "b", "c"], "z": [[1], [], [2]]}),
    "frame of one column": lambda frame: frame,
    "frame of numbered columns": lambda _: pd.DataFrame([[1, 2]] * 3),
    "dict": lambda frame: {"x": frame["a"].to_numpy(), "y": [1, 2, 3]},
    "dict of one": lambda _: {"x": [1, 2, 3]},
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_written_as_mlflow_writes_it(name: str, tmp_path: Path) -> None:
    from io import StringIO

    answer = ANSWERS[name]
    folder = save_pyfunc(tmp_path / "model", model_of(answer), signature=infer_signature(FRAME))
    got = Loaded("pyfunc", folder, tmp_path / "bundle").answer([{"a": value} for value in FRAME["a"]])
    expected = StringIO()
    predictions_to_json(answer(FRAME), expected)
    assert {"predictions": orjson.loads(wording().written(got, framed=True))} == orjson.loads(expected.getvalue())


@pytest.mark.parametrize("answer", ["fine", 5, {"text": "fine", "score": 0.5}, None], ids=str)
def test_a_single_row_may_be_answered_by_no_list(answer: Any, tmp_path: Path) -> None:
    folder = save_pyfunc(tmp_path / "model", model_of(lambda _: answer), signature=infer_signature(FRAME))
    got = Loaded("pyfunc", folder, tmp_path / "bundle").answer([{"a": 1.0}])
    assert orjson.loads(wording().written(got, framed=True)) == answer


def test_what_json_has_no_form_for() -> None:
    values = np.empty(5, dtype=object)
    values[:] = [float("nan"), pd.NaT, pd.NA, Decimal("1.25"), pd.Timestamp("2020-01-02")]
    assert wording().written(Prediction(values), framed=True) == b'[null,null,null,1.25,"2020-01-02T00:00:00"]'


def test_an_answer_that_cannot_be_written_is_the_models_failure() -> None:
    values = np.empty(1, dtype=object)
    values[0] = object()
    with pytest.raises(ModelFailed):
        wording().written(Prediction(values), framed=True)


CHANCES = Prediction(np.array(["a", "b"]), np.array([[0.75, 0.25], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (None, ["a", "b"]),
        ("predict", ["a", "b"]),
        ("predict_proba", [[0.75, 0.25], [0.0, 1.0]]),
        ("predict_log_proba", [[np.log(0.75), np.log(0.25)], [None, 0.0]]),
    ],
)
def test_the_method_that_mlflow_would_call(method: str | None, expected: Any) -> None:
    assert orjson.loads(wording("compiled", method=method).written(CHANCES, framed=True)) == expected


@pytest.mark.parametrize("method", ["score", "predict_joint_log_proba"])
def test_a_method_that_is_not_served(method: str) -> None:
    with pytest.raises(ModelFailed, match=method):
        wording("sklearn", method=method).written(CHANCES, framed=True)


GRAPH = {"label": np.array([0, 1]), "score": np.array([[0.5], [1.5]], dtype=np.float32)}
WIDE = {"label": np.array([0, 1]), "chances": np.array([[0.5, 0.5], [0.25, 0.75]])}


@pytest.mark.parametrize(
    ("outputs", "how", "framed", "expected"),
    [
        (GRAPH, {}, False, [{"label": 0, "score": 0.5}, {"label": 1, "score": 1.5}]),
        (GRAPH, {"layout": "tensors"}, True, {"label": [0, 1], "score": [[0.5], [1.5]]}),
        (
            GRAPH,
            {"layout": "tensors", "origin": "inferred"},
            True,
            [{"label": 0, "score": 0.5}, {"label": 1, "score": 1.5}],
        ),
        (GRAPH, {"layout": "tensors", "origin": "inferred"}, False, {"label": [0, 1], "score": [[0.5], [1.5]]}),
        (WIDE, {}, True, [{"label": 0, "chances": [0.5, 0.5]}, {"label": 1, "chances": [0.25, 0.75]}]),
    ],
)
def test_a_graph_answers_a_frame_with_records(outputs: Any, how: dict[str, str], framed: bool, expected: Any) -> None:
    prediction = Prediction(outputs["label"], own=Own("graph", outputs))
    assert orjson.loads(wording("onnx", **how).written(prediction, framed=framed)) == expected


# --- params, and bodies of language models ---------------------------------------------------------------------------


def test_params_go_to_the_model_and_keep_its_call_apart(tmp_path: Path) -> None:
    class Scaling(PythonModel):
        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return model_input["a"].to_numpy() * params["factor"]

    params = ParamSchema([ParamSpec("factor", DataType.double, 10.0)])
    signature = ModelSignature(infer_signature(FRAME).inputs, None, params)
    model = Loaded("pyfunc", save_pyfunc(tmp_path / "model", Scaling(), signature=signature), tmp_path / "bundle")
    batch, _ = Reader(model.description.signature)([{"a": 2.0}])
    assert model.predict(batch).values.tolist() == [20.0]
    batch.params = {"factor": 0.5}
    assert model.predict(batch).values.tolist() == [1.0]


def test_batches_with_params_are_of_a_kind_of_their_own() -> None:
    from serving.batching import kind

    plain, other, asking, asking_too = (Batch(("a",), block=np.ones((1, 1))) for _ in range(4))
    asking.params = asking_too.params = {"factor": 1.0}
    assert kind(plain) == kind(other)
    assert len({kind(plain), kind(asking), kind(asking_too)}) == 3


class Chat:
    """A version whose only column are messages, and what it was asked."""

    def __init__(self, runtime: str = "pyfunc") -> None:
        self.asked: list[tuple[list[Any], Any]] = []
        fields = (Field("messages", "any"), Field("user", "string", False))
        params = [{"name": "temperature", "type": "double", "default": 0.0, "shape": None}]
        pyfunc = {"predict_fn": None, "params": params}
        signature = Signature("columns", fields)
        self.bundle = SimpleNamespace(runtime=runtime, pyfunc=pyfunc, signature=signature)
        self.reader = Reader(signature)

    def predict(self, _: Any, read: Callable[[Reader], Batch], __: str) -> Any:
        batch = read(self.reader)
        self.asked.append(([column.tolist() for column in batch.columns], batch.params))
        own = Own("one", {"": np.array([{"choices": ["hi"]}])})
        return SimpleNamespace(prediction=Prediction(own.columns[""], own=own), prediction_id="1")


def test_a_language_models_body_is_one_row_and_its_answer_is_not_wrapped() -> None:
    chat = Chat()
    body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 1}
    call = SimpleNamespace(data=orjson.dumps(body), request_id="r", header=lambda _: None)
    reply = Scoring(chat).answer(chat, call)  # type: ignore[arg-type]
    assert reply.body == b'{"choices":["hi"]}'
    assert chat.asked == [([[body["messages"]], [None]], {"temperature": 1.0})]


def test_arrays_and_objects_that_do_not_fit_are_the_callers_error(tmp_path: Path) -> None:
    inner = ObjectType([Property("x", DataType.long)])
    signature = ModelSignature(Schema([ColSpec(Array(DataType.double), "list"), ColSpec(inner, "object")]))
    model = save_pyfunc(
        tmp_path / "model", model_of(lambda frame: frame["list"].map(len).to_numpy()), signature=signature
    )
    loaded = Loaded("pyfunc", model, tmp_path / "bundle")
    good = {"list": [1.0, 2.0], "object": {"x": 1}}
    assert loaded.answer([good, good]).values.tolist() == [2, 2]
    for wrong, column in (({"list": "x"}, "list"), ({"list": ["x"]}, "list"), ({"object": {"y": 1}}, "object")):
        with pytest.raises(InvalidInput) as caught:
            loaded.answer([good, {**good, **wrong}])
        assert (caught.value.row, caught.value.column) == (1, column)
