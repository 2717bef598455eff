"""Operations in the document: probes, what is live, reload, labels, metrics, and the document itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from serving.openapi.models import Model, parameters
from serving.openapi.parts import (
    JSON,
    STATUSES,
    Schema,
    answer,
    body,
    closed,
    errors,
    listed,
    media,
    operation,
    ref,
)
from serving.openapi.simple import ERROR

TAG, DOCS_TAG = "operations", "documentation"
LOOKED = (404, 500, 502, 503, 504)
TEXT = {"type": "string"}
TEXT_OR_NULL = {"type": ["string", "null"]}
COUNT = {"type": "integer", "minimum": 0}
ANYTHING: Schema = {}


def paths(models: Sequence[Model], files: Collection[str]) -> dict[str, Any]:
    """All that is not a protocol's; ``files`` are those that the pages are made of."""
    return {**_probes(), **_models(models), **_feedback(), **_documentation(files)}


def _probes() -> dict[str, Any]:
    alive = answer("It does.", closed({"status": {"const": "alive"}}))
    metrics = {**answer("Prometheus' text format, or OpenMetrics where the caller asks for it.", None)}
    kinds = ("text/plain", "application/openmetrics-text")
    metrics["content"] = {kind: {"schema": TEXT} for kind in kinds}
    wanted = {
        "name": "name[]",
        "in": "query",
        "description": "Only these.",
        "schema": listed(TEXT),
        "explode": True,
    }
    done = {"200": metrics, **errors(ERROR, (500,))}
    return {
        "/livez": {"get": operation("livez", TAG, "Does the process answer?", {"200": alive, **errors(ERROR, (500,))})},
        "/readyz": {"get": _readiness("readyz", "Is every model live?", closed({"status": TEXT}))},
        "/health": {
            "get": _readiness("health", "The same, in detail", closed({"status": TEXT, "models": listed(ref("Line"))}))
        },
        "/metrics": {"get": operation("metrics", TAG, "Metrics of all workers", done, parameters=[wanted])},
    }


def _readiness(name: str, summary: str, schema: Schema) -> Schema:
    responses = {"200": answer("Yes.", schema), "503": answer(STATUSES[503], schema, "Retry-After")}
    return operation(name, TAG, summary, {**responses, **errors(ERROR, (500,))})


def _models(models: Sequence[Model]) -> dict[str, Any]:
    named = parameters(models)
    listing = {"200": answer("Each in a line.", closed({"models": listed(ref("Line"))})), **errors(ERROR, (500,))}
    return {
        "/models": {"get": operation("models", TAG, "All models", listing)},
        "/model/info": {"get": _info("info", [])},
        "/models/{model}": {"get": _info("info_model", named)},
        "/model/drift": {"get": _drift("drift", [])},
        "/models/{model}/drift": {"get": _drift("drift_model", named)},
        "/model/compare": {"get": _compare("compare", [])},
        "/models/{model}/compare": {"get": _compare("compare_model", named)},
        "/model/reload": {"post": _reload("reload", [])},
        "/models/{model}/reload": {"post": _reload("reload_model", named)},
    }


def _info(name: str, where: list[Schema]) -> Schema:
    done = {"200": answer("The live version.", ref("Info")), **errors(ERROR, (404, 500, 503))}
    return operation(name, TAG, "What is live", done, parameters=where)


def _drift(name: str, where: list[Schema]) -> Schema:
    done = {"200": answer("By feature and output.", ref("Drift")), **errors(ERROR, (404, 500, 503))}
    return operation(name, TAG, "How far the rows lie from training", done, parameters=where)


def _compare(name: str, where: list[Schema]) -> Schema:
    done = {"200": answer("Side by side.", ref("Comparison")), **errors(ERROR, (400, 404, 500))}
    margin = {
        "name": "margin",
        "in": "query",
        "description": "By how much the challenger may be worse, in units of the metric that decides.",
        "schema": {"type": "number", "minimum": 0, "default": 0},
    }
    return operation(name, TAG, "Champion and challenger", done, parameters=[*where, margin])


def _reload(name: str, where: list[Schema]) -> Schema:
    done = {"200": answer("All workers serve it.", ref("Reloaded")), **errors(ERROR, (*LOOKED, 409, 413))}
    return operation(name, TAG, "Look at the registry now", done, parameters=where)


def _feedback() -> dict[str, Any]:
    settled = closed(dict.fromkeys(("accepted", "corrected", "repeated", "stale"), COUNT) | {"unknown": listed(TEXT)})
    done = {
        "200": answer("What came of it.", settled),
        "202": answer("On disk; the database is slow or gone.", closed({"pending": COUNT})),
        **errors(ERROR, (400, 404, 413, 415, 500, 503)),
    }
    example = {"prediction_id": "019aa6f0-5b5e-7c1e-9d3c-0f4f6f2f9a51", "label": "setosa"}
    asks = body({JSON: media({"anyOf": [ref("Label"), listed(ref("Label"), least=1)]}, {"one label": example})})
    return {"/feedback": {"post": operation("feedback", TAG, "What turned out to be true", done, asks=asks)}}


