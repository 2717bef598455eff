"""MLflow's scoring protocol: ``POST /invocations`` and its per-model forms, ``GET /ping`` and ``GET /version``.

`Scoring` turns a body into an answer; Flask's routes and the lane in front of them both use it. How MLflow itself
would have formed a version's answer is in `Wording`. The prediction's id, for which the shape has no room, goes into a
header.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from importlib.metadata import version as installed_version
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import orjson
from flask import Blueprint, Response, request

from serving.answers import JSON, Reply
from serving.errors import InvalidInput, ModelFailed, ModelNotReady, ServingError, UnsupportedMediaType
from serving.live import Live
from serving.payload import JSON_TYPES, parsed
from serving.protocols import Call, flask_answer
from serving.service import Service
from serving.tensors import Batch, Prediction
from serving.transforms import delimited, frames, params
from serving.transforms.tabular import NAMED_CHARACTERS, Reader

CSV = "text/csv"
ROUTES = ("/invocations", "/models/<model>/invocations", "/models/<model>/versions/<version>/invocations")
PING, VERSION = "/ping", "/version"
STATUSES = (200, 400, 500, 503)  # that every service comes to see
PREDICTION_ID_HEADER = "X-Prediction-Id"

FIELDS = (*frames.FORMATS, "params")
UNWRAPPED = ("messages", "prompt", "input")  # bodies of language models, which MLflow takes as one row

# MLflow's words for our statuses.
ERROR_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    405: "BAD_REQUEST",
    413: "BAD_REQUEST",
    415: "BAD_REQUEST",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Draining(ModelNotReady):
    """This worker is about to stop."""


class Scoring:
    """This protocol over one service."""

    routes = ROUTES
    media = (JSON_TYPES - {""}) | {CSV, f"{CSV};charset=utf-8", f"{CSV}; charset=utf-8"}

    def __init__(self, service: Service) -> None:
        self._service = service
        self._wordings: WeakKeyDictionary[Live, Wording] = WeakKeyDictionary()

    def owns(self, path: str) -> bool:
        """MLflow's own paths, and those that end like its only one that takes a body."""
        return path in (PING, VERSION) or path.rstrip("/").endswith("/invocations")

    def error(self, err: ServingError, _: str | None) -> dict[str, Any]:
        """``{"error_code", "message"}``, as MLflow's own exceptions are written; no value of the request is in it."""
        return {"error_code": _error_code(err), "message": err.discreet}

    def live(self, model: str | None, version: str | None) -> Live:
        """Raises `UnknownModel` or `ModelNotReady`."""
        return self._service.store.live(model, version)

    def answer(self, live: Live, call: Call) -> Reply:
        """What ``live`` answers. Raises `InvalidInput` or what the model raised as a `ServingError`."""
        asked = _csv(call.data) if _is_csv(call.header("Content-Type")) else _json(live, call.data)

        def read(reader: Reader) -> Batch:
            batch = asked.read(reader)
            batch.params = asked.params
            return batch

        answer = self._service.predict(live, read, call.request_id)
        wording = self._wordings.get(live) or self._wordings.setdefault(live, Wording(live))
        written = wording.written(answer.prediction, framed=asked.framed)
        body = written if asked.unwrapped else b'{"predictions":' + written + b"}"
        return Reply(body, headers=((PREDICTION_ID_HEADER, answer.prediction_id), *_warning(asked.ignored)))


def blueprint(service: Service, scoring: Scoring) -> Blueprint:
    """Flask's routes to ``scoring``, and MLflow's probes."""
    bp = Blueprint("scoring", __name__)

    @bp.post(ROUTES[0])
    @bp.post(ROUTES[1])
    @bp.post(ROUTES[2])
    def invocations(model: str | None = None, version: str | None = None) -> Response:
        live = service.store.live(model, version)  # an unknown model is said before a bad body
        _check_media(request.headers.get("Content-Type", ""), request.content_encoding)
        return flask_answer(scoring, service.store, live)

    @bp.get(PING)
    def ping() -> Response:
        service.store.live()
        if service.draining:
            raise Draining("this worker is about to stop")
        return Response("\n", mimetype=JSON)

    @bp.get(VERSION)
    def version() -> Response:
        return Response(installed_version("mlflow-skinny"), mimetype=JSON)

    return bp


