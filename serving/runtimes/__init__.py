"""Runtimes answer batches: one file each, loaded by the name that a bundle carries.

A runtime module has these functions:

``serves(model, folder)``
    Used by prepare. Whether a version with the MLmodel ``model`` and its files in ``folder`` is for this runtime.
``convert(model, folder, into)``
    Used by prepare. Reads the model's own files in ``folder`` as its MLmodel ``model`` describes them, writes what
    `load` needs into ``into``, and returns what it knows of the model as a `Description`.
    The compiled runtime has neither of these two: its files come from `serving.compile`.
``load(folder)``
    Used by workers. Returns a function from `Batch` to `Prediction`. Heavy imports happen here, not at import.
``check(batch, limits)``
    Only where a small row may ask for much: called with what a caller sent, before anybody else's rows are with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from serving.tensors import Batch, Prediction

# Read when ONNX Runtime is imported, which would otherwise send reports and leave a file of its own in TMPDIR.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

Predictor = Callable[[Batch], Prediction]

# The runtimes that convert, in the order in which they are asked: what a version says of itself goes before flavors.
CONVERTING = ("image", "text", "onnx", "sklearn", "pyfunc")

RUNTIMES = {
    "compiled": "serving.runtimes.compiled",
    "image": "serving.runtimes.image",
    "onnx": "serving.runtimes.onnx",
    "pyfunc": "serving.runtimes.pyfunc",
    "sklearn": "serving.runtimes.sklearn",
    "text": "serving.runtimes.text",
}


@dataclass(frozen=True)
class Limits:
    """What callers may send to models of pictures and of texts; the defaults are those of the settings."""

    image_pixels: int = 50_000_000  # of one picture
    images: int = 32  # in one request
    text_characters: int = 32_768  # of one text
    texts: int = 2_048  # in one request


def runtime(name: str) -> ModuleType:
    """The runtime module called ``name``. Raises KeyError when there is none."""
    return import_module(RUNTIMES[name])


def limited(name: str, predictor: Predictor, limits: Limits) -> Predictor:
    """``predictor`` of the runtime called ``name`` for callers: what is beyond ``limits`` is refused before it."""
    check = getattr(runtime(name), "check", None)
    if check is None:
        return predictor

    def checked(batch: Batch) -> Prediction:
        check(batch, limits)
        return predictor(batch)

    return checked
