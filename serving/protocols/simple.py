"""The service's own protocol: ``POST /predict`` and its per-model forms.

`Simple` turns a body into an answer, bytes into bytes; Flask's routes and the lane in front of them both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from flask import Blueprint, Response

from serving.answers import Reply, dumps
from serving.errors import InvalidInput, ServingError, UnsupportedMediaType
from serving.live import Live
from serving.payload import JSON_TYPES, check_media, parsed
from serving.protocols import Call, flask_answer, upload
from serving.service import Service
from serving.tensors import Batch, Classes, Prediction, Signature
from serving.transforms.tabular import Reader
from serving.transforms.values import as_objects

MAX_REQUEST_ID_CHARACTERS = 128
ROWS_KEYS = ("features", "instances")
KNOWN_KEYS = {*ROWS_KEYS, "request_id", "top_k"}
DEFAULT_MODEL = "/predict"
BY_MODEL = "/models/<model>/predict"
BY_VERSION = "/models/<model>/versions/<version>/predict"
ROUTES = (DEFAULT_MODEL, BY_MODEL, BY_VERSION)
URL_ROUTES = ("/predict/url", "/models/<model>/predict/url")
STATUSES = (200, 400, 500, 503)  # that every service comes to see


class UrlPredictionOff(ServingError):
    """Nothing is fetched from elsewhere here."""

    status = 403
    code = "url_prediction_off"


class Asked(NamedTuple):
    """A body that was understood. ``read`` gives the batch and whether it was written as many rows."""

    read: Callable[[Reader], tuple[Batch, bool]]
    request_id: str
    top_k: int | None = None  # so many classes are named; None: as the version has it


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
        asked = _uploaded(live, call) if upload.is_upload(call.header("Content-Type")) else _written(live, call)
        many = True

        def read(reader: Reader) -> Batch:
            nonlocal many
            batch, many = asked.read(reader)
            return batch

        answer = self._service.predict(live, read, asked.request_id)
        wording = self._wordings.get(live) or self._wordings.setdefault(live, Wording(live))
        content = wording.many if many else wording.one
        whole = {
            **content(answer.prediction, asked.top_k),
            "model": wording.model,
            "prediction_id": answer.prediction_id,
            "request_id": asked.request_id,
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
        check_media(also=upload.MULTIPART)
        return flask_answer(simple, service.store, live)

    @bp.post(URL_ROUTES[0])
    @bp.post(URL_ROUTES[1])
    def predict_url(model: str | None = None) -> Response:
        service.store.live(model)
        raise UrlPredictionOff("this service fetches nothing; send the picture itself, as base64 or as a file")

    return bp


# --- what is asked ---------------------------------------------------------------------------------------------------


def _written(live: Live, call: Call) -> Asked:
    """What a JSON body asks. Raises `InvalidInput`."""
    body = _body(call.data)
    request_id = _request_id(body, call.request_id)
    rows = _rows(body)
    top_k = None if body.get("top_k") is None else _top_k(live, body["top_k"])
    if "instances" in body:
        return Asked(lambda reader: (reader(rows)[0], True), request_id, top_k)
    return Asked(lambda reader: reader(rows), request_id, top_k)


def _uploaded(live: Live, call: Call) -> Asked:
    """What a form asks: a row for each file. Raises `InvalidInput` or `UnsupportedMediaType`."""
    if not takes_files(live.bundle.signature):
        raise UnsupportedMediaType("this model takes rows of values, not files; send Content-Type: application/json")
    form = upload.read(call.data, call.header("Content-Type") or "")
    request_id = _request_id(form.fields, call.request_id)
    given = form.fields.get("top_k")
    top_k = None if given is None else _top_k(live, int(given) if given.isascii() and given.isdecimal() else given)
    field = live.bundle.signature.inputs[0]
    batch = Batch((field.name,), (as_objects(field, form.files),))
    return Asked(lambda _: (batch, len(form.files) > 1), request_id, top_k)


def takes_files(signature: Signature) -> bool:
    """Whether a row is one binary value, which may come as a file."""
    return signature.layout == "columns" and [field.type for field in signature.inputs] == ["binary"]


def _top_k(live: Live, given: Any) -> int:
    """How many classes are to be named. Raises `InvalidInput`."""
    classes = live.bundle.classes
    if classes is None:
        raise InvalidInput("this model answers no classes, so it takes no top_k")
    if type(given) is not int or not 1 <= given <= len(classes.names):
        raise InvalidInput(f"top_k must be a whole number from 1 to {len(classes.names)}, as many classes as there are")
    return given


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
        self._labels = Labels(bundle.classes, bundle.threshold) if bundle.classes is not None else None
        self._top_k = (bundle.variant or {}).get("top_k")
        self.model = orjson.Fragment(dumps({"name": bundle.name, "version": bundle.version, "alias": live.alias}))

    def one(self, prediction: Prediction, top_k: int | None = None) -> dict[str, Any]:
        """``prediction`` and ``probabilities`` or ``top_k`` of a single row. Raises `InvalidInput`."""
        row = next(self._rows(prediction, self._named(prediction, top_k)))
        beside: dict[str, Any] = {name: row.pop(name) for name in ("probabilities", "top_k") if name in row}
        return {"prediction": row, **beside}

    def many(self, prediction: Prediction, top_k: int | None = None) -> dict[str, Any]:
        """``predictions``, one object a row. Raises `InvalidInput`."""
        labels, top_k = self._labels, self._named(prediction, top_k)
        if top_k is None and labels is not None and labels.fit(prediction):
            return {"predictions": orjson.Fragment(labels.written(prediction))}
        return {"predictions": orjson.Fragment(dumps(list(self._rows(prediction, top_k))))}

    def _named(self, prediction: Prediction, asked: int | None) -> int | None:
        """How many classes are named; None: all. Raises `InvalidInput`."""
        if asked is not None and prediction.probabilities is None:
            raise InvalidInput("this model gives no probabilities, so it takes no top_k")
        return asked or self._top_k

    def _rows(self, prediction: Prediction, top_k: int | None = None) -> Iterator[dict[str, Any]]:
        """One object a row: a class with its probabilities, or a value."""
        if self._labels is not None and prediction.values.ndim == 1:
            yield from self._labels.rows(prediction, top_k)
        elif prediction.named is not None:
            names, columns = list(prediction.named), [column.tolist() for column in prediction.named.values()]
            for row in zip(*columns, strict=True):
                yield {"value": dict(zip(names, row, strict=True))}
        else:
            for value in prediction.values.tolist():
                yield {"value": value}


class Labels:
    """How one classifier's predictions are written, row by row or many at once.

    Where a ``threshold`` decides for the second of two classes, a row says it and that class's probability, the score.
    """

    def __init__(self, classes: Classes, threshold: float | None = None) -> None:
        self._names = classes.names
        self._threshold = threshold
        self._position = {label: position for position, label in enumerate(classes.labels)}
        self._described = [
            {"class_id": classes.class_id(k), "class_name": name} for k, name in enumerate(classes.names)
        ]
        self._starts = [orjson.dumps(described)[:-1].replace(b"%", b"%%") for described in self._described]
        self._end = _template(threshold, classes.names)

    def rows(self, prediction: Prediction, top_k: int | None = None) -> Iterator[dict[str, Any]]:
        """One object a row, with the probability of each class, or with the ``top_k`` most probable, best first."""
        positions = map(self._position.__getitem__, prediction.values.tolist())
        if prediction.probabilities is None:
            yield from ({**self._described[position]} for position in positions)
            return
        best = None if top_k is None else np.argsort(-prediction.probabilities, axis=1, kind="stable")[:, :top_k]
        for row, (position, chances) in enumerate(zip(positions, prediction.probabilities.tolist(), strict=True)):
            yield {
                **self._described[position],
                "confidence": chances[position],
                **({} if self._threshold is None else {"score": chances[1], "threshold": self._threshold}),
                **(self._each(chances) if best is None else self._best(best[row].tolist(), chances)),
            }

    def _each(self, chances: list[float]) -> dict[str, Any]:
        return {"probabilities": dict(zip(self._names, chances, strict=True))}

    def _best(self, positions: list[int], chances: list[float]) -> dict[str, Any]:
        return {"top_k": [{**self._described[place], "confidence": chances[place]} for place in positions]}

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
        shown = [chances[np.arange(len(positions)), positions], chances]
        if self._threshold is not None:
            shown.insert(1, chances[:, 1])
        numbers = dumps(np.column_stack(shown).ravel())[1:-1].split(b",")
        return b"[" + b",".join([self._starts[position] + self._end for position in positions]) % tuple(numbers) + b"]"


def _template(threshold: float | None, names: tuple[str, ...]) -> bytes:
    """How a row's JSON goes on after its class, with ``%b`` for each number.

    They are the confidence, with a threshold the score, and each class's probability.
    """
    score = b"" if threshold is None else b',"score":%b,"threshold":' + orjson.dumps(threshold)
    chances = b",".join(orjson.dumps(name).replace(b"%", b"%%") + b":%b" for name in names)
    return b',"confidence":%b' + score + b',"probabilities":{' + chances + b"}}"