def _error_code(err: ServingError) -> str:
    located = isinstance(err, InvalidInput) and (err.row is not None or err.column is not None)
    if located or isinstance(err, params.WrongParam):
        return "INVALID_PARAMETER_VALUE"
    if err.code == "unknown_route":
        return "ENDPOINT_NOT_FOUND"
    return ERROR_CODES.get(err.status, "INTERNAL_ERROR")


def _warning(ignored: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Says which names were ignored, as MLflow ignores them."""
    if not ignored:
        return ()
    names = ", ".join(ascii(name[:NAMED_CHARACTERS]) for name in ignored[:10])
    more = f" and {len(ignored) - 10} more" if len(ignored) > 10 else ""
    text = f"ignored, since this model has no such param or the protocol no such field: {names}{more}"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return (("Warning", f'299 - "{escaped}"'),)


# --- what is asked ---------------------------------------------------------------------------------------------------


class Asked:
    """A body that was understood: how its rows are read, its params, and what of it is ignored."""

    __slots__ = ("framed", "ignored", "params", "read", "unwrapped")

    def __init__(
        self,
        read: Callable[[Reader], Batch],
        *,
        framed: bool,
        params: Mapping[str, Any] | None = None,
        ignored: Sequence[str] = (),
        unwrapped: bool = False,
    ) -> None:
        self.read = read
        self.framed = framed
        self.params = params
        self.ignored = ignored
        self.unwrapped = unwrapped


def _is_csv(content_type: str | None) -> bool:
    return content_type is not None and content_type.partition(";")[0].strip().lower() == CSV


def _check_media(content_type: str, encoding: str | None) -> None:
    """MLflow's own rules. Raises `UnsupportedMediaType`."""
    kind, *given = (part.strip() for part in content_type.split(";"))
    if kind.lower() not in (JSON, CSV):
        sent = f"is {kind[:NAMED_CHARACTERS]}" if kind else "is not said"
        raise UnsupportedMediaType(f"the body's type {sent}; send Content-Type: {JSON} or {CSV}")
    for part in filter(None, given):
        name, _, value = part.partition("=")
        if name.strip().lower() != "charset":
            raise UnsupportedMediaType(f"unknown parameter {name[:NAMED_CHARACTERS]!r} of the content type")
        if value.strip('" ').lower() != "utf-8":
            raise UnsupportedMediaType("only UTF-8 is read")
    if encoding:
        raise UnsupportedMediaType(f"the body is encoded ({encoding[:40]}); send it as it is")


def _csv(data: bytes) -> Asked:
    return Asked(lambda reader: delimited.read(reader, data), framed=True)


def _json(live: Live, data: bytes) -> Asked:
    """Raises `InvalidInput`."""
    if not data:
        raise InvalidInput('the body is empty; send a JSON object such as {"dataframe_split": {...}}')
    body = parsed(data)
    if not isinstance(body, dict):
        raise InvalidInput(f"the body must be a JSON object with exactly one of {', '.join(frames.FORMATS)}")
    specs: Sequence[Mapping[str, Any]] = (live.bundle.pyfunc or {}).get("params") or ()
    if any(name in body for name in UNWRAPPED):
        return _unwrapped(live, body, specs)
    given = [name for name in frames.FORMATS if name in body]
    if len(given) != 1:
        found = f"; found {' and '.join(given)}" if given else ""
        raise InvalidInput(f"expected exactly one of {', '.join(frames.FORMATS)}{found}")
    taken, ignored = params.checked(specs, body.get("params"))
    if len(body) > 1:
        ignored = (*ignored, *(name for name in body if name not in FIELDS))
    form, content = given[0], body[given[0]]
    parse = frames.FORMATS[form]
    framed = form.startswith("dataframe")
    return Asked(lambda reader: parse(reader, content), framed=framed, params=taken, ignored=ignored)


def _unwrapped(live: Live, body: dict[str, Any], specs: Sequence[Mapping[str, Any]]) -> Asked:
    """A language model's body: one row whose columns are its fields, but for those that are params."""
    names = {str(spec.get("name")) for spec in specs}
    if not set(UNWRAPPED) & body.keys() & set(live.bundle.signature.names):
        found = next(name for name in UNWRAPPED if name in body)
        raise InvalidInput(f"this model takes no {found!r}; send exactly one of {', '.join(frames.FORMATS)}")
    taken, _ = params.checked(specs, {name: value for name, value in body.items() if name in names})
    row = {name: value for name, value in body.items() if name not in names}
    return Asked(lambda reader: reader(row)[0], framed=True, params=taken, unwrapped=True)


# --- what is answered ------------------------------------------------------------------------------------------------


class Wording:
    """How one version's predictions are written, which is how MLflow's own pyfunc of its flavor forms them."""

    def __init__(self, live: Live) -> None:
        bundle = live.bundle
        called = (bundle.pyfunc or {}).get("predict_fn") if bundle.runtime in ("compiled", "sklearn") else None
        self._method = called or "predict"
        self._takes_frames = bundle.signature.layout == "columns" and bundle.signature.origin == "model"
        self._takes_either = bundle.signature.origin != "model"

    def written(self, prediction: Prediction, *, framed: bool) -> bytes:
        """What stands under ``predictions``; ``framed`` says that the caller sent a frame. Raises `ModelFailed`."""
        try:
            return _dumps(self._content(prediction, framed))
        except (TypeError, ValueError) as err:  # orjson's own error is one of the first kind
            raise ModelFailed("the model's answer cannot be written as JSON") from err

    def _content(self, prediction: Prediction, framed: bool) -> Any:
        own = prediction.own
        if own is None:
            return _plain(self._values(prediction))
        if own.form == "one":
            return own.columns[""][0]
        if own.form == "records":
            return _records(own.columns)
        if own.form == "graph" and (self._takes_frames or (self._takes_either and framed)):
            return _records(_flat(own.columns))
        return {name: _plain(values) for name, values in own.columns.items()}

    def _values(self, prediction: Prediction) -> np.ndarray:
        """What the method gives that the version names for MLflow's pyfunc."""
        if self._method == "predict":
            return prediction.values
        chances = prediction.probabilities
        if chances is None or self._method not in ("predict_proba", "predict_log_proba"):
            raise ModelFailed(f"MLflow calls {self._method} of this version, which is not served here; /predict is")
        if self._method == "predict_proba":
            return chances
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(chances))