def _documentation(files: Collection[str]) -> dict[str, Any]:
    unchanged = {"description": "As it was.", "headers": answer("", None)["headers"]}
    failed = {"304": unchanged, **errors(ERROR, (500,))}
    page = answer("A page.", TEXT, kind="text/html")
    document = answer("This document.", {"type": "object"}, "ETag")
    asset = {**answer("A file.", None), "content": {"*/*": {}}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": sorted(files)}}
    found = {**failed, **errors(ERROR, (404,))}
    return {
        "/openapi.json": {"get": operation("openapi", DOCS_TAG, "This document", {"200": document, **failed})},
        "/docs": {"get": operation("docs", DOCS_TAG, "Swagger UI", {"200": page, **failed})},
        "/redoc": {"get": operation("redoc", DOCS_TAG, "Redoc", {"200": page, **failed})},
        "/assets/{name}": {
            "get": operation("asset", DOCS_TAG, "Part of a page", {"200": asset, **found}, parameters=[name])
        },
    }


# --- schemas ---------------------------------------------------------------------------------------------------------


def schemas() -> dict[str, Schema]:
    """What operations ask and answer."""
    workers = closed({"acknowledged": COUNT, "total": COUNT})
    scalar = {"type": ["boolean", "number", "string"]}
    return {
        "Line": _line(workers),
        "Info": _whole_info(workers),
        "Drift": {
            "type": "object",
            "required": ["name", "version", "verdict", "drifted", "shifted", "features", "outputs"],
            "properties": {
                **dict.fromkeys(("name", "version", "verdict"), TEXT),
                **{name: listed(TEXT) for name in ("drifted", "shifted")},
                **{name: listed({"type": "object"}) for name in ("features", "outputs")},
            },
        },
        "Comparison": _comparison(),
        "Reloaded": closed(
            {
                "model": closed({"name": TEXT, "version": TEXT_OR_NULL, "alias": TEXT_OR_NULL}),
                "changed": {"type": "boolean"},
                "previous_version": TEXT_OR_NULL,
                "workers": workers,
                "duration_s": {"type": "number"},
            }
        ),
        "Label": closed(
            {
                "prediction_id": {"type": "string", "format": "uuid"},
                "label": {"anyOf": [scalar, listed(scalar, least=1)]},
            },
            {
                "observed_at": {"type": ["string", "number", "null"]},
                "row": {"type": ["integer", "null"], "minimum": 0},
            },
        ),
    }


def _comparison() -> Schema:
    check = closed({"what": TEXT, "passed": {"type": ["boolean", "null"]}, "text": TEXT})
    known = {
        **dict.fromkeys(("model", "since", "part"), TEXT),
        **{name: {"type": "object"} for name in ("champion", "challenger")},
        **{name: {"type": ["object", "null"]} for name in ("agreement", "gain")},
        "verdict": closed(
            {"decision": {"enum": ["promote", "keep", "wait"]}, "labels_needed": COUNT, "checks": listed(check)}
        ),
    }
    return {"type": "object", "properties": known, "required": list(known)}


def headers() -> dict[str, Schema]:
    """That only documents have."""
    return {"ETag": {"description": "Changes with the document.", "schema": TEXT}}


def _line(workers: Schema) -> Schema:
    texts = dict.fromkeys(("version", "alias", "source", "fallback", "runtime", "loaded_at", "error"), TEXT_OR_NULL)
    objects = {name: {"type": "object"} for name in ("costs", "registry")}
    known = {"workers": workers, **objects, "refused": {"type": ["object", "null"]}}
    return closed({"ready": {"type": "boolean"}, "name": TEXT}, {**texts, **known})


def _whole_info(workers: Schema) -> Schema:
    known = {
        **dict.fromkeys(("name", "version", "source", "digest", "runtime", "loaded_at"), TEXT),
        **dict.fromkeys(("alias", "fallback", "run_id"), TEXT_OR_NULL),
        **{name: {"type": "boolean"} for name in ("digest_recorded", "batching")},
        **{name: {"type": "object"} for name in ("proof", "signature", "registry", "service", "costs")},
        **{name: {"type": ["object", "null"]} for name in ("cost", "quality", "refused", "variant", "challenger")},
        "classes": {"type": ["array", "null"], "items": TEXT},
        "example": {"type": ["array", "null"]},
        "workers": workers,
    }
    return {"type": "object", "properties": known, "required": list(known)}
