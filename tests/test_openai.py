"""Embeddings as OpenAI's client asks for them: of whichever live model takes a text and answers a vector."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from texts import ENDLESS, EXAMPLE, WORDS

from serving.errors import InvalidInput, ModelFailed, ModelNotReady, ServingError
from serving.live import Live
from serving.protocols.openai import OpenAI, WrongParam, _base64, _vectors, read, text_model
from serving.tensors import Field, Signature

TEXT = Field("text", "string")
VECTOR = Field("embedding", "float32", True, (8,))


@pytest.fixture
def texts(texts_app: Flask) -> FlaskClient:
    return texts_app.test_client()


@pytest.fixture
def live(texts_app: Flask) -> Live:
    found: Live = texts_app.extensions["service"].store.live("texts")
    return found


def expected(text: str) -> np.ndarray:
    counts = np.array([text.split().count(word) for word in WORDS]) + 0.125
    return np.asarray(counts / np.linalg.norm(counts), dtype=np.float32)


def vectors(client: FlaskClient, **body: Any) -> list[Any]:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.get_json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return [one["embedding"] for one in data]


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_vectors_are_the_models(texts: FlaskClient) -> None:
    given = ["petal petal leaf", "nothing of it", *EXAMPLE]
    np.testing.assert_allclose(vectors(texts, input=given), [expected(text) for text in given], rtol=1e-6)


def test_both_encodings_say_the_same(texts: FlaskClient) -> None:
    floats = np.array(vectors(texts, input=EXAMPLE), dtype=np.float32)
    encoded = vectors(texts, input=EXAMPLE, encoding_format="base64")
    assert [np.frombuffer(base64.b64decode(one), "<f4").tolist() for one in encoded] == floats.tolist()


def test_one_text_is_a_list_of_one(texts: FlaskClient) -> None:
    assert vectors(texts, input="root") == vectors(texts, input=["root"])


def test_usage_counts_words(texts: FlaskClient) -> None:
    answer = texts.post("/v1/embeddings", json={"input": ["petal  and leaf", " ", "root"]}).get_json()
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_a_prediction_is_known_by_its_header(texts: FlaskClient) -> None:
    first, second = (texts.post("/v1/embeddings", json={"input": "root"}).headers for _ in range(2))
    assert first["X-Prediction-Id"] != second["X-Prediction-Id"]


def test_what_is_no_vector_is_not_answered(texts: FlaskClient) -> None:
    answer = texts.post("/v1/embeddings", json={"input": ["petal", ENDLESS]})
    assert answer.status_code == 500
    assert answer.get_json()["error"]["code"] == "model_failed"


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(3),
        np.zeros((2, 3, 4)),
        np.array([["a"]]),
        np.array([[True]]),
        np.array([[np.nan]]),
        np.array([[np.inf]]),
    ],
)
def test_other_answers_are_the_models_failure(values: np.ndarray) -> None:
    with pytest.raises(ModelFailed):
        _vectors(values)


def test_whole_numbers_make_a_vector() -> None:
    assert _vectors(np.array([[1, 2]], dtype=np.int8)).tolist() == [[1.0, 2.0]]


def test_numbers_beyond_32_bits_are_no_base64() -> None:
    with pytest.raises(ModelFailed, match="32-bit"):
        _base64(np.array([[1e300]]))


# --- which models ----------------------------------------------------------------------------------------------------


def shaped(live: Live, *inputs: Field, outputs: tuple[Field, ...] = (VECTOR,), layout: str = "columns") -> Live:
    return replace(live, bundle=replace(live.bundle, signature=Signature(layout, inputs), outputs=outputs))


@pytest.mark.parametrize(
    ("inputs", "layout", "outputs", "found"),
    [
        ((TEXT,), "columns", (VECTOR,), (True, 8)),
        ((TEXT,), "columns", (), (True, None)),
        ((Field("text", "str"),), "tensors", (VECTOR,), (False, 8)),
        ((Field("text", "str", True, (1,)),), "tensors", (VECTOR,), (True, 8)),
        ((Field("text", "str", True, (2,)),), "tensors", (VECTOR,), None),
        ((Field("text", "double"),), "columns", (VECTOR,), None),
        ((TEXT, Field("other", "string")), "columns", (VECTOR,), None),
        ((), "unknown", (VECTOR,), None),
        ((TEXT,), "columns", (VECTOR, VECTOR), None),
        ((TEXT,), "columns", (Field("output", "float64"),), None),
        ((TEXT,), "columns", (Field("output", "str", True, (8,)),), None),
        ((TEXT,), "columns", (Field("output", "any", True, (8,)),), None),
        ((TEXT,), "columns", (Field("output", "bool", True, (8,)),), None),
    ],
)
def test_a_text_model_is_known_by_its_signature(
    live: Live, inputs: tuple[Field, ...], layout: str, outputs: tuple[Field, ...], found: Any
) -> None:
    assert text_model(shaped(live, *inputs, outputs=outputs, layout=layout)) == found


def test_only_text_models_are_listed(texts: FlaskClient) -> None:
    assert [model["id"] for model in texts.get("/v1/models").get_json()["data"]] == ["texts"]


def test_a_service_without_text_models_says_so(client: FlaskClient) -> None:
    assert client.get("/v1/models").get_json() == {"object": "list", "data": []}
    answer = client.post("/v1/embeddings", json={"input": "petal"})
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (404, "model_not_found")


def test_a_model_that_is_unloaded_is_passed_over_but_one_that_is_awaited_is_not(
    texts_app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector of another model than usual would be wrong in silence."""
    service = texts_app.extensions["service"]
    openai = OpenAI(service)
    monkeypatch.delitem(service.store._live, "iris")
    with pytest.raises(ModelNotReady):
        openai.named(None)
    assert openai.named("texts").bundle.name == "texts"
    assert [live.bundle.name for live in openai.text_models()] == ["texts"]
    monkeypatch.setattr(service.store, "_unloaded", {"iris"})
    assert openai.named(None).bundle.name == "texts"