def _dumps(content: Any) -> bytes:
    return orjson.dumps(content, default=_other, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(values: np.ndarray) -> Any:
    """An array that orjson writes as MLflow does: 32-bit floats with the digits that they have in 64."""
    kind = values.dtype.kind
    if kind == "f" and values.itemsize < 8:
        return values.astype(np.float64)
    return np.ascontiguousarray(values) if kind in "fiub" else values.tolist()


def _records(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One object a row; times as texts, as a frame gives them."""
    names = tuple(columns)
    lists = [_times(values) if values.dtype.kind == "M" else _as_list(values) for values in columns.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]


def _as_list(values: np.ndarray) -> list[Any]:
    plain = _plain(values)
    return plain if isinstance(plain, list) else list(plain.tolist())


def _times(values: np.ndarray) -> list[str | None]:
    """ISO 8601, with a fraction only where there is one."""
    texts = np.datetime_as_string(values.astype("datetime64[ns]")).tolist()
    return [None if text == "NaT" else _shortened(text) for text in texts]


def _shortened(text: str) -> str:
    whole, _, fraction = text.partition(".")
    if not fraction.strip("0"):
        return whole
    return f"{whole}.{fraction[:6]}" if fraction.endswith("000") else text


def _flat(columns: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """A graph's outputs as MLflow makes a frame of them: each as one long column, where all are then of one length."""
    flat = {name: values.reshape(-1) for name, values in columns.items()}
    return flat if len(set(map(len, flat.values()))) == 1 else columns


def _other(value: Any) -> Any:
    """What JSON has no form for, as MLflow writes it. Raises TypeError."""
    if isinstance(value, (bytes, bytearray)):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, np.ndarray):
        return _plain(value)
    if isinstance(value, Decimal):
        return float(value)
    if type(value).__name__ in ("NAType", "NaTType"):  # pandas' missing values
        return None
    for method in ("isoformat", "model_dump", "tolist"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
