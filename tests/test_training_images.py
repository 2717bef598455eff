"""What a picture shows: exported graphs answer as torch does, pictures are made ready as the processor does it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import untrained
from PIL import Image
from registries import empty_registry
from rich.console import Console

from serving import mlmodel, reference
from serving.runtimes import runtime
from serving.settings import ROOT, Settings
from serving.tensors import Batch

untrained.needed()

import mlflow
import pandas as pd
import torch
from mlflow import MlflowClient
from transformers import AutoImageProcessor, AutoModelForImageClassification

from training import samples, tracking, weights
from training.images import FLAVOR, SMALL_PICTURES, family
from training.options import Options, Unusable
from training.pipeline import Plan, train
from training.pretrained import Pretrained
from training.pyfunc_image import Classifier, pixels
from training.report import Report
from training.residual import learned

CLASSES = ("cat", "crane (1)", "dog", "crane (3)")
LONGEST = untrained.PROCESSOR | {"size": {"shortest_edge": 32, "longest_edge": 34}}
LONGEST |= {"image_processor_type": "ViTImageProcessor", "crop_pct": None}
SIZE = {"size": {"height": 20, "width": 30}, "image_processor_type": "ViTImageProcessor", "crop_pct": None}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained.resnet(tmp_path_factory.mktemp("resnet"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


def file_of(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    written = io.BytesIO()
    picture.save(written, form, **options)
    return written.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> Image.Image:
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else (size[1], size[0])
    return Image.frombytes(mode, size, np.random.default_rng(0).integers(0, 256, shape, np.uint8).tobytes())


# --- ready -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"resample": 2, "crop_pct": 0.9},
        {"size": {"shortest_edge": 400}},  # large enough to be warped instead of cropped
        SIZE,
        SIZE | {"do_normalize": False, "resample": 0},
        SIZE | {"do_center_crop": True, "crop_size": {"height": 33, "width": 25}},  # black above and below
        SIZE | {"do_resize": False, "do_rescale": False},
    ],
)
@pytest.mark.parametrize("size", [(50, 40), (40, 57), (300, 40)])
def test_pictures_are_as_the_processor_makes_them(processor: Any, size: tuple[int, int], tmp_path: Path) -> None:
    folder = untrained.resnet(tmp_path / "resnet", **processor)
    ready = Pretrained(weights.find(str(folder))).ready
    picture = noise(size=size)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")(picture, return_tensors="np")["pixel_values"][0]
    assert np.abs(pixels(file_of(picture), ready) - theirs).max() <= 1e-5


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_other_modes_are_converted(mode: str) -> None:
    picture = noise().convert(mode)
    ready = {**SMALL_PICTURES, "mode": "RGB", "mean": [0.0] * 3, "std": [1.0] * 3, "resize": None}
    form = "TIFF" if mode == "CMYK" else "PNG"
    wanted = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    assert np.abs(pixels(file_of(picture, form), ready) - wanted).max() <= 1e-6


def test_sixteen_bits_are_scaled() -> None:
    deep = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    ready = {**SMALL_PICTURES, "mean": [0.0], "std": [1.0], "resize": None}
    answered = pixels(file_of(Image.fromarray(deep)), ready)
    assert np.abs(answered[0] - deep / 65535).max() < 1 / 128


def test_pictures_are_turned_as_their_camera_was() -> None:
    picture = noise("L", (32, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    ready = {**SMALL_PICTURES, "resize": None}
    turned = pixels(file_of(picture, exif=exif), ready)
    assert np.array_equal(turned, pixels(file_of(picture.transpose(Image.Transpose.ROTATE_270)), ready))


# --- pretrained ------------------------------------------------------------------------------------------------------


def fitted(folder: Path, precision: str = "fp32") -> Classifier:
    chosen = family(Options(weights=str(folder), precision=precision))
    data = chosen.data()
    assert data.class_names == CLASSES
    return chosen.make(chosen.candidates[0], 0).fit(data.train.inputs, data.train.labels)


def test_chances_are_those_of_transformers(small: Path) -> None:
    files = samples.crops(5)
    processor = AutoImageProcessor.from_pretrained(small, backend="pil")
    model = AutoModelForImageClassification.from_pretrained(small).eval()
    opened = [Image.open(io.BytesIO(file)) for file in files]
    with torch.inference_mode():
        wanted = model(**processor(opened, return_tensors="pt")).logits.softmax(dim=1).numpy()
    model = fitted(small)
    assert np.abs(model(files) - wanted).max() < 1e-6
    assert model.about["agreement"]["top1_agreement"] == 1.0
    assert model.about["weights"].startswith(small.name)


def test_int8_is_compared(small: Path) -> None:
    quantised = fitted(small, "int8")
    agreement = quantised.about["agreement"]
    assert 0 < agreement["probability_difference"] < 0.1
    assert agreement["rows"] == 16
    assert [file.name for file in quantised.folder.iterdir() if file.suffix == ".onnx"] == ["model.onnx"]


def unlink(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (unlink("preprocessor_config.json"), "no processor"),
        (unlink("model.safetensors"), "there is no model.safetensors"),
        (unlink("config.json"), "there is no config.json"),
        (lambda folder: untrained.write(folder / "config.json", {"model_type": "bert"}), "no picture classifier"),
        (lambda folder: untrained.write(folder / "preprocessor_config.json", LONGEST), "cannot be written down"),
    ],
)
def test_what_cannot_be_served_is_refused(small: Path, tmp_path: Path, damage: Any, why: str) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "resnet"))
    damage(folder)
    with pytest.raises(Unusable, match=why):
        fitted(folder)


def test_another_set_of_classes_cannot_be_compared(small: Path, tmp_path: Path) -> None:
    other = family(Options(weights=str(untrained.resnet(tmp_path / "resnet", labels=("yes", "no")))))
    data = other.data()
    with pytest.raises(ValueError, match="it has 4 classes, not 2"):
        other.score(fitted(small), data.holdout, data.class_names)


# --- the small network -----------------------------------------------------------------------------------------------


def test_it_learns_the_same_with_the_same_seed() -> None:
    data = samples.digits()
    some = data.train.take(np.arange(128))
    ready = np.stack([pixels(file, SMALL_PICTURES) for file in some.inputs["image"]])

    def learn(seed: int) -> np.ndarray:
        network = learned(ready, some.labels, classes=10, width=4, epochs=1, seed=seed)
        return network.head.weight.detach().numpy()

    before = torch.random.get_rng_state()
    assert np.array_equal(learn(1), learn(1))
    assert not np.array_equal(learn(1), learn(2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_the_hub_it_says_what_it_is(tmp_path: Path) -> None:
    code = "from training.images import family; from training.options import Options; f = family(Options()); "
    code += "print(f.candidates[0]['weights']); print(f.make(f.candidates[0], 0).words)"
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **nowhere}, capture_output=True, text=True, check=True, timeout=120
    )
    taken, words = done.stdout.strip().splitlines()
    assert taken == "none"
    assert words.startswith("small residual network, trained on scikit-learn's handwritten digits")
    assert "not ResNet-50, because the weights microsoft/resnet-50 cannot be had from the hub" in words
    assert words.endswith("--weights PATH or --weights none")


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, str]:
    """A narrow network in int8, through the whole of training: the version, its files, and what was said."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings.from_env(
        {"MLFLOW_TRACKING_URI": empty_registry(home / "mlflow.db"), "MODEL_DIR": str(home / "models")}
    )
    chosen = family(Options(weights="none", precision="int8"))
    chosen = replace(chosen, candidates=({**chosen.candidates[0], "width": 8, "epochs": 5},))
    said = StringIO()
    train(chosen, Plan(), settings, Report(Console(file=said, width=500), chosen))
    version = MlflowClient().get_model_version_by_alias("images", "champion")
    return version, tracking.fetch(version, home / "files"), said.getvalue()


