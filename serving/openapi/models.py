"""The models of a service as its document describes them: what is live, and how it is called there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.bundle import Bundle
from serving.openapi.parts import Schema, either, ref

NO_COMPONENT = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Model:
    """A model: its live version's bundle, or None; ``key`` begins the names of its schemas."""

    name: str
    key: str
    bundle: Bundle | None
    text: bool = False  # whether OpenAI's protocol serves it

    @property
    def example(self) -> list[Any]:
        """Rows of the version's input example; empty where it has none."""
        return list(self.bundle.example["features"]) if self.bundle and self.bundle.example else []

    def component(self, what: str) -> str:
        """How its schema of ``what`` is called."""
        return f"{self.key}.{what}"


def keyed(names: Sequence[str]) -> list[str]:
    """Names as components may be called, each once."""
    plain = [NO_COMPONENT.sub("_", name) for name in names]
    return [key if plain.count(key) == 1 else f"{key}_{place}" for place, key in enumerate(plain)]


def of_any(models: Sequence[Model], what: str) -> Schema:
    """The schemas of ``what``, one for each model."""
    return either([ref(model.component(what)) for model in models])


def parameters(models: Sequence[Model], *, version: bool = False, text: bool = False) -> list[Schema]:
    """The path's: the model, and its version."""
    names = [model.name for model in models if model.text or not text]
    found = [_parameter("model", "A model that this service serves.", names)]
    if version:
        live = [model.bundle.version for model in models if model.bundle is not None]
        found.append(_parameter("version", "Its live version; another is not found (404).", live))
    return found


def _parameter(name: str, description: str, values: Sequence[str]) -> Schema:
    known = list(dict.fromkeys(values))
    shown = {"enum": known, "default": known[0]} if known else {}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string", **shown},
        **({"example": known[0]} if known else {}),
    }
