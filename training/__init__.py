"""Model families: each is a module of this package whose ``family(options)`` says what is particular to it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from training.options import Options

if TYPE_CHECKING:
    from training.family import Family


@dataclass(frozen=True)
class Kind:
    """A family as it is listed, without importing what it needs."""

    words: str  # what it learns
    options: tuple[str, ...] = ()  # fields of `Options` that it takes
    libraries: tuple[str, ...] = ()  # what has to be importable beyond the rest of training: `make deep`

    @property
    def missing(self) -> list[str]:
        """The libraries that are not installed."""
        return [library for library in self.libraries if find_spec(library) is None]


# What can be trained: the module's name, which is also the registered model's.
FAMILIES = {
    "iris": Kind("three species of iris from four measurements of the flower (random forest)"),
    "fraud": Kind("card payments that are fraud, one in a hundred (gradient boosting)", ("data",)),
    "images": Kind(
        "what a picture shows (ResNet-50, or a small residual network)",
        ("weights", "precision"),
        ("torch", "transformers", "onnx"),
    ),
    "minilm": Kind(
        "texts as vectors of 384 numbers (all-MiniLM-L6-v2)",
        ("weights", "precision"),
        ("torch", "transformers", "onnx"),
    ),
}


def find(name: str, options: Options | None = None) -> Family:
    """The family called ``name``, one of `FAMILIES`. Raises `training.options.Unusable`."""
    return import_module(f"training.{name}").family(options or Options())
