"""OpenAI's embeddings in the document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.openapi.models import Model, parameters
from serving.openapi.parts import (
    JSON,
    PREDICTION_ID,
    Schema,
    answer,
    body,
    closed,
    error_responses,
    errors,
    listed,
    media,
    nullable,
    operation,
    ref,
)

TAG, ERROR = "OpenAI-compatible", "OpenaiError"
STATUSES = (400, 404, 413, 415, 500, 503, 504)
TEXT = {"type": "string"}
ERROR_SCHEMA = closed(
    {"error": closed({"message": TEXT, "type": TEXT, "param": {"type": ["string", "null"]}, "code": TEXT})}
)


def paths(models: Sequence[Model]) -> dict[str, Any]:
    """Embeddings, and the models that make them."""
    texts = [(model.name, text) for model in models if model.text and (text := _text(model)) is not None]
    examples = {f"{name}: one text": {"input": text, "model": name} for name, text in texts}
    embeddings = operation(
        "embeddings",
        TAG,
        "Embeddings: a vector for each text",
        {"200": answer("The vectors.", ref("Embeddings"), PREDICTION_ID), **errors(ERROR, STATUSES)},
        asks=body({JSON: media(ref("EmbeddingsRequest"), examples)}),
        description="Of the model that the body names; without one, of the first that takes texts.",
    )
    listing = closed({"object": {"const": "list"}, "data": listed(ref("OpenaiModel"))})
    listed_models = {"200": answer("Those that make vectors of texts.", listing), **errors(ERROR, (500,))}
    one = {"200": answer("It makes vectors of texts.", ref("OpenaiModel")), **errors(ERROR, (404, 500, 503))}
    return {
        "/v1/embeddings": {"post": embeddings},
        "/v1/models": {"get": operation("openai_models", TAG, "Models of texts", listed_models)},
        "/v1/models/{model}": {
            "get": operation("openai_model", TAG, "One model", one, parameters=parameters(models, text=True))
        },
    }


def schemas(models: Sequence[Model]) -> dict[str, Schema]:
    """What is asked and answered."""
    names = [model.name for model in models if model.text]
    text = {"type": "string", "minLength": 1}
    asked = {
        "input": {"anyOf": [text, listed(text, least=1)], "description": "A text or a list of texts, none empty."},
    }
    optional = {
        "model": nullable({"type": "string"}) if not names else {"enum": [*names, None]},
        "encoding_format": {"enum": ["float", "base64", None]},
        "dimensions": {"type": ["integer", "null"], "minimum": 1, "description": "Only the model's own."},
        "user": {"type": ["string", "null"]},
    }
    vector = {"anyOf": [listed({"type": "number"}), {"type": "string", "contentEncoding": "base64"}]}
    one = closed({"object": {"const": "embedding"}, "index": {"type": "integer", "minimum": 0}, "embedding": vector})
    count = {"type": "integer", "minimum": 0}
    return {
        ERROR: ERROR_SCHEMA,
        "EmbeddingsRequest": closed(asked, optional),
        "Embeddings": closed(
            {
                "object": {"const": "list"},
                "data": listed(one),
                "model": TEXT,
                "usage": closed({"prompt_tokens": count, "total_tokens": count}),
            }
        ),
        "OpenaiModel": closed(
            {"id": TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": TEXT}
        ),
    }


def responses() -> dict[str, Schema]:
    """This protocol's errors."""
    return error_responses(ERROR, STATUSES)


def _text(model: Model) -> str | None:
    """The first text of the model's input example."""
    row: Any = model.example[0] if model.example else None
    while isinstance(row, (list, dict)) and row:
        row = row[0] if isinstance(row, list) else next(iter(row.values()))
    return row if isinstance(row, str) and row else None
