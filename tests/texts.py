"""A small real model that makes vectors of texts: how often each of eight words is there, scaled to length 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WORDS = ("petal", "sepal", "leaf", "root", "stem", "seed", "soil", "abyss")
ENDLESS = "abyss"  # its weight is infinite, so that a text with it has no vector
EXAMPLE = ["petal and leaf", "a seed in the soil"]


def save_texts(folder: Path) -> Path:
    """The model as MLflow saves an ONNX graph: ``text`` of shape (rows,) in, ``embedding`` of shape (rows, 8) out."""
    import mlflow
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    inputs = Schema([TensorSpec(np.dtype("str"), (-1,), "text")])
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, len(WORDS)), "embedding")])
    signature = ModelSignature(inputs, outputs)
    mlflow.onnx.save_model(_graph(), folder, signature=signature, input_example=np.array(EXAMPLE), pip_requirements=[])
    return folder


def _graph() -> Any:
    from onnx import TensorProto, checker, helper

    counting = helper.make_node(
        "TfIdfVectorizer",
        ["words"],
        ["counts"],
        mode="TFIDF",
        min_gram_length=1,
        max_gram_length=1,
        max_skip_count=0,
        ngram_counts=[0],
        ngram_indexes=list(range(len(WORDS))),
        pool_strings=list(WORDS),
        weights=[float("inf") if word == ENDLESS else 1.0 for word in WORDS],
    )
    nodes = [
        helper.make_node("Concat", ["text", "blank"], ["padded"], axis=0),  # so that no batch is without any word
        helper.make_node("StringSplit", ["padded"], ["all_words", "numbers"]),
        helper.make_node("Slice", ["all_words", "start", "end"], ["words"]),
        counting,
        helper.make_node("Add", ["counts", "least"], ["raised"]),
        helper.make_node("ReduceL2", ["raised", "columns"], ["length"]),
        helper.make_node("Div", ["raised", "length"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "texts",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["rows"])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["rows", len(WORDS)])],
        [
            helper.make_tensor("blank", TensorProto.STRING, [1], [b"-"]),
            helper.make_tensor("start", TensorProto.INT64, [1], [0]),
            helper.make_tensor("end", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("least", TensorProto.FLOAT, [1], [0.125]),
            helper.make_tensor("columns", TensorProto.INT64, [1], [1]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    return model
