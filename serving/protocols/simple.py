"""The service's own protocol: ``POST /predict`` and its per-model forms.

`Simple` turns a body into an answer, bytes into bytes; Flask's routes and the lane in front of them both use it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from flask import Blueprint, Response, g, request

from serving.answers import JSON, dumps, json_response
from serving.errors import InvalidInput, ServingError
from serving.payload import check_media, parsed
from serving.service import Service
from serving.store import Live
from serving.telemetry import REQUESTS
from serving.tensors import Batch, Classes, Prediction
from serving.transforms.tabular import Reader

MAX_REQUEST_ID_CHARACTERS = 128
ROWS_KEYS = ("features", "instances")
KNOWN_KEYS = {*ROWS_KEYS, "request_id"}
DEFAULT_MODEL = "/predict"
BY_MODEL = "/models/<model>/predict"
BY_VERSION = "/models/<model>/versions/<version>/predict"
ROUTES = (DEFAULT_MODEL, BY_MODEL, BY_VERSION)
STATUSES = (200, 400, 500, 503)  # that every service comes to see

log = logging.getLogger(REQUESTS)


class Simple:
    """This protocol over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._wordings: WeakKeyDictionary[Live, Wording] = WeakKeyDictionary()

    def answer(self, live: Live, data: bytes, request_id: str) -> bytes:
        """What ``live`` answers to the body ``data``; ``request_id`` holds where the body has none.

        Raises `InvalidInput` or what the model raised as a `ServingError`.
        """
        body = _body(data)
        request_id = _request_id(body, request_id)
        rows = _rows(body)
        many = True

        def read(reader: Reader) -> Batch:
            nonlocal many
            batch, many = reader(rows)
            return batch

        answer = self._service.predict(live, read, request_id)
        wording = self._wordings.get(live) or self._wordings.setdefault(live, Wording(live))
        content = wording.many if many or "instances" in body else wording.one
        return orjson.dumps(
            {
                **content(answer.prediction),
                "model": wording.model,
                "prediction_id": answer.prediction_id,
                "request_id": request_id,
            }
        )


def blueprint(service: Service, simple: Simple) -> Blueprint:
    """Flask's routes to ``simple``."""
    bp = Blueprint("simple", __name__)

    @bp.post(DEFAULT_MODEL)
    @bp.post(BY_MODEL)
    @bp.post(BY_VERSION)
    def predict(model: str | None = None, version: str | None = None) -> Response:
        g.live = service.store.live(model, version)  # an unknown model is said before a bad body
        check_media()
        return Response(simple.answer(g.live, request.get_data(cache=False), g.request_id), mimetype=JSON)

    return bp


