"""The Open Inference Protocol: what a version answers as tensors, and models that are let go and taken back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from served import running, settings_of

from serving import notes
from serving.errors import InvalidInput
from serving.protocols.v2 import binary, request
from serving.protocols.v2.answer import Form, best, texts
from serving.protocols.v2.datatypes import of_dtype, of_field
from serving.protocols.v2.metadata import model
from serving.service import Answer
from serving.state import ModelState
from serving.tensors import Classes, Field, Prediction, Signature

ROWS = np.random.default_rng(0).uniform(0.1, 7.0, (50, 4))
INFER = "/v2/models/iris/infer"


def tensor(name: str, datatype: str, array: np.ndarray, *, as_block: bool) -> tuple[dict[str, Any], bytes]:
    head = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    if as_block:
        return {**head, "parameters": {"binary_data_size": array.nbytes}}, array.tobytes()
    return {**head, "data": array.ravel().tolist()}, b""


def sent(inputs: list[tuple[dict[str, Any], bytes]], *, out_in_binary: bool) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": [one for one, _ in inputs], "parameters": {"binary_data_output": out_in_binary}})
    return head.encode() + b"".join(block for _, block in inputs), {binary.HEADER: str(len(head))}


def received(got: Any) -> dict[str, np.ndarray]:
    """The outputs of an answer, by name."""
    end = int(got.headers.get(binary.HEADER) or len(got.data))
    found, blocks = {}, memoryview(got.data)[end:]
    for output in json.loads(got.data[:end])["outputs"]:
        dtype = {"FP64": np.float64, "INT64": np.int64}[output["datatype"]]
        if "data" in output:
            found[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
        else:
            size = output["parameters"]["binary_data_size"]
            found[output["name"]] = np.frombuffer(blocks[:size], dtype).reshape(output["shape"])
            blocks = blocks[size:]
    return found


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("one", [True, False], ids=["one tensor", "a tensor a column"])
def test_json_and_binary_answer_with_the_same_bits(client: FlaskClient, app: Flask, dtype: Any, one: bool) -> None:
    datatype, rows = of_dtype(np.dtype(dtype)), ROWS[:12].astype(dtype)
    names = app.extensions["service"].store.live("iris").bundle.signature.names
    columns = [("x", rows)] if one else [(name, rows[:, k].copy()) for k, name in enumerate(names)]
    answers = []
    for as_block in (False, True):
        for out in (False, True):
            body, headers = sent(
                [tensor(name, datatype, a, as_block=as_block) for name, a in columns], out_in_binary=out
            )
            got = client.post(INFER, data=body, headers=headers)
            assert got.status_code == 200, got.data
            answers.append(received(got))
    for answer in answers[1:]:
        for name, array in answers[0].items():
            assert array.tobytes() == answer[name].tobytes()
    plain = client.post("/predict", json={"instances": rows.astype(np.float64).tolist()}).get_json()["predictions"]
    assert answers[0]["probabilities"].tolist() == [list(row["probabilities"].values()) for row in plain]


def test_what_the_answer_is_called_takes_a_label(client: FlaskClient) -> None:
    body, headers = sent([tensor("x", "FP64", ROWS[:1], as_block=True)], out_in_binary=False)
    called = client.post(INFER, data=body, headers=headers).get_json()["parameters"]["prediction_id"]
    assert client.post("/feedback", json={"prediction_id": called, "label": 0}).status_code in (200, 202)


# --- answers of other models -----------------------------------------------------------------------------------------


def form(outputs: tuple[Field, ...] = (), classes: Classes | None = None) -> Form:
    bundle = SimpleNamespace(
        name="m", version="3", signature=Signature("unknown", (), "none"), outputs=outputs, classes=classes
    )
    live: Any = SimpleNamespace(bundle=bundle)
    return Form(live)


def reply(prediction: Prediction, **asked: Any) -> dict[str, Any]:
    body = {"inputs": [{}], **asked}
    text = form().reply(Answer(prediction, len(prediction.values), "p"), request.read(json.dumps(body).encode(), None))
    content: dict[str, Any] = json.loads(text.body)
    return content


def objects(*values: Any) -> np.ndarray:
    made = np.empty(len(values), dtype=object)
    for row, value in enumerate(values):
        made[row] = value
    return made


@pytest.mark.parametrize(
    ("values", "datatype", "data"),
    [
        (np.array([1.5, np.nan], np.float32), "FP32", [1.5, None]),
        (np.array([[1, 2]], np.uint16), "UINT16", [1, 2]),
        (np.array([0.5], np.float16), "FP16", [0.5]),
        (np.array([True]), "BOOL", [True]),
        (np.array(["a", "ü"]), "BYTES", ["a", "ü"]),
        (objects("a", "b"), "BYTES", ["a", "b"]),
        (objects(1, 2), "INT64", [1, 2]),
        (objects([1], {"a": None}), "BYTES", ["[1]", '{"a":null}']),
        (np.array(["2026-01-02T03:04:05.5"], "datetime64[ns]"), "BYTES", ["2026-01-02T03:04:05.500000000"]),
        (objects(b"\xff"), "BYTES", ["/w=="]),
    ],
)
def test_outputs_of_every_type(values: np.ndarray, datatype: str, data: Any) -> None:
    [output] = reply(Prediction(values))["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("output", datatype, list(values.shape))
    assert output["data"] == data


def test_several_outputs_are_called_as_the_model_calls_them() -> None:
    arrays = {"mean": np.array([1.0]), "spread": np.array([[0.1, 0.2]])}
    prediction = Prediction(arrays["mean"], named=arrays)
    assert [output["name"] for output in reply(prediction)["outputs"]] == ["mean", "spread"]
    assert [output["name"] for output in reply(prediction, outputs=[{"name": "spread"}])["outputs"]] == ["spread"]
    with pytest.raises(InvalidInput, match="is not an output"):
        reply(prediction, outputs=[{"name": "median"}])


def test_texts_in_binary_have_their_lengths() -> None:
    block = binary.block_of_texts(texts(objects("ü", b"\x00", "")))
    assert block == b"\x02\0\0\0\xc3\xbc\x01\0\0\0\0\0\0\0\0"
    assert binary.texts("x", 3, memoryview(block)).tolist() == ["ü".encode(), b"\0", b""]


def test_the_best_classes_come_first_and_the_first_of_equals() -> None:
    scores = np.array([[0.2, 0.4, 0.4], [np.nan, 0.25, 0.75]])
    assert best(scores, 2, ["a", "b", "c:d"]).tolist() == [["0.4:1:b", "0.4:2:c:d"], ["0.75:2:c:d", "0.25:1:b"]]
    assert best(scores[:1].astype(np.float32), 5, ["too few"]).tolist() == [["0.4:1", "0.4:2", "0.2:0"]]


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "datatype"),
    [
        *(("double", "FP64"), ("float", "FP32"), ("long", "INT64"), ("integer", "INT32"), ("boolean", "BOOL")),
        *((text, "BYTES") for text in ("string", "binary", "datetime", "any", "str", "datetime64[ns]")),
        *(("float16", "FP16"), ("uint8", "UINT8"), ("int64", "INT64"), ("bool", "BOOL")),
    ],
)
def test_types_by_their_names_here(kind: str, datatype: str) -> None:
    assert of_field(Field("x", kind)) == datatype


def test_models_that_say_little_are_described_all_the_same() -> None:
    def inputs(signature: Signature) -> Any:
        bundle: Any = SimpleNamespace(name="m", version="1", runtime="pyfunc", signature=signature, outputs=())
        return model(bundle)["inputs"]

    assert inputs(Signature("unknown", (), "none")) == [{"name": "input", "datatype": "FP64", "shape": [-1, -1]}]
    names_only = Signature("columns", (Field("a", "any"),), "inferred")
    assert inputs(names_only) == [{"name": "a", "datatype": "FP64", "shape": [-1]}]
    tensors = Signature("tensors", (Field("ids", "int64", True, (-1, 2)),))
    assert inputs(tensors) == [{"name": "ids", "datatype": "INT64", "shape": [-1, -1, 2]}]


def test_integers_of_any_length_in_a_shape_are_refused() -> None:
    for length in ("9" * 4000, "-" + "9" * 4000, "9" * 30):
        body = b'{"inputs":[{"name":"x","datatype":"FP64","shape":[%s,NaN],"data":[1]}]}' % length.encode()
        asked = request.read(body, None)
        asked.inputs[0]["shape"].pop()
        with pytest.raises(InvalidInput, match="no length"):
            request.arrays(asked)


# --- load and unload -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(prepared: Path, tmp_path: Path) -> Iterator[Flask]:
    """A service whose models may be let go."""
    shutil.copytree(prepared / "state", tmp_path / "state")
    with running(settings_of(tmp_path, model_dir=prepared / "models", models=("iris",))) as app:
        yield app


def test_an_unloaded_model_answers_nothing_until_it_is_loaded(own: Flask) -> None:
    client, body = own.test_client(), {"inputs": [tensor("x", "FP64", ROWS[:1], as_block=False)[0]]}
    for _ in range(2):  # the second time there is nothing left to do
        assert client.post("/v2/repository/models/iris/unload", json={"parameters": {}}).status_code == 200
    answers = [client.post(INFER, json=body), client.post("/predict", json={"features": [1, 2, 3, 4]})]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert answers[1].get_json()["error"]["code"] == "model_not_ready"
    assert client.get("/v2/models/iris/ready").get_json()["ready"] is False
    [line] = client.post("/v2/repository/index").get_json()
    assert line == {"name": "iris", "state": "UNAVAILABLE", "reason": "unloaded"}
    assert client.get("/v2/health/ready").status_code == client.get("/readyz").status_code == 200
    assert client.get("/health").get_json()["models"][0]["ready"] is False
    assert client.post("/v2/repository/models/iris/load").status_code == 200  # from the last good copy
    assert client.post(INFER, json=body).status_code == 200
    assert client.post("/v2/repository/models/iris/load").status_code == 502  # nothing to take back: a reload


def test_a_worker_that_starts_later_knows_of_it_and_the_next_service_does_not(own: Flask, prepared: Path) -> None:
    assert own.test_client().post("/v2/repository/models/iris/unload").status_code == 200
    home = own.extensions["service"]._state_dir
    other = settings_of(home.parent, model_dir=prepared / "models", models=("iris",))
    with running(other) as late:
        assert late.test_client().get("/v2/models/iris/ready").status_code == 503
    notes.write(home / "service.json", {"started_at": "later"})
    with running(other) as late:
        assert late.test_client().get("/v2/models/iris/ready").status_code == 200
    assert ModelState(home, "iris").unloaded.exists()
