"""The service's own protocol: ``POST /predict`` and its per-model forms.

`Simple` turns a body into an answer, bytes into bytes; Flask's routes and the lane in front of them both use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from flask import Blueprint, Response

from serving.answers import Reply, dumps
from serving.errors import InvalidInput, ServingError
from serving.payload import JSON_TYPES, check_media, parsed
from serving.protocols import Call, flask_answer
from serving.service import Service
from serving.store import Live
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


class Simple:
    """This protocol over one service."""

    routes = ROUTES
    media = JSON_TYPES

    def __init__(self, service: Service) -> None:
        self._service = service
        self._wordings: WeakKeyDictionary[Live, Wording] = WeakKeyDictionary()

    def owns(self, _: str) -> bool:
        """Every path that is no other's."""
        return True

    def error(self, err: ServingError, request_id: str | None) -> dict[str, Any]:
        """``{"error": {"code", "message", …}, "request_id"}``."""
        return {"error": {"code": err.code, "message": str(err), **err.details()}, "request_id": request_id}

    def live(self, model: str | None, version: str | None) -> Live:
        """Raises `UnknownModel` or `ModelNotReady`."""
        return self._service.store.live(model, version)

    def answer(self, live: Live, call: Call) -> Reply:
        """What ``live`` answers; the call's request id holds where the body has none.

        Raises `InvalidInput` or what the model raised as a `ServingError`.
        """
        body = _body(call.data)
        request_id = _request_id(body, call.request_id)
        rows = _rows(body)
        many = True

        def read(reader: Reader) -> Batch:
            nonlocal many
            batch, many = reader(rows)
            return batch

        answer = self._service.predict(live, read, request_id)
        wording = self._wordings.get(live) or self._wordings.setdefault(live, Wording(live))
        content = wording.many if many or "instances" in body else wording.one
        whole = {
            **content(answer.prediction),
            "model": wording.model,
            "prediction_id": answer.prediction_id,
            "request_id": request_id,
        }
        return Reply(orjson.dumps(whole))


def blueprint(service: Service, simple: Simple) -> Blueprint:
    """Flask's routes to ``simple``."""
    bp = Blueprint("simple", __name__)

    @bp.post(DEFAULT_MODEL)
    @bp.post(BY_MODEL)
    @bp.post(BY_VERSION)
    def predict(model: str | None = None, version: str | None = None) -> Response:
        live = service.store.live(model, version)  # an unknown model is said before a bad body
        check_media()
        return flask_answer(simple, live)

    return bp


def _body(data: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises `InvalidInput`."""
    if not data:
        raise InvalidInput('the body is empty; send a JSON object such as {"features": [...]}')
    body = parsed(data)
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    return body


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
