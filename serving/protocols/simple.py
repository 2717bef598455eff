"""The service's own protocol: ``POST /predict`` and its per-model forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
from flask import Blueprint, Response, g, request

from serving.answers import json_response
from serving.errors import InvalidInput, ServingError, UnsupportedMediaType
from serving.service import Answer, Service
from serving.tensors import Batch, Classes, Prediction, Signature
from serving.transforms import tabular

MAX_REQUEST_ID_CHARACTERS = 128
ROWS_KEYS = ("features", "instances")


def blueprint(service: Service) -> Blueprint:
    """Routes that translate between this protocol's JSON and the service."""
    bp = Blueprint("simple", __name__)

    @bp.post("/predict")
    @bp.post("/models/<model>/predict")
    @bp.post("/models/<model>/versions/<version>/predict")
    def predict(model: str | None = None, version: str | None = None) -> Response:
        live_name = service.store.live(model, version).bundle.name  # an unknown model is said before a bad body
        body = read_json()
        request_id = _request_id(body)
        rows = _rows(body)
        many = True

        def read(signature: Signature) -> Batch:
            nonlocal many
            batch, many = tabular.parse(signature, rows)
            return batch

        answer = service.predict(live_name, version, read)
        g.live = answer.live
        return json_response(_content(answer, many or "instances" in body, request_id))

    return bp


def read_json() -> dict[str, Any]:
    """The request's body as a JSON object. Raises `UnsupportedMediaType` or `InvalidInput`."""
    kind = request.mimetype
    if kind and kind != "application/json" and not kind.endswith("+json"):
        raise UnsupportedMediaType(f"the body's type is {kind[:80]}; send Content-Type: application/json")
    if request.content_encoding:
        raise UnsupportedMediaType(f"the body is encoded ({request.content_encoding[:40]}); send it as plain JSON")
    data = request.get_data(cache=False)
    if not data:
        raise InvalidInput('the body is empty; send a JSON object such as {"features": [...]}')
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as err:
        body = _lenient(data, err)
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


def _lenient(data: bytes, err: orjson.JSONDecodeError) -> Any:
    """Many clients write NaN and Infinity, which JSON does not have: read them, so that row and column are named."""
    try:
        body = json.loads(data)
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is read, but no answer could name it
        return body
    except (ValueError, RecursionError):
        raise InvalidInput(f"the body is not JSON: {err.msg} (line {err.lineno}, column {err.colno})") from None


def error_response(err: ServingError) -> Response:
    """This protocol's error shape: ``{"error": {"code", "message", …}, "request_id"}``."""
    content = {"error": {"code": err.code, "message": str(err), **err.details()}, "request_id": g.get("request_id")}
    response = json_response(content, err.status)
    if err.retry_after_s is not None:
        response.headers["Retry-After"] = str(err.retry_after_s)
    return response


def _request_id(body: dict[str, Any]) -> str:
    given = body.get("request_id")
    if given is None:
        return str(g.request_id)
    if not isinstance(given, str) or len(given) > MAX_REQUEST_ID_CHARACTERS:
        raise InvalidInput(f"request_id must be a text of at most {MAX_REQUEST_ID_CHARACTERS} characters")
    return given


def _rows(body: dict[str, Any]) -> Any:
    """What stands under exactly one of `ROWS_KEYS`; ``instances`` is always many rows."""
    unknown = sorted(set(body) - {*ROWS_KEYS, "request_id"})
    if unknown:
        raise InvalidInput(f"unknown field {unknown[0][:80]!r}; expected {' or '.join(map(repr, ROWS_KEYS))}")
    given = [key for key in ROWS_KEYS if key in body]
    if len(given) != 1:
        raise InvalidInput(f"expected exactly one of {' and '.join(map(repr, ROWS_KEYS))}")
    rows = body[given[0]]
    if given[0] == "instances" and not (isinstance(rows, list) and all(isinstance(row, (list, dict)) for row in rows)):
        raise InvalidInput("'instances' must be a list of rows")
    return rows


# --- answers ---------------------------------------------------------------------------------------------------------


def _content(answer: Answer, many: bool, request_id: str) -> dict[str, Any]:
    bundle = answer.live.bundle
    predictions = list(_predictions(answer.prediction, bundle.classes))
    if many:
        content: dict[str, Any] = {"predictions": predictions}
    else:
        content = {"prediction": predictions[0]}
        if "probabilities" in predictions[0]:
            content["probabilities"] = predictions[0].pop("probabilities")
    return {
        **content,
        "model": {"name": bundle.name, "version": bundle.version, "alias": answer.live.alias},
        "prediction_id": answer.prediction_id,
        "request_id": request_id,
    }


def _predictions(prediction: Prediction, classes: Classes | None) -> Iterator[dict[str, Any]]:
    """One object a row: a class with its probabilities, or a value."""
    if classes is not None and prediction.values.ndim == 1:
        yield from _classified(prediction, classes)
    elif prediction.named is not None:
        names, columns = list(prediction.named), [column.tolist() for column in prediction.named.values()]
        for row in zip(*columns, strict=True):
            yield {"value": dict(zip(names, row, strict=True))}
    else:
        for value in prediction.values.tolist():
            yield {"value": value}


def _classified(prediction: Prediction, classes: Classes) -> Iterator[dict[str, Any]]:
    where = {label: position for position, label in enumerate(classes.labels)}
    positions = [where[label] for label in prediction.values.tolist()]
    described = [{"class_id": classes.class_id(k), "class_name": name} for k, name in enumerate(classes.names)]
    if prediction.probabilities is None:
        yield from (described[position] for position in positions)
        return
    for position, chances in zip(positions, prediction.probabilities.tolist(), strict=True):
        yield {
            **described[position],
            "confidence": chances[position],
            "probabilities": dict(zip(classes.names, chances, strict=True)),
        }
