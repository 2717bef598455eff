"""The service's own protocol in the document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.openapi import types
from serving.openapi.models import Model, of_any, parameters
from serving.openapi.parts import (
    JSON,
    Schema,
    answer,
    body,
    closed,
    either,
    error_responses,
    errors,
    listed,
    media,
    nullable,
    operation,
    ref,
)
from serving.tensors import Signature

TAG, ERROR = "predict", "Error"
FORM = "multipart/form-data"
STATUSES = (400, 404, 413, 415, 500, 503, 504)
ALL_STATUSES = (400, 403, 404, 409, 413, 415, 500, 502, 503, 504)  # with those of operations, which look the same

ERROR_SCHEMA = closed(
    {
        "error": closed(
            {"code": {"type": "string"}, "message": {"type": "string"}},
            {"row": {"type": "integer", "minimum": 0}, "column": {"type": "string"}, "reason": {"type": "string"}},
        ),
        "request_id": {"type": ["string", "null"]},
    }
)
MODEL_SCHEMA = closed(
    {"name": {"type": "string"}, "version": {"type": "string"}, "alias": {"type": ["string", "null"]}}
)


def paths(models: Sequence[Model]) -> dict[str, Any]:
    """One path for the first model, one for each, one for each version."""
    return {
        "/predict": {"post": _predict("predict", models[:1], "Predict with the first model", [])},
        "/models/{model}/predict": {"post": _predict("predict_model", models, "Predict", parameters(models))},
        "/models/{model}/versions/{version}/predict": {
            "post": _predict("predict_version", models, "Predict, only if this version is live", _versions(models))
        },
        "/predict/url": {"post": _by_url("predict_url", [])},
        "/models/{model}/predict/url": {"post": _by_url("predict_url_model", parameters(models))},
    }


def _by_url(name: str, where: list[Schema]) -> Schema:
    refused = errors(ERROR, (403, 404, 500, 503))
    return operation(name, TAG, "Predict what lies at a URL, which is turned off", refused, parameters=where)


def _versions(models: Sequence[Model]) -> list[Schema]:
    return parameters(models, version=True)


def _predict(name: str, models: Sequence[Model], summary: str, where: list[Schema]) -> Schema:
    examples = {key: value for model in models for key, value in _examples(model).items()}
    asks = body({JSON: media(of_any(models, "Request"), examples), **_form(models)})
    done = answer("One prediction for each row.", of_any(models, "Answer"))
    return operation(name, TAG, summary, {"200": done, **errors(ERROR, STATUSES)}, asks=asks, parameters=where)


def _form(models: Sequence[Model]) -> dict[str, Schema]:
    """What is sent to a model whose row is one binary value."""
    if not any(model.bundle is not None and _takes_files(model.bundle.signature) for model in models):
        return {}
    file = {"type": "string", "format": "binary"}
    fields = {"request_id": {"type": "string", "maxLength": 128}, "top_k": {"type": "integer", "minimum": 1}}
    return {FORM: {"schema": closed({"file": {"anyOf": [file, listed(file, least=1)]}}, fields)}}


def _takes_files(signature: Signature) -> bool:
    return signature.layout == "columns" and [field.type for field in signature.inputs] == ["binary"]


def _examples(model: Model) -> dict[str, Any]:
    """Bodies that the live version answers."""
    rows = model.example[:3]
    if not rows:
        return {}
    one, many = f"{model.key}: one row", f"{model.key}: many rows"
    if isinstance(rows[0], (list, dict)):
        return {one: {"features": rows[0]}, many: {"instances": rows}}
    return {one: {"features": rows[:1]}, many: {"features": rows}}


def schemas(models: Sequence[Model]) -> dict[str, Schema]:
    """What this protocol asks and answers, for each model."""
    found = {ERROR: ERROR_SCHEMA, "Model": MODEL_SCHEMA}
    for model in models:
        found |= _described(model)
    return found


def responses() -> dict[str, Schema]:
    """This protocol's errors."""
    return error_responses(ERROR, ALL_STATUSES)


def _described(model: Model) -> dict[str, Schema]:
    bundle = model.bundle
    if bundle is None:
        anything = {"type": ["array", "object"], "description": "No version is live: nothing is known of its input."}
        untyped = _request(anything, anything, {"type": "array"})
        return {
            model.component("Request"): {**untyped, "title": model.name},
            model.component("Answer"): _answer({}, {}),
        }
    title = f"{model.name} version {bundle.version}"
    row, rows = types.row(bundle.signature), types.rows(bundle.signature)
    instances = listed(types.row_object(bundle.signature), least=1) if types.is_bare(bundle.signature) else rows
    prediction, chances = types.prediction(bundle)
    named = {"probabilities": chances, "top_k": types.best(bundle)}
    beside = {name: schema for name, schema in named.items() if schema is not None}
    classes = len(bundle.classes.names) if bundle.classes is not None else None
    return {
        model.component("Row"): {**row, "title": f"One row of {title}"},
        model.component("Request"): {**_request(ref(model.component("Row")), rows, instances, classes), "title": title},
        model.component("Answer"): {**_answer(prediction, beside), "title": title},
    }


def _request(row: Schema, rows: Schema, instances: Schema, classes: int | None = None) -> Schema:
    features = {**either([row, rows]), "description": "One row, or a list of rows."}
    best = {} if classes is None else {"top_k": _top_k(classes)}
    asked = closed({}, {"features": features, "instances": instances, "request_id": _request_id(), **best})
    return {**asked, "oneOf": [{"title": name, "required": [name]} for name in ("features", "instances")]}


def _request_id() -> Schema:
    return nullable({"type": "string", "maxLength": 128, "description": "Comes back in the answer."})


def _top_k(classes: int) -> Schema:
    about = "Name so many classes, best first, instead of the probability of each."
    return nullable({"type": "integer", "minimum": 1, "maximum": classes, "description": about})


def _answer(prediction: Schema, beside: Mapping[str, Schema]) -> Schema:
    about: dict[str, Schema] = {
        "model": ref("Model"),
        "prediction_id": {"type": "string", "format": "uuid"},
        "request_id": {"type": "string"},
    }
    each = {**prediction, "properties": {**prediction["properties"], **beside}} if beside else prediction
    one = closed({"prediction": prediction, **about}, beside)
    return {"anyOf": [one, closed({"predictions": listed(each), **about})]}
