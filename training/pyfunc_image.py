"""What a picture shows, as MLflow itself runs a version: logged as code, with the model's folder as its artifact.

It needs MLflow with pandas, NumPy, ONNX Runtime and Pillow, and nothing of this project: a copy of it travels with the
version.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import onnxruntime
import pandas as pd
from mlflow.pyfunc.model import PythonModel
from PIL import Image, ImageOps


def pixels(content: bytes, how: Mapping[str, Any]) -> np.ndarray:
    """An encoded picture as float32 of shape (channels, height, width), made ready as ``how`` says (``image.json``)."""
    with Image.open(io.BytesIO(content)) as file:
        picture = as_mode(ImageOps.exif_transpose(file), how["mode"])
    if how["resize"] is not None:
        picture = picture.resize(_size(picture, how["resize"]), Image.Resampling[how["resample"].upper()])
    array = np.asarray(picture)
    if how["crop"] is not None:
        array = _crop(array, *how["crop"])
    array = array.astype(np.float32) * np.float32(how["rescale"])
    array = (array - np.asarray(how["mean"], np.float32)) / np.asarray(how["std"], np.float32)
    return np.atleast_3d(array).transpose(2, 0, 1)


def as_mode(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in ``mode``; 16 bits a pixel are scaled to 8, where Pillow alone would cut them off."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return picture if picture.mode == mode else picture.convert(mode)


def _size(picture: Image.Image, wanted: Any) -> tuple[int, int]:
    """Width and height: ``wanted`` is the shortest edge, or (height, width)."""
    if not isinstance(wanted, int):
        return wanted[1], wanted[0]
    width, height = picture.size
    longest = int(wanted * max(width, height) / min(width, height))
    return (wanted, longest) if width <= height else (longest, wanted)


def _crop(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of it; what is smaller gets black around it."""
    short = [max(0, wanted - there) for wanted, there in ((height, array.shape[0]), (width, array.shape[1]))]
    around = [(lack - lack // 2, lack // 2) for lack in short] + [(0, 0)] * (array.ndim - 2)
    array = np.pad(array, around)
    top, left = (array.shape[0] - height) // 2, (array.shape[1] - width) // 2
    return array[top : top + height, left : left + width]


class Classifier:
    """What is in ``folder``: ``model.onnx`` and ``image.json``."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.about = json.loads((folder / "image.json").read_text(encoding="utf-8"))
        self._graph = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])

    def __call__(self, pictures: Sequence[bytes]) -> np.ndarray:
        """The probability of each class: float32 of shape (pictures, classes)."""
        return np.concatenate([self._answer(pixels(content, self.about)) for content in pictures])

    def _answer(self, one: np.ndarray) -> np.ndarray:
        logits = self._graph.run(["logits"], {"pixel_values": one[np.newaxis]})[0]
        powers: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


class Images(PythonModel):
    """One column ``image`` of encoded pictures; answers with the place of the likeliest class among ``class_names``."""

    def load_context(self, context: Any) -> None:
        """The classifier in the artifact ``image``."""
        self._classifier = Classifier(Path(context.artifacts["image"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ARG002
        """int64 of shape (rows,)."""
        return self._classifier([bytes(content) for content in model_input["image"]]).argmax(axis=1)


mlflow.models.set_model(Images())
