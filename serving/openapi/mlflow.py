"""MLflow's scoring protocol in the document."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from serving.openapi import types
from serving.openapi.models import Model, of_any, parameters
from serving.openapi.parts import (
    JSON,
    PREDICTION_ID,
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

TAG, ERROR = "MLflow", "MlflowError"
STATUSES = (400, 404, 413, 415, 500, 503, 504)
FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
ERROR_SCHEMA = closed({"error_code": {"type": "string"}, "message": {"type": "string"}})


def paths(models: Sequence[Model]) -> dict[str, Any]:
    """As `mlflow models serve` has them, and by model."""
    failed = errors(ERROR, (500, 503))
    return {
        "/invocations": {"post": _invocations("invocations", models[:1], "Score with the first model", [])},
        "/models/{model}/invocations": {"post": _invocations("invocations_model", models, "Score", parameters(models))},
        "/models/{model}/versions/{version}/invocations": {
            "post": _invocations(
                "invocations_version", models, "Score, only if this version is live", parameters(models, version=True)
            )
        },
        "/ping": {
            "get": operation(
                "ping", TAG, "Is the first model ready?", {"200": answer("An empty line.", None), **failed}
            )
        },
        "/version": {
            "get": operation(
                "version", TAG, "MLflow's version", {"200": answer("As plain text.", None), **errors(ERROR, (500,))}
            )
        },
    }


def _invocations(name: str, models: Sequence[Model], summary: str, where: list[Schema]) -> Schema:
    examples = {key: value for model in models for key, value in _examples(model).items()}
    tables = {f"{model.key}: a table": table for model in models if (table := _csv(model))}
    asks = body(
        {
            JSON: media(of_any(models, "MlflowRequest"), examples),
            "text/csv": media({"type": "string", "description": "A header with the columns, then rows."}, tables),
        }
    )
    done = answer("What the model's MLflow flavor answers.", ref("MlflowAnswer"), PREDICTION_ID, "Warning")
    return operation(name, TAG, summary, {"200": done, **errors(ERROR, STATUSES)}, asks=asks, parameters=where)


def schemas(models: Sequence[Model]) -> dict[str, Schema]:
    """What this protocol asks, for each model, and answers."""
    wrapped = {"type": "object", "required": ["predictions"], "properties": {"predictions": {}}}
    bare = any(model.bundle and _is_unwrapped(model.bundle.signature) for model in models)
    found = {
        ERROR: ERROR_SCHEMA,
        "MlflowAnswer": {"description": "For language models it is not wrapped."} if bare else wrapped,
    }
    return {**found, **{model.component("MlflowRequest"): _request(model) for model in models}}


def responses() -> dict[str, Schema]:
    """This protocol's errors."""
    return error_responses(ERROR, STATUSES)


def headers() -> dict[str, Schema]:
    """That only this protocol has."""
    return {"Warning": {"description": "Names params and fields that were ignored.", "schema": {"type": "string"}}}


def _is_unwrapped(signature: Signature) -> bool:
    return bool({"messages", "prompt", "input"} & set(signature.names))


def _request(model: Model) -> Schema:
    bundle = model.bundle
    if bundle is None:
        untyped: dict[str, Schema] = {name: {} for name in FORMATS}
        return {**_wrapped(untyped, {"type": ["object", "null"]}), "title": model.name}
    signature = bundle.signature
    asked = {
        "dataframe_split": _split(signature),
        "dataframe_records": listed(types.row_object(signature), least=1),
        "instances": _rows(signature),
        "inputs": either([_columns(signature), _rows(signature)]),
    }
    specs: Sequence[Mapping[str, Any]] = (bundle.pyfunc or {}).get("params") or ()
    wrapped = {**_wrapped(asked, _params(specs)), "title": f"{model.name} version {bundle.version}"}
    return {"anyOf": [wrapped, types.row_object(signature)]} if _is_unwrapped(signature) else wrapped


def _wrapped(asked: Mapping[str, Schema], params: Schema) -> Schema:
    """Exactly one of the formats."""
    one = [{"title": name, "required": [name]} for name in asked]
    return {"type": "object", "properties": {**asked, "params": params}, "oneOf": one}


def _params(specs: Sequence[Mapping[str, Any]]) -> Schema:
    """Those of the signature; others are ignored."""
    found = {}
    for spec in specs:
        kind = str(spec.get("type") or "any")
        plain = types.scalar(kind) if kind in ("integer", "long", "float", "double", "string", "boolean") else {}
        found[str(spec.get("name"))] = nullable(plain if spec.get("shape") is None else listed(nullable(plain)))
    return {"type": ["object", "null"], **({"properties": found} if found else {})}


def _split(signature: Signature) -> Schema:
    known = [field.name for field in signature.inputs]
    name = {"enum": known} if known and signature.layout == "columns" else {"type": ["string", "integer"]}
    kinds = [types.value(field) for field in signature.inputs]
    value = either(kinds) if kinds and len(kinds) <= types.MOST_ALTERNATIVES else {}
    return closed(
        {"data": listed({} if signature.layout == "tensors" else listed(value), least=1)},
        {"columns": listed(name), "index": {"type": ["array", "null"]}},
    )


def _rows(signature: Signature) -> Schema:
    rows = types.rows(signature)
    if signature.layout == "columns" and len(signature.inputs) == 1:
        return either([rows, listed(types.value(signature.inputs[0]), least=1)])
    return rows


def _columns(signature: Signature) -> Schema:
    """An object of columns; with a value in each it is one row."""
    if signature.layout == "unknown":
        return {"type": "object"}
    columns = {field.name: listed(types.value(field), least=1) for field in signature.inputs}
    needed = {field.name: columns[field.name] for field in signature.inputs if field.required}
    return either([closed(needed, columns), types.row_object(signature)])


def _examples(model: Model) -> dict[str, Any]:
    """The input example as a frame, and as rows."""
    rows = model.example[:3]
    if not rows or model.bundle is None:
        return {}
    signature = model.bundle.signature
    found: dict[str, Any] = {}
    if isinstance(rows[0], dict):
        found[f"{model.key}: dataframe_records"] = {"dataframe_records": rows}
    names = list(rows[0]) if isinstance(rows[0], dict) else list(signature.names)
    lists = [list(row.values()) if isinstance(row, dict) else row for row in rows]
    if signature.layout == "columns":
        found = {f"{model.key}: dataframe_split": {"dataframe_split": {"columns": names, "data": lists}}, **found}
    return {**found, f"{model.key}: instances": {"instances": rows}}


def _csv(model: Model) -> str:
    """The input example as a table; empty where it does not make one."""
    if model.bundle is None or model.bundle.signature.layout != "columns" or not model.example:
        return ""
    rows = [
        row if isinstance(row, dict) else dict(zip(model.bundle.signature.names, row, strict=False))
        for row in model.example
    ]
    if any(isinstance(value, (list, dict)) for row in rows for value in row.values()):
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[:3])
    return out.getvalue()
