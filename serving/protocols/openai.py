"""OpenAI's embeddings: ``POST /v1/embeddings`` and ``GET /v1/models``, as OpenAI's own client asks.

Any live version that takes one text a row and answers one vector a row is served so; `text_model` says which those are.
The model is named in the body, so the lane has these requests only where there is one that can be meant.
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from flask import Blueprint, Response, request

from serving.answers import Reply, dumps, json_response
from serving.errors import InvalidInput, ModelFailed, ModelNotReady, ServingError, UnknownModel
from serving.live import Live
from serving.payload import JSON_TYPES, check_media, parsed
from serving.protocols import Call, flask_answer
from serving.service import Service
from serving.tensors import Field
from serving.transforms.tabular import NAMED_CHARACTERS, Reader
from serving.transforms.values import kind_of

EMBEDDINGS, MODELS, MODEL = "/v1/embeddings", "/v1/models", "/v1/models/<model>"
ROUTES = (EMBEDDINGS,)
STATUSES = (200, 400, 500, 503)  # that every service comes to see
PREDICTION_ID_HEADER = "X-Prediction-Id"

FIELDS = dict.fromkeys(("input", "model", "encoding_format", "dimensions", "user"))  # in this order
FORMATS = ("float", "base64")
ONE = b'{"object":"embedding","index":%d,"embedding":%b}'
TEXTS = {"string", "str"}
NUMBERS = "iuf"  # kinds of NumPy types

# OpenAI's words for what we call otherwise.
CODES = {"unknown_model": "model_not_found", "unknown_route": "unknown_url", "wrong_method": "method_not_supported"}
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class WrongParam(InvalidInput):
    """A field of the body does not fit; ``param`` is its name."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class TextModel(NamedTuple):
    """How a version that makes vectors of texts is asked: whether a row is a list around its text."""

    listed: bool
    dimensions: int | None  # of its vectors; None where nothing is known of its answers


def text_model(live: Live) -> TextModel | None:
    """How ``live`` is asked for vectors of texts; None for a model of another kind."""
    signature, outputs = live.bundle.signature, live.bundle.outputs
    if len(signature.inputs) != 1:
        return None
    field = signature.inputs[0]
    if field.type not in TEXTS or field.shape not in ((), (1,)) or (outputs and not _is_vector(outputs)):
        return None
    length = outputs[0].shape[0] if outputs else None
    return TextModel(signature.layout == "columns" or bool(field.shape), length)


def _is_vector(outputs: tuple[Field, ...]) -> bool:
    if len(outputs) != 1 or len(outputs[0].shape) != 1 or outputs[0].type in ("str", "any"):
        return False
    return np.dtype(outputs[0].type).kind in NUMBERS


