"""The images family: what a picture shows, by ResNet-50 or another classifier of transformers, or by a small network.

Pretrained weights learn nothing here: what is registered is their graph and how the model's own processor makes
pictures ready, and the gate asks for the answers that torch gives. Where there are none, a small residual network
learns handwritten digits, so that everything behind it is tried on learned weights; it says of itself what it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mlflow.types import DataType, TensorSpec

from serving.tensors import Prediction
from training import pictures, samples, weights
from training.agreement import of_probabilities
from training.data import Data, Rows
from training.export import export, quantise_pictures
from training.family import Family
from training.gate import Rule
from training.options import Options, Unusable
from training.packed import GRAPH, Packed, about
from training.pretrained import Pretrained, probabilities
from training.pyfunc_image import Classifier, pixels
from training.residual import learned

DEFAULT = "microsoft/resnet-50"
SMALL = "small residual network, trained on scikit-learn's handwritten digits (8×8 pictures), not ResNet-50"
CALIBRATION = 128  # pictures at most, of those that are learned from
COMPARED = 256
PHOTOGRAPHS = 48
TOP_K = 5

Answer = Callable[[Sequence[bytes]], np.ndarray]  # pictures to the chances of their classes

# How the small network has its pictures made ready; mean and deviation are those of the digits.
SMALL_PICTURES = {
    **{"mode": "L", "resize": [16, 16], "resample": "bilinear", "crop": None},
    **{"rescale": 1 / 255, "mean": [0.3], "std": [0.35]},
}
# The least share of pictures with torch's first class, and how far a chance may be from torch's.
AGREEMENT = {"fp32": (0.99, 1e-3), "int8": (0.85, 0.25)}


@dataclass(frozen=True)
class Learner:
    """What learns the digits: `fit` gives the small network in a folder of its own."""

    params: Mapping[str, Any]
    seed: int
    words: str

    def fit(self, inputs: Any, labels: np.ndarray) -> Classifier:
        files = inputs["image"].tolist()
        ready = np.stack([pixels(file, SMALL_PICTURES) for file in files])
        sizes = {"classes": len(samples.DIGITS), "width": self.params["width"], "epochs": self.params["epochs"]}
        network = learned(ready, labels, **sizes, seed=self.seed)
        return _packed(network, SMALL_PICTURES, self.params["precision"], self.words, files, _torch(network))


@dataclass(frozen=True)
class Exporter:
    """What a pretrained model is written by; it learns nothing."""

    original: Pretrained
    precision: str

    def fit(self, inputs: Any, labels: np.ndarray) -> Classifier:  # noqa: ARG002
        files = inputs["image"].tolist()
        original = self.original
        words = original.weights.words
        return _packed(original.module, original.ready, self.precision, words, files, original.probabilities)


FLAVOR = Packed(
    kind="image",
    type=DataType.binary,
    output=TensorSpec(np.dtype(np.int64), (-1,), "class_id"),
    code="pyfunc_image",
    load_folder=Classifier,
    answered=lambda chances: Prediction(chances.argmax(axis=1), chances),
    packages=("mlflow", "numpy", "onnxruntime", "pandas", "pillow"),
)


def family(options: Options) -> Family:
    """ResNet-50 where it can be had, else the small network; or what ``options`` name. Raises `Unusable`."""
    if options.weights == weights.NONE:
        return _small(options.precision, SMALL)
    if options.weights:
        return _pretrained(options.precision, Pretrained(weights.find(options.weights)))
    try:
        found = weights.find(DEFAULT)
    except Unusable as err:
        return _small(options.precision, f"{SMALL}, because {err} or --weights none")
    return _pretrained(options.precision, Pretrained(found))


def _small(precision: str, words: str) -> Family:
    return Family(
        name="images",
        data=samples.digits,
        candidates=({"weights": weights.NONE, "precision": precision, "width": 16, "epochs": 6},),
        make=lambda params, seed: Learner(params, seed, words),
        rules=(
            Rule("accuracy", limit=0.95, tolerance=0.015),
            Rule("log_loss", limit=0.2, tolerance=0.05, lower_is_better=True),
        ),
        folds=0,
        flavor=FLAVOR,
        pictures=_confusion,
        about=about,
        compiles=False,
    )


def _pretrained(precision: str, original: Pretrained) -> Family:
    least, most = AGREEMENT[precision]
    return Family(
        name="images",
        data=lambda: samples.photographs(PHOTOGRAPHS, original.first_classes, original.class_names),
        candidates=({"weights": original.weights.words, "precision": precision},),
        make=lambda params, seed: Exporter(original, precision),  # noqa: ARG005
        rules=(
            Rule("top1_agreement", limit=least, tolerance=1 - least),
            Rule("probability_difference", limit=most, tolerance=most, lower_is_better=True),
        ),
        folds=0,
        flavor=FLAVOR,
        measure=_measure(original),
        pictures=lambda model, data: {},  # noqa: ARG005 - there is no truth to draw
        about=about,
        compiles=False,
    )


def _measure(original: Pretrained) -> Callable[[Prediction, Rows, Sequence[str]], dict[str, float]]:
    """How far answers are from torch's, which answers the same rows."""

    def measured(prediction: Prediction, rows: Rows, _: Sequence[str]) -> dict[str, float]:
        chances = original.probabilities(rows.inputs["image"].tolist())
        return of_probabilities(np.asarray(prediction.probabilities), chances, "torch in fp32").numbers

    return measured


def _confusion(model: Classifier, data: Data) -> dict[str, Any]:
    answers = SimpleNamespace(predict=lambda inputs: FLAVOR.predict(model, inputs).values)
    return {"confusion_matrix.png": pictures.confusion(answers, data)}


def _torch(network: Any) -> Answer:
    return lambda files: probabilities(network, SMALL_PICTURES, files)


def _packed(
    module: Any, ready: Mapping[str, Any], precision: str, words: str, files: Sequence[bytes], torchs: Answer
) -> Classifier:
    """The module as a graph in ``precision``, compared with ``torchs`` answers to pictures that calibrated nothing."""

    def write(folder: Path) -> dict[str, Any]:
        content = {**ready, "top_k": TOP_K, "precision": precision, "agreement": None, "weights": words}
        calibration = files[0 :: max(2, len(files) // CALIBRATION)]
        compared = files[1 :: max(2, len(files) // COMPARED)]
        _write_graph(module, folder / GRAPH, precision, [pixels(file, ready) for file in calibration])
        (folder / "image.json").write_text(json.dumps(content), encoding="utf-8")
        found = of_probabilities(Classifier(folder)(compared), torchs(compared), "torch in fp32")
        return content | {"agreement": found.as_json()}

    return FLAVOR.pack(write)


def _write_graph(module: Any, into: Path, precision: str, calibration: Sequence[np.ndarray]) -> None:
    plain = into if precision == "fp32" else into.with_name("plain.onnx")
    example = {"pixel_values": torch.from_numpy(calibration[0][np.newaxis])}
    export(module, example, "logits", plain, free={"pixel_values": {0: "rows"}, "logits": {0: "rows"}})
    if plain != into:
        quantise_pictures(plain, into, [{"pixel_values": one[np.newaxis]} for one in calibration])
        plain.unlink()
