"""Pretrained: a picture classifier of transformers as torch runs it, and how its own processor makes pictures ready."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from training import samples, weights
from training.export import one_thread
from training.options import Unusable
from training.pyfunc_image import as_mode, pixels
from training.weights import Weights

TRIED = 4  # pictures
CLOSE = 1e-5  # by which a point may differ from what the processor makes of it
WARPED_FROM = 384  # ConvNeXT's processor, which ResNet uses too, crops smaller pictures and warps larger ones


class Logits(torch.nn.Module):
    """The classifier with pictures in and logits out, nothing else."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values: Any) -> Any:
        return self.classifier(pixel_values=pixel_values).logits


@dataclass(frozen=True)
class Pretrained:
    """What transformers wrote into a folder, read from safetensors; it answers each picture once."""

    weights: Weights
    _known: dict[bytes, np.ndarray] = field(default_factory=dict)

    @cached_property
    def module(self) -> Logits:
        weights.quiet()
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            classifier = AutoModelForImageClassification.from_pretrained(
                self.weights.folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as err:
            raise Unusable(f"{self.weights.words}: no picture classifier: {str(err).splitlines()[0][:150]}") from err
        return Logits(classifier).eval()

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """By place; those that several classes share get their number, as ImageNet's two cranes."""
        config = self.module.classifier.config
        names = [str(config.id2label[place]) for place in range(config.num_labels)]
        counted = Counter(names)
        return tuple(name if counted[name] == 1 else f"{name} ({place})" for place, name in enumerate(names))

    @cached_property
    def ready(self) -> dict[str, Any]:
        """The processor's settings as ``image.json`` has them. Raises `Unusable` where they would not do the same."""
        weights.quiet()
        from transformers import AutoImageProcessor

        try:
            processor = AutoImageProcessor.from_pretrained(self.weights.folder, local_files_only=True, backend="pil")
        except (OSError, ValueError, KeyError) as err:
            raise Unusable(f"{self.weights.words}: no processor: {str(err).splitlines()[0][:150]}") from err
        mode = "L" if getattr(self.module.classifier.config, "num_channels", 3) == 1 else "RGB"
        found = settings_of(processor, mode)
        for file in samples.crops(TRIED):
            picture = as_mode(Image.open(io.BytesIO(file)), mode)
            theirs = np.asarray(processor(picture, return_tensors="np")["pixel_values"][0])
            ours = pixels(file, found)
            if theirs.shape != ours.shape or np.abs(theirs - ours).max() > CLOSE:
                raise Unusable(f"{self.weights.words}: its processor does what cannot be written down here")
        return found

    def probabilities(self, files: Sequence[bytes]) -> np.ndarray:
        """Of each class, (pictures, classes)."""
        for file in set(files) - self._known.keys():
            self._known[file] = probabilities(self.module, self.ready, [file])
        return np.concatenate([self._known[file] for file in files])

    def first_classes(self, files: Sequence[bytes]) -> np.ndarray:
        """The likeliest class of each picture."""
        likeliest: np.ndarray = self.probabilities(files).argmax(axis=1)
        return likeliest


def probabilities(module: Any, ready: Mapping[str, Any], files: Sequence[bytes]) -> np.ndarray:
    """What torch answers to pictures, one at a time: (pictures, classes)."""
    with one_thread(), torch.inference_mode():
        rows = [module(torch.from_numpy(pixels(file, ready)[np.newaxis])).softmax(dim=1) for file in files]
    answered: np.ndarray = torch.cat(rows).numpy()
    return answered


def settings_of(processor: Any, mode: str) -> dict[str, Any]:
    """A processor's settings as ``image.json`` has them."""
    channels = len(mode)
    size, crop = _plain(processor.size), _plain(getattr(processor, "crop_size", None))
    resize: Any = size.get("shortest_edge") or [size.get("height"), size.get("width")]
    cropped = [crop["height"], crop["width"]] if getattr(processor, "do_center_crop", None) and crop else None
    if getattr(processor, "crop_pct", None) and isinstance(resize, int):
        edge = resize
        cropped = [edge, edge] if edge < WARPED_FROM else None
        resize = int(edge / processor.crop_pct) if edge < WARPED_FROM else [edge, edge]
    normal = processor.do_normalize
    return {
        "mode": mode,
        "resize": resize if processor.do_resize else None,
        "resample": Image.Resampling(int(processor.resample)).name.lower(),
        "crop": cropped,
        "rescale": float(processor.rescale_factor) if processor.do_rescale else 1.0,
        "mean": [float(value) for value in processor.image_mean] if normal else [0.0] * channels,
        "std": [float(value) for value in processor.image_std] if normal else [1.0] * channels,
    }


def _plain(size: Any) -> dict[str, int]:
    return {name: value for name, value in dict(size or {}).items() if value is not None}
