"""Pictures into classes: a graph, its labels and how a picture is made ready for it, in the model's own folder.

The folder (see `serving.runtimes.artifacts`) has ``model.onnx`` (``pixel_values`` float32 of shape (rows, channels,
height, width) in, ``logits`` (rows, classes) out) and ``image.json``: ``mode`` (RGB or L), ``resize`` (the shorter
side, or [height, width]), ``resample``, ``crop`` ([height, width] of the centre, or null), ``rescale``, ``mean``,
``std``, ``top_k``, ``precision``, ``agreement``, ``weights``. The classes' names are in the MLmodel's metadata.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serving.errors import InvalidInput, TooManyRows
from serving.runtimes import Limits, artifacts, pictures
from serving.tensors import Batch, Classes, Description, Prediction

NAME = "image"
INPUT, OUTPUT = "pixel_values", "logits"
CHANNELS = {"RGB": 3, "L": 1}
RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
SCALED_PIXELS = 16_000_000  # at most, of a picture made smaller or larger; only one that is a mere line comes to more
EXAMPLE_SIZE = 32


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what the graph takes. ``resize`` is the shorter side, or height and width."""

    mode: str
    resize: int | tuple[int, int]
    resample: str
    crop: tuple[int, int] | None
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preprocessing:
        """What ``image.json`` says. Raises `VersionRefused`."""
        try:
            mode, resample = content["mode"], content["resample"]
            resize, crop = content["resize"], content["crop"]
            made = cls(
                mode,
                resize if type(resize) is int else _size(resize),
                resample,
                None if crop is None else _size(crop),
                float(content["rescale"]),
                tuple(map(float, content["mean"])),
                tuple(map(float, content["std"])),
            )
            fits = len(made.mean) == len(made.std) == CHANNELS[mode] and resample in RESAMPLE and made._crops()
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise artifacts.refused("its image.json does not say how a picture is made ready")
        return made

    def _crops(self) -> bool:
        """Whether the crop lies within every picture."""
        height, width = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        return height > 0 and width > 0 and (self.crop is None or (self.crop[0] <= height and self.crop[1] <= width))

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height that a picture is scaled to."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        shorter, longer = min(width, height), max(width, height)
        scaled = int(self.resize * longer / shorter)
        return (self.resize, scaled) if width <= height else (scaled, self.resize)

    @property
    def example(self) -> str:
        """A small grey picture, as base64."""
        from PIL import Image

        file = io.BytesIO()
        Image.new("L", (EXAMPLE_SIZE, EXAMPLE_SIZE), 128).save(file, "PNG")
        return base64.b64encode(file.getvalue()).decode()


def _size(plain: Any) -> tuple[int, int]:
    height, width = plain
    if not (type(height) is int and type(width) is int and height > 0 and width > 0):
        raise ValueError("no size")
    return height, width


def serves(model: Mapping[str, Any], folder: Path) -> bool:
    """A version that says where its graph is, and how pictures are made ready for it."""
    return artifacts.find(model, NAME, folder) is not None


def convert(model: Mapping[str, Any], folder: Path, into: Path) -> Description:
    """Copy the model's folder, and see that everything in it fits together."""
    place = artifacts.copy(model, NAME, folder, into)
    content = artifacts.config(place, NAME)
    names, top_k = (model.get("metadata") or {}).get("class_names"), content.get("top_k")
    if not isinstance(names, list) or not names:
        raise artifacts.refused("its metadata name no classes")
    if type(top_k) is not int or top_k < 1:
        raise artifacts.refused("its image.json says no top_k: expected a whole number of at least 1")
    graph = artifacts.graph(place, {INPUT}, OUTPUT)
    classes = next(given.shape for given in graph.get_outputs() if given.name == OUTPUT)[-1]
    if isinstance(classes, int) and classes != len(names):
        raise artifacts.refused(f"its graph knows {classes} classes, its metadata name {len(names)}")
    return Description(
        artifacts.signature(model, NAME, "binary"),
        Classes.of(range(len(names)), [str(name) for name in names]),
        tolerance=artifacts.TOLERANCES[content["precision"]],
        variant={**artifacts.variant(content), "top_k": min(top_k, len(names))},
        example=[Preprocessing.from_json(content).example],
    )


def check(batch: Batch, limits: Limits) -> None:
    """Raises `TooManyRows`, or `InvalidInput` for the first row that is no picture, or too large a one.

    Only the heads of the pictures are read for it.
    """
    if batch.rows > limits.images:
        raise TooManyRows(f"{batch.rows} pictures; at most {limits.images} are answered at once (MAX_IMAGES)")
    for row, data in enumerate(batch.columns[0]):
        with _at(batch, row):
            pictures.check(data, limits.image_pixels)


def load(folder: Path) -> Callable[[Batch], Prediction]:
    """Class positions, and the probability of each class. Pictures are read and answered one after the other."""
    place = folder / NAME
    preprocessing = Preprocessing.from_json(artifacts.config(place, NAME))
    graph = artifacts.graph(place, {INPUT}, OUTPUT)

    def predict(batch: Batch) -> Prediction:
        logits = []
        for row, data in enumerate(batch.columns[0]):
            with _at(batch, row):
                pixels = prepared(data, preprocessing)
            logits.append(graph.run([OUTPUT], {INPUT: pixels[np.newaxis]})[0][0])
        probabilities = softmax(np.stack(logits))
        return Prediction(probabilities.argmax(axis=1), probabilities)

    return predict


@contextmanager
def _at(batch: Batch, row: int) -> Iterator[None]:
    """What is wrong with a picture is said with its row."""
    try:
        yield
    except InvalidInput as err:
        raise InvalidInput(err.what, row=row, column=batch.names[0]) from None


def prepared(data: bytes, how: Preprocessing) -> np.ndarray:
    """The picture as the graph takes it: float32 of shape (channels, height, width). Raises `InvalidInput`."""
    pixels = pictures.read(data, how.mode, lambda picture: _scaled(picture, how))
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    values: np.ndarray = (pixels * np.float32(how.rescale) - mean) / std
    return np.ascontiguousarray(values[np.newaxis] if values.ndim == 2 else values.transpose(2, 0, 1))


def _scaled(picture: Any, how: Preprocessing) -> np.ndarray:
    """Its pixels, float32 of shape (height, width) or (height, width, channels), in the size that the graph takes."""
    from PIL import Image

    size = how.size(*picture.size)
    if math.prod(size) > SCALED_PIXELS:
        raise InvalidInput(f"is a picture of {picture.width} × {picture.height} pixels, too narrow to be scaled")
    scaled = picture if picture.size == size else picture.resize(size, Image.Resampling[how.resample.upper()])
    return np.asarray(scaled if how.crop is None else scaled.crop(_centre(size, how.crop)), np.float32)


def _centre(size: tuple[int, int], crop: tuple[int, int]) -> tuple[int, int, int, int]:
    (width, height), (rows, columns) = size, crop
    left, top = (width - columns) // 2, (height - rows) // 2
    return left, top, left + columns, top + rows


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64; each row sums to 1."""
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    chances: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return chances
