"""Samples: real pictures that ship with scikit-learn, as files of the kind that callers send."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from training.data import Data, Rows

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_SIZE = 32  # of the files; the scans are 8×8 points of 17 greys
SMALLEST, LARGEST = 200, 420  # edges of crops of photographs
JPEG_QUALITY = 90
SEED = 8


def digits() -> Data:
    """1,797 handwritten digits as PNG files, white on black; a fifth of each kind is kept back."""
    scans = load_digits()
    files = [_digit(scan) for scan in scans.images]
    return Data.split(Rows(_frame(files), scans.target.astype(np.int64)), DIGITS, holdout=0.2)


def photographs(count: int, say: Callable[[Sequence[bytes]], np.ndarray], class_names: tuple[str, ...]) -> Data:
    """``count`` crops of two photographs as JPEG files; the label of each is what ``say`` answers, a class of each.

    Every third one is kept back.
    """
    files, kept = crops(count), np.arange(count) % 3 == 2
    return Data(Rows(_frame(files), say(files)), np.flatnonzero(~kept), np.flatnonzero(kept), class_names)


def crops(count: int) -> list[bytes]:
    """Parts of the photographs, of all sizes and places, some mirrored or turned: always the same ones."""
    draw = np.random.default_rng(SEED)
    photos = load_sample_images().images
    return [_crop(photos[place % len(photos)], draw) for place in range(count)]


def _digit(scan: np.ndarray) -> bytes:
    picture = Image.fromarray(np.rint(scan * (255 / 16)).astype(np.uint8))
    return _file(picture.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC), "PNG")


def _crop(photo: np.ndarray, draw: np.random.Generator) -> bytes:
    height, width = draw.integers(SMALLEST, LARGEST, 2)
    top, left = draw.integers(0, photo.shape[0] - height), draw.integers(0, photo.shape[1] - width)
    part = np.rot90(photo[top : top + height, left : left + width], int(draw.integers(4)))
    part = part[:, ::-1] if draw.random() < 0.5 else part
    return _file(Image.fromarray(np.ascontiguousarray(part)), "JPEG", quality=JPEG_QUALITY)


def _file(picture: Image.Image, form: str, **options: int) -> bytes:
    written = io.BytesIO()
    picture.save(written, form, **options)
    return written.getvalue()


def _frame(files: list[bytes]) -> pd.DataFrame:
    return pd.DataFrame({"image": np.array(files, dtype=object)})
