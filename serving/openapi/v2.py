"""The Open Inference Protocol in the document."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from serving.bundle import Bundle
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
    operation,
    ref,
)
from serving.openapi.types import MOST_ALTERNATIVES
from serving.tensors import NUMPY_TYPES, Field

TAG, ERROR = "Open Inference Protocol v2", "V2Error"
BINARY, BINARY_HEADER = "application/octet-stream", "Inference-Header-Content-Length"
STATUSES = (400, 404, 409, 413, 415, 500, 502, 503, 504)
INFER = (400, 404, 413, 415, 500, 503, 504)
RELOAD = (400, 404, 409, 413, 415, 500, 502, 503, 504)
BOOL_TO_FP64 = [
    "BOOL",
    *(f"UINT{bits}" for bits in (8, 16, 32, 64)),
    *(f"INT{bits}" for bits in (8, 16, 32, 64)),
    *(f"FP{bits}" for bits in (16, 32, 64)),
]
DATATYPES = [*BOOL_TO_FP64, "BYTES"]
STATES = ["UNKNOWN", "READY", "UNAVAILABLE", "LOADING", "UNLOADING"]
ERROR_SCHEMA = closed({"error": {"type": "string"}})
FLAG = {"type": "boolean"}
TEXT = {"type": "string"}


def paths(models: Sequence[Model]) -> dict[str, Any]:
    """Server, models, inference, repository."""
    named, versioned = parameters(models), parameters(models, version=True)
    return {
        "/v2": {"get": operation("v2_server", TAG, "Server metadata", _done("What it is.", ref("V2Server"), (500,)))},
        "/v2/health/live": {
            "get": operation(
                "v2_live", TAG, "Does the process answer?", _done("It does.", closed({"live": FLAG}), (500,))
            )
        },
        "/v2/health/ready": {
            "get": operation("v2_ready", TAG, "Is every model live?", _ready(closed({"live": FLAG, "ready": FLAG}), ()))
        },
        "/v2/models/{model}": {"get": _metadata("v2_model", named)},
        "/v2/models/{model}/versions/{version}": {"get": _metadata("v2_model_version", versioned)},
        "/v2/models/{model}/ready": {"get": _model_ready("v2_model_ready", named)},
        "/v2/models/{model}/versions/{version}/ready": {"get": _model_ready("v2_model_version_ready", versioned)},
        "/v2/models/{model}/infer": {"post": _infer("v2_infer", models, named)},
        "/v2/models/{model}/versions/{version}/infer": {"post": _infer("v2_infer_version", models, versioned)},
        "/v2/repository/index": {"post": _index()},
        "/v2/repository/models/{model}/load": {"post": _move("load", "Look at the registry now", named, RELOAD)},
        "/v2/repository/models/{model}/unload": {"post": _move("unload", "Have it answer nothing", named, INFER)},
    }


def _done(description: str, schema: Schema, failing: Sequence[int]) -> dict[str, Schema]:
    return {"200": answer(description, schema), **errors(ERROR, failing)}


def _ready(schema: Schema, failing: Sequence[int]) -> dict[str, Schema]:
    """For clients that read the status, and those that read ``ready`` or ``error``."""
    properties = {**schema["properties"], "error": TEXT}
    not_yet = answer("Not yet.", closed(properties), "Retry-After")
    return {"200": answer("Yes.", schema), **errors(ERROR, (*failing, 500)), "503": not_yet}


def _metadata(name: str, where: list[Schema]) -> Schema:
    done = _done("Inputs and outputs, from its signature.", ref("V2Model"), (404, 500, 503))
    return operation(name, TAG, "Model metadata", done, parameters=where)


def _model_ready(name: str, where: list[Schema]) -> Schema:
    schema = closed({"name": TEXT, "ready": FLAG})
    return operation(name, TAG, "Is this model live?", _ready(schema, (404,)), parameters=where)


def _infer(name: str, models: Sequence[Model], where: list[Schema]) -> Schema:
    examples = {f"{model.key}: {key}": value for model in models for key, value in _examples(model).items()}
    raw = {"type": "string", "format": "binary", "description": f"JSON of the length in {BINARY_HEADER}, then tensors."}
    asks = body({JSON: media(of_any(models, "V2Request"), examples), BINARY: media(raw)})
    done = answer("Its outputs.", of_any(models, "V2Answer"), BINARY_HEADER)
    done["content"][BINARY] = {"schema": raw}
    length = {
        "name": BINARY_HEADER,
        "in": "header",
        "description": "Bytes of the JSON that stands before binary tensors.",
        "schema": {"type": "integer", "minimum": 0},
    }
    responses = {"200": done, **errors(ERROR, INFER)}
    return operation(name, TAG, "Infer", responses, asks=asks, parameters=[*where, length])


def _index() -> Schema:
    asks = body(
        {JSON: media({"type": "object", "properties": {"ready": {"type": ["boolean", "null"]}}})}, required=False
    )
    done = _done("Every model with its state.", listed(ref("V2State")), (400, 413, 415, 500))
    return operation("v2_index", TAG, "Models and their states", done, asks=asks)


def _move(what: str, summary: str, where: list[Schema], failing: Sequence[int]) -> Schema:
    asks = body(
        {JSON: media({"type": "object", "properties": {"parameters": {"type": ["object", "null"]}}})}, required=False
    )
    done = _done("Every worker has done so.", closed({"name": TEXT, what: FLAG}), failing)
    return operation(f"v2_{what}", TAG, summary, done, asks=asks, parameters=where)


# --- schemas ---------------------------------------------------------------------------------------------------------


def schemas(models: Sequence[Model]) -> dict[str, Schema]:
    """What is the same for all models, and what each asks and answers."""
    tensor = closed(
        {"name": TEXT, "datatype": {"enum": DATATYPES}, "shape": listed({"type": "integer"})},
        {"parameters": {"type": "object"}},
    )
    found = {
        ERROR: ERROR_SCHEMA,
        "V2Server": closed({"name": TEXT, "version": TEXT, "extensions": listed(TEXT)}),
        "V2Model": closed(
            {
                "name": TEXT,
                "versions": listed(TEXT),
                "platform": TEXT,
                "inputs": listed(tensor),
                "outputs": listed(tensor),
            }
        ),
        "V2State": closed({"name": TEXT, "state": {"enum": STATES}, "reason": TEXT}, {"version": TEXT}),
        "V2Output": closed({"name": TEXT}, {"parameters": {"type": ["object", "null"]}}),
    }
    for model in models:
        found[model.component("V2Request")] = _request(model)
        found[model.component("V2Answer")] = _answer(model)
    return found


def responses() -> dict[str, Schema]:
    """This protocol's errors."""
    return error_responses(ERROR, STATUSES)


