"""Texts into vectors, as MLflow itself runs a version: logged as code, with the model's folder as its artifact.

It needs MLflow with pandas, NumPy, ONNX Runtime and tokenizers, and nothing of this project: a copy of it travels with
the version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow.models
import numpy as np
import onnxruntime
import pandas as pd
from mlflow.pyfunc.model import PythonModel
from tokenizers import Tokenizer

GROUP = 8  # texts of like length that are answered in one call: what is padded is computed too


class Encoder:
    """What is in ``folder``: ``model.onnx``, ``tokenizer.json`` and ``text.json``."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.about = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        self._graph = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.about["max_tokens"])

    def __call__(self, texts: Sequence[str], group: int = GROUP) -> np.ndarray:
        """The vector of each text, of length 1: float32 of shape (texts, dimension)."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        vectors = np.empty((len(tokens), self.about["dimension"]), np.float32)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")
        for start in range(0, len(order), group):
            rows = order[start : start + group]
            vectors[rows] = self._answer([tokens[row] for row in rows])
        return vectors

    def _answer(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.about["pad_id"], np.int64)
        mask = np.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
            mask[place, : len(row)] = 1
        answered: np.ndarray = self._graph.run(["embedding"], {"input_ids": ids, "attention_mask": mask})[0]
        return answered


class Texts(PythonModel):
    """One column ``text``; answers with its vectors."""

    def load_context(self, context: Any) -> None:
        """The encoder in the artifact ``text``."""
        self._encoder = Encoder(Path(context.artifacts["text"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ARG002
        """float32 of shape (rows, dimension)."""
        texts = model_input["text"].tolist()
        if not all(isinstance(text, str) for text in texts):  # of a list the tokenizer would make one text
            raise TypeError("each row of the column `text` must be one text")
        return self._encoder(texts)


mlflow.models.set_model(Texts())