def _body(data: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises `InvalidInput`."""
    if not data:
        raise InvalidInput('the body is empty; send a JSON object such as {"features": [...]}')
    body = parsed(data)
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


def error_content(err: ServingError, request_id: str | None) -> dict[str, Any]:
    """This protocol's error shape: ``{"error": {"code", "message", …}, "request_id"}``."""
    return {"error": {"code": err.code, "message": str(err), **err.details()}, "request_id": request_id}


def error_headers(err: ServingError) -> list[tuple[str, str]]:
    """The headers that an error adds to its answer."""
    return [("Retry-After", str(err.retry_after_s))] if err.retry_after_s is not None else []


def error_response(err: ServingError) -> Response:
    """An error as Flask answers it."""
    g.error_code = err.code
    response = json_response(error_content(err, g.get("request_id")), err.status)
    response.headers.extend(error_headers(err))
    return response


def failure(err: Exception, method: str, route: str, request_id: str | None) -> ServingError:
    """A bug: logged in full, answered without a word of it."""
    log.error("%s %s failed", method, route, exc_info=err, extra={"request_id": request_id})
    return ServingError("the service failed; the log has the request id")


def _request_id(body: dict[str, Any], otherwise: str) -> str:
    given = body.get("request_id")
    if given is None:
        return otherwise
    if not isinstance(given, str) or len(given) > MAX_REQUEST_ID_CHARACTERS:
        raise InvalidInput(f"request_id must be a text of at most {MAX_REQUEST_ID_CHARACTERS} characters")
    return given


def _rows(body: dict[str, Any]) -> Any:
    """What stands under exactly one of `ROWS_KEYS`; ``instances`` is always many rows."""
    if unknown := sorted(body.keys() - KNOWN_KEYS):
        raise InvalidInput(f"unknown field {unknown[0][:80]!r}; expected {' or '.join(map(repr, ROWS_KEYS))}")
    given = [key for key in ROWS_KEYS if key in body]
    if len(given) != 1:
        raise InvalidInput(f"expected exactly one of {' and '.join(map(repr, ROWS_KEYS))}")
    rows = body[given[0]]
    if given[0] == "instances" and not (isinstance(rows, list) and all(isinstance(row, (list, dict)) for row in rows)):
        raise InvalidInput("'instances' must be a list of rows")
    return rows


# --- answers ---------------------------------------------------------------------------------------------------------


class Wording:
    """How one version's predictions are written. What does not differ from request to request is written once, here."""

    def __init__(self, live: Live) -> None:
        bundle = live.bundle
        self._classes = bundle.classes
        self._labels = Labels(bundle.classes) if bundle.classes is not None else None
        self.model = orjson.Fragment(dumps({"name": bundle.name, "version": bundle.version, "alias": live.alias}))

    def one(self, prediction: Prediction) -> dict[str, Any]:
        """``prediction`` and ``probabilities`` of a single row."""
        row = next(self._rows(prediction))
        if "probabilities" not in row:
            return {"prediction": row}
        chances = row.pop("probabilities")
        return {"prediction": row, "probabilities": chances}

    def many(self, prediction: Prediction) -> dict[str, Any]:
        """``predictions``, one object a row."""
        labels = self._labels
        if labels is not None and labels.fit(prediction):
            return {"predictions": orjson.Fragment(labels.written(prediction))}
        return {"predictions": orjson.Fragment(dumps(list(self._rows(prediction))))}

    def _rows(self, prediction: Prediction) -> Iterator[dict[str, Any]]:
        """One object a row: a class with its probabilities, or a value."""
        if self._labels is not None and prediction.values.ndim == 1:
            yield from self._labels.rows(prediction)
        elif prediction.named is not None:
            names, columns = list(prediction.named), [column.tolist() for column in prediction.named.values()]
            for row in zip(*columns, strict=True):
                yield {"value": dict(zip(names, row, strict=True))}
        else:
            for value in prediction.values.tolist():
                yield {"value": value}


class Labels:
    """How one classifier's predictions are written, row by row or many at once."""

    def __init__(self, classes: Classes) -> None:
        self._names = classes.names
        self._position = {label: position for position, label in enumerate(classes.labels)}
        self._described = [
            {"class_id": classes.class_id(k), "class_name": name} for k, name in enumerate(classes.names)
        ]
        self._templates = [_template(described, classes.names) for described in self._described]

    def rows(self, prediction: Prediction) -> Iterator[dict[str, Any]]:
        """One object a row."""
        positions = map(self._position.__getitem__, prediction.values.tolist())
        if prediction.probabilities is None:
            yield from ({**self._described[position]} for position in positions)
            return
        for position, chances in zip(positions, prediction.probabilities.tolist(), strict=True):
            yield {
                **self._described[position],
                "confidence": chances[position],
                "probabilities": dict(zip(self._names, chances, strict=True)),
            }

    def fit(self, prediction: Prediction) -> bool:
        """Whether `written` can write ``prediction``."""
        shape = (len(prediction.values), len(self._names))
        return (
            prediction.values.ndim == 1
            and prediction.probabilities is not None
            and prediction.probabilities.shape == shape
            and len(set(self._names)) == len(self._names)
        )

    def written(self, prediction: Prediction) -> bytes:
        """The JSON of `rows`, the same to the last byte: all numbers are written at once, then put in their places."""
        positions = list(map(self._position.__getitem__, prediction.values.tolist()))
        chances = np.asarray(prediction.probabilities, dtype=np.float64)
        confidence = chances[np.arange(len(positions)), positions]
        numbers = dumps(np.column_stack((confidence, chances)).ravel())[1:-1].split(b",")
        return b"[" + b",".join([self._templates[position] for position in positions]) % tuple(numbers) + b"]"


def _template(described: dict[str, Any], names: tuple[str, ...]) -> bytes:
    """A row's JSON with ``%b`` for each number: the confidence, then every class's probability."""
    start = orjson.dumps(described)[:-1]
    chances = b",".join(orjson.dumps(name).replace(b"%", b"%%") + b":%b" for name in names)
    return start.replace(b"%", b"%%") + b',"confidence":%b,"probabilities":{' + chances + b"}}"