def headers() -> dict[str, Schema]:
    """That only this protocol has."""
    length = {"type": "string", "pattern": "^[0-9]+$"}
    return {
        BINARY_HEADER: {"description": "Bytes of JSON before binary tensors, where there are any.", "schema": length}
    }


def _request(model: Model) -> Schema:
    bundle = model.bundle
    title = model.name if bundle is None else f"{model.name} version {bundle.version}"
    asked = {
        "type": "object",
        "title": title,
        "properties": {
            "id": {"type": ["string", "null"], "maxLength": 128},
            "parameters": {"type": ["object", "null"]},
            "inputs": listed(either(_inputs(bundle)), least=1),
            "outputs": {"type": ["array", "null"], "items": ref("V2Output")},
        },
        "required": ["inputs"],
    }
    return asked


def _inputs(bundle: Bundle | None) -> list[Schema]:
    """A tensor for each input, or one of any name for all columns side by side."""
    if bundle is None or bundle.signature.layout == "unknown":
        return [_tensor({"type": "string", "minLength": 1}, "", 16)]
    signature = bundle.signature
    if len(signature.inputs) > MOST_ALTERNATIVES:
        return [_tensor({"type": "string", "minLength": 1}, "", 16)]
    own = [_tensor({"const": field.name}, _datatype(field), 2 + len(field.shape)) for field in signature.inputs]
    if signature.layout == "columns":
        table = _tensor({"type": "string", "minLength": 1}, "", 2)
        return [*own, {**table, "title": f"all columns, of shape [-1, {len(own)}]"}]
    return own


def _tensor(name: Schema, natural: str, axes: int) -> Schema:
    """An input; whole numbers and floats may be sent as another datatype that holds them."""
    shape = {**listed({"type": "integer", "minimum": 0}, least=1), "maxItems": axes}
    datatype: Schema = {"enum": DATATYPES, **({"description": f"of itself {natural}"} if natural else {})}
    return {
        "type": "object",
        "properties": {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "data": {"type": "array", "description": "Nested as the shape says, or flat."},
            "parameters": {"type": ["object", "null"]},
        },
        "required": ["name", "datatype", "shape"],
    }


def _answer(model: Model) -> Schema:
    bundle = model.bundle
    names = [field.name for field in bundle.outputs] if bundle is not None else []
    tensor = closed(
        {
            "name": {"enum": names} if names else TEXT,
            "datatype": {"enum": DATATYPES},
            "shape": listed({"type": "integer"}),
        },
        {"data": {"type": "array"}, "parameters": {"type": "object"}},
    )
    about = {"model_name": {"const": model.name}, "model_version": TEXT}
    kept = closed({"prediction_id": {"type": "string", "format": "uuid"}})
    return closed({**about, "outputs": listed(tensor)}, {"id": TEXT, "parameters": kept})


def _datatype(field: Field) -> str:
    """What a value of ``field`` is called; ``BYTES`` is what is no number."""
    plain = NUMPY_TYPES.get(field.type)
    if plain is None and field.type not in ("any", "str", "string", "binary"):
        plain = np.dtype(field.type)
    if plain is None or plain.kind not in "biuf":
        return "BYTES"
    return "BOOL" if plain.kind == "b" else {"i": "INT", "u": "UINT", "f": "FP"}[plain.kind] + str(8 * plain.itemsize)


def _examples(model: Model) -> dict[str, Any]:
    """The input example with one tensor for each input."""
    rows = model.example[:2]
    if model.bundle is None or not rows or model.bundle.signature.layout == "unknown":
        return {}
    inputs = [_example(field, place, rows) for place, field in enumerate(model.bundle.signature.inputs)]
    return {"a tensor for each input": {"inputs": [tensor for tensor in inputs if tensor is not None]}}


def _example(field: Field, place: int, rows: list[Any]) -> dict[str, Any] | None:
    """The values of ``field`` in ``rows``; None for an optional column that they leave out."""
    values = [_value(field, place, row) for row in rows]
    if not field.required and any(value is None for value in values):
        return None
    datatype = _datatype(field)
    shape = list(np.shape(values)) if datatype != "BYTES" else [len(values)]
    flat = np.reshape(values, -1).tolist() if prod(shape) > len(values) else values
    return {"name": field.name, "datatype": datatype, "shape": shape, "data": flat}


def _value(field: Field, place: int, row: Any) -> Any:
    if isinstance(row, dict):
        return row.get(field.name)
    if field.shape or not isinstance(row, list):
        return row  # the only tensor
    return row[place] if place < len(row) else None