def test_a_column_of_texts_is_asked_as_one(texts_app: Flask, tmp_path: Path) -> None:
    """A frame with one column, as MLflow's own text flavors have it."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from samples import save_pyfunc

    from serving.runtimes import runtime
    from serving.transforms import tabular

    code = tmp_path / "hashing.py"
    code.write_text(HASHING)
    signature = ModelSignature(Schema([ColSpec("string", "text")]))
    folder = save_pyfunc(tmp_path / "saved", str(code), signature=signature)
    import yaml

    into = tmp_path / "bundle"
    into.mkdir()
    model = yaml.safe_load((folder / "MLmodel").read_text())
    description = runtime("pyfunc").convert(model, folder, into)
    service = texts_app.extensions["service"]
    known = service.store.live("texts")
    bundle = replace(known.bundle, signature=description.signature, outputs=())
    live = replace(
        known, bundle=bundle, predictor=runtime("pyfunc").load(into), reader=tabular.Reader(description.signature)
    )
    from serving.protocols import Call

    reply = OpenAI(service).answer(live, Call(b'{"input": ["petal leaf", "petal"]}', "id", lambda _: None))
    import orjson

    data = orjson.loads(reply.body)["data"]
    assert [len(one["embedding"]) for one in data] == [8, 8]
    assert np.linalg.norm(data[0]["embedding"]) == pytest.approx(1)


HASHING = """
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel
from sklearn.feature_extraction.text import HashingVectorizer


class Hashing(PythonModel):
    def predict(self, context, model_input, params=None):
        return HashingVectorizer(n_features=8).transform(model_input["text"]).toarray()


set_model(Hashing())
"""


# --- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"input": "a", "extra": 1}', "extra"),
        (b'{"input": "a", "user": 1}', "user"),
        (b'{"input": "a", "model": ["texts"]}', "model"),
        (b'{"input": "a", "encoding_format": "hex"}', "encoding_format"),
    ],
)
def test_an_error_names_the_field(body: bytes, param: str) -> None:
    with pytest.raises(WrongParam) as err:
        read(body)
    assert err.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b'"input"'])
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        read(body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (502, "server_error"),
        (503, "service_unavailable_error"),
        (504, "timeout_error"),
    ],
)
def test_the_type_goes_with_the_status(texts_app: Flask, status: int, kind: str) -> None:
    err = ServingError("no")
    err.status = status
    shape = OpenAI(texts_app.extensions["service"]).error(err, "id")
    assert shape == {"error": {"message": "no", "type": kind, "param": None, "code": "internal"}}


def test_the_reader_says_which_input(texts_app: Flask) -> None:
    """What only the signature's reader can see is of ``input`` all the same."""
    shape = OpenAI(texts_app.extensions["service"]).error(InvalidInput("no", row=1, column="text"), "id")
    assert shape["error"]["param"] == "input"


@pytest.mark.parametrize(
    ("path", "owned"), [("/v1", True), ("/v1/embeddings", True), ("/v1/x", True), ("/v10", False), ("/", False)]
)
def test_its_paths(texts_app: Flask, path: str, owned: bool) -> None:
    assert OpenAI(texts_app.extensions["service"]).owns(path) is owned
