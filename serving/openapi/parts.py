"""What an OpenAPI document is made of: small functions that give plain dicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

JSON = "application/json"

# What each status means, whatever the protocol.
STATUSES = {
    400: "The input does not fit; the message names row and column.",
    403: "It is turned off here.",
    404: "No such model or version.",
    409: "The new version is refused; the message says why.",
    413: "The body has more bytes (MAX_BODY_BYTES) or rows (MAX_ROWS, MAX_IMAGES, MAX_TEXTS) than the service takes.",
    415: "The body's content type or encoding is none that this route reads.",
    500: "The model failed on this input, or we did. The log has the details under the request id.",
    502: "The registry does not answer. What is live serves on.",
    503: "No version is live yet, or too many requests wait.",
    504: "The answer was not there in time.",
}

REQUEST_ID, MODEL_VERSION, PREDICTION_ID = "X-Request-Id", "X-Model-Version", "X-Prediction-Id"
HEADERS = {
    REQUEST_ID: {
        "description": "The request's id: the one that was sent in this header, or a new one.",
        "required": True,
        "schema": {"type": "string"},
    },
    MODEL_VERSION: {
        "description": "The version that answered; where none did, the one that would have.",
        "schema": {"type": "string"},
    },
    PREDICTION_ID: {
        "description": "What `POST /feedback` knows this prediction by.",
        "required": True,
        "schema": {"type": "string", "format": "uuid"},
    },
    "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "string"}},
}


def ref(name: str, kind: str = "schemas") -> Schema:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def headers(*names: str) -> dict[str, Schema]:
    """Those that every answer has, and ``names``."""
    return {name: ref(name, "headers") for name in (REQUEST_ID, MODEL_VERSION, *names)}


def closed(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object of these properties and no others."""
    properties = {**required, **(optional or {})}
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: Schema, *, least: int = 0) -> Schema:
    """A list of at least so many items."""
    return {"type": "array", "items": items, **({"minItems": least} if least else {})}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema and "const" not in schema:
        return {**schema, "type": [kind, "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else schema


def either(schemas: Sequence[Schema]) -> Schema:
    """Any of them; each once."""
    distinct: list[Schema] = []
    for schema in schemas:
        if schema not in distinct:
            distinct.append(schema)
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def body(content: Mapping[str, Schema], *, required: bool = True) -> Schema:
    """A request's body by content type."""
    return {"required": required, "content": dict(content)}


def media(schema: Schema, examples: Mapping[str, Any] | None = None) -> Schema:
    """A content type's schema, with examples by name."""
    shown = {name: {"value": value} for name, value in (examples or {}).items()}
    return {"schema": schema, **({"examples": shown} if shown else {})}


def answer(description: str, schema: Schema | None, *names: str, kind: str = JSON) -> Schema:
    """A response, with the headers that every answer has and those in ``names``; no schema for what is no JSON."""
    content = {kind: {} if schema is None else {"schema": schema}}
    return {"description": description, "headers": headers(*names), "content": content}


def errors(shape: str, statuses: Collection[int]) -> dict[str, Schema]:
    """References to `error_responses` of a protocol."""
    return {str(status): ref(f"{shape}{status}", "responses") for status in statuses}


def error_responses(shape: str, statuses: Collection[int]) -> dict[str, Schema]:
    """Of a protocol whose errors are the schema ``shape``, for the document's components."""
    found = {}
    for status in statuses:
        retry = ("Retry-After",) if status == 503 else ()
        found[f"{shape}{status}"] = answer(STATUSES[status], ref(shape), *retry)
    return found


def operation(
    name: str,
    tag: str,
    summary: str,
    responses: Mapping[str, Schema],
    *,
    asks: Schema | None = None,
    parameters: Sequence[Schema] = (),
    description: str = "",
) -> Schema:
    """What one method of a path does; ``asks`` is the request's body."""
    return {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        **({"description": description} if description else {}),
        **({"parameters": list(parameters)} if parameters else {}),
        **({"requestBody": asks} if asks else {}),
        "responses": dict(responses),
    }