def test_it_passes_the_gate_and_says_what_it_is(registered: tuple[Any, Path, str]) -> None:
    version, files, said = registered
    content = json.loads((files / "artifacts" / "image" / "image.json").read_text())
    assert "Gate: passed" in said
    assert version.description in said
    assert "not ResNet-50. Served in int8: top1 agreement" in version.description
    assert content["precision"] == version.tags["precision"] == "int8"
    assert content["agreement"]["top1_agreement"] > 0.95
    assert mlmodel.read(files)["metadata"]["class_names"] == list(samples.DIGITS)


def test_the_service_answers_as_recorded(registered: tuple[Any, Path, str], tmp_path: Path) -> None:
    _, files, _ = registered
    image, model = runtime("image"), mlmodel.read(files)
    assert image.serves(model, files)
    description = image.convert(model, files, tmp_path)
    inputs, recorded = reference.read(files / reference.FILE_NAME)
    answered = image.load(tmp_path)(Batch(("image",), (inputs["image"],)))
    assert np.abs(answered.probabilities - recorded.probabilities).max() <= description.tolerance
    assert np.array_equal(answered.values, recorded.values)


def test_mlflow_itself_runs_it(registered: tuple[Any, Path, str]) -> None:
    _, files, _ = registered
    rows = samples.digits().holdout.take(np.arange(20))
    answered = mlflow.pyfunc.load_model(str(files)).predict(pd.DataFrame({"image": rows.inputs["image"].tolist()}))
    assert np.array_equal(answered, FLAVOR.predict(FLAVOR.load(files), rows.inputs).values)
    assert (answered == rows.labels).mean() > 0.8


def test_classes_are_watched_and_pictures_are_not(registered: tuple[Any, Path, str]) -> None:
    profile = json.loads((registered[1] / "profile.json").read_text())
    assert [bins["name"] for bins in profile["outputs"]] == ["class", "confidence"]
    assert profile["unwatched"] == {"image": "its values are neither numbers nor texts"}