class OpenAI:
    """This protocol over one service."""

    routes = ROUTES
    media = JSON_TYPES

    def __init__(self, service: Service) -> None:
        self._service = service
        self._asked: WeakKeyDictionary[Live, TextModel | None] = WeakKeyDictionary()

    def owns(self, path: str) -> bool:
        return path == "/v1" or path.startswith("/v1/")

    def error(self, err: ServingError, _: str | None) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kind = TYPES.get(err.status, "invalid_request_error" if err.status < 500 else "server_error")
        code = CODES.get(err.code, err.code)
        return {"error": {"message": err.discreet, "type": kind, "param": _param(err), "code": code}}

    def named(self, name: str | None) -> Live:
        """The version that answers for ``name``; without one, that of the first text model.

        Raises `UnknownModel`, `ModelNotReady`, or `WrongParam` for a model that is none of texts.
        """
        if name is not None:
            live = self._service.store.live(name)
            if self._text_model(live) is None:
                raise WrongParam(f"{name!r} does not answer texts with vectors", "model")
            return live
        for known in self._service.store.names:
            if self._service.store.unloaded(known):
                continue
            live = self._service.store.live(known)
            if self._text_model(live) is not None:
                return live
        raise UnknownModel("no model here answers texts with vectors")

    def _text_model(self, live: Live) -> TextModel | None:
        """`text_model`, worked out once for each version."""
        if live not in self._asked:
            self._asked[live] = text_model(live)
        return self._asked[live]

    def live(self, *_: str | None) -> Live:
        """The only text model. Raises what `named` does, and `UnknownModel` where there are several."""
        live = self.named(None)
        if self.text_models() != [live]:
            raise UnknownModel("the body says which model is meant")
        return live

    def text_models(self) -> list[Live]:
        """All that can be asked now."""
        found = []
        for name in self._service.store.names:
            try:
                found.append(self.named(name))
            except (ModelNotReady, WrongParam):
                continue
        return found

    def answer(self, live: Live, call: Call) -> Reply:
        """What ``live`` answers. Raises `InvalidInput` or what the model raised as a `ServingError`."""
        body = read(call.data)
        if body.get("model") not in (None, live.bundle.name):
            live = self.named(body["model"])
        model = self._text_model(live)
        assert model is not None, "`named` gives no other"
        texts = _texts(body.get("input"))
        _check_dimensions(body.get("dimensions"), model.dimensions)
        rows = [[text] for text in texts] if model.listed else texts

        def batch(reader: Reader) -> Any:
            return reader(rows)[0]

        answer = self._service.predict(live, batch, call.request_id)
        vectors = _vectors(answer.prediction.values)
        counted = answer.prediction.tokens
        tokens = sum(len(text.split()) for text in texts) if counted is None else int(counted.sum())
        encoded = _base64(vectors) if body.get("encoding_format") == "base64" else _floats(vectors)
        content = {
            "object": "list",
            "data": orjson.Fragment(b"[" + b",".join([ONE % pair for pair in enumerate(encoded)]) + b"]"),
            "model": live.bundle.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return Reply(dumps(content), headers=((PREDICTION_ID_HEADER, answer.prediction_id),))


def blueprint(service: Service, openai: OpenAI) -> Blueprint:
    """Flask's routes to ``openai``."""
    bp = Blueprint("openai", __name__)

    @bp.post(EMBEDDINGS)
    def embeddings() -> Response:
        check_media()
        try:
            live = openai.live()
        except ServingError:
            live = openai.named(read(request.get_data()).get("model"))
        return flask_answer(openai, service.store, live)

    @bp.get(MODELS)
    def models() -> Response:
        return json_response({"object": "list", "data": list(map(_described, openai.text_models()))})

    @bp.get(MODEL)
    def model(model: str) -> Response:
        try:
            return json_response(_described(openai.named(model)))
        except WrongParam as err:
            raise UnknownModel(str(err)) from None

    return bp


def _described(live: Live) -> dict[str, Any]:
    """A model as OpenAI lists it; it was created when its bundle was, which all workers say alike."""
    created = int((live.bundle.folder / "bundle.json").stat().st_mtime)
    return {"id": live.bundle.name, "object": "model", "created": created, "owned_by": live.source}


def _param(err: ServingError) -> str | None:
    """The field of the body that an error is about."""
    if isinstance(err, WrongParam):
        return err.param
    if isinstance(err, (UnknownModel, ModelNotReady)):
        return "model"
    return "input" if isinstance(err, InvalidInput) and (err.row is not None or err.column is not None) else None


# --- what is asked ---------------------------------------------------------------------------------------------------


def read(data: bytes) -> dict[str, Any]:
    """The body as an object of known fields. Raises `InvalidInput`."""
    if not data:
        raise InvalidInput('the body is empty; send a JSON object such as {"input": "a text"}')
    body = parsed(data)
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    if not body.keys() <= FIELDS.keys():
        name = min(body.keys() - FIELDS.keys())[:NAMED_CHARACTERS]
        raise WrongParam(f"unknown field {name!r}; expected {', '.join(FIELDS)}", name)
    for name in ("model", "user"):
        if not isinstance(body.get(name), str | None):
            raise WrongParam(f"{name} must be a text", name)
    if body.get("encoding_format") not in (None, *FORMATS):
        raise WrongParam(f"encoding_format must be {' or '.join(map(repr, FORMATS))}", "encoding_format")
    return body


def _texts(given: Any) -> list[str]:
    """What stands under ``input``: one text or several, none of them empty."""
    if given is None:
        raise WrongParam("input is missing: a text, or a list of texts", "input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        raise WrongParam(f"input must be a text or a list of texts, not {kind_of(given)}", "input")
    if not texts:
        raise WrongParam("input is an empty list", "input")
    if set(map(type, texts)) == {str} and "" not in texts:
        return texts
    position, wrong = next((place, text) for place, text in enumerate(texts) if type(text) is not str or not text)
    if wrong == "":
        where = "" if isinstance(given, str) else f"[{position}]"
        raise WrongParam(f"input{where} is an empty text", "input")
    if type(wrong) in (int, list):
        raise WrongParam(f"input[{position}] is no text: this model takes no tokens, only texts", "input")
    raise WrongParam(f"input[{position}] must be a text, not {kind_of(wrong)}", "input")


def _check_dimensions(given: Any, own: int | None) -> None:
    if given is None:
        return
    if type(given) is not int or given < 1:
        raise WrongParam("dimensions must be a whole number, at least 1", "dimensions")
    if given != own:
        has = "" if own is None else f"; its vectors have {own}"
        raise WrongParam(f"this model does not allow dimensions{has}", "dimensions")


# --- what is answered ------------------------------------------------------------------------------------------------


def _vectors(values: np.ndarray) -> np.ndarray:
    """One vector a row. Raises `ModelFailed` for another answer, or for numbers that JSON does not have."""
    if values.ndim != 2 or values.dtype.kind not in NUMBERS:
        raise ModelFailed("the model did not answer with one vector for each text")
    vectors = values if values.dtype.kind == "f" else values.astype(np.float64)
    if not np.isfinite(vectors).all():
        raise ModelFailed("the model answered with a number that is not finite")
    return np.ascontiguousarray(vectors)


def _floats(vectors: np.ndarray) -> list[bytes]:
    """Each vector as a JSON list; all numbers are written at once."""
    return [b"[%b]" % numbers for numbers in dumps(vectors)[2:-2].split(b"],[")]


def _base64(vectors: np.ndarray) -> list[bytes]:
    """Each vector as a JSON text: base64 of little-endian 32-bit floats. Raises `ModelFailed`."""
    with np.errstate(over="ignore"):
        narrow = vectors.astype("<f4")
    if not np.isfinite(narrow).all():
        raise ModelFailed("the model answered with a number beyond the range of a 32-bit float")
    return [b'"%b"' % b2a_base64(row, newline=False) for row in narrow]
