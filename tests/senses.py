"""Two small deep models that are real: pictures by their colour, and texts by their words. Nothing of theirs is run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("red", "green", "blue")
SIZE = 16  # of the picture that the graph takes
HOW: dict[str, Any] = {
    "mode": "RGB",
    "resize": 20,
    "resample": "bilinear",
    "crop": [SIZE, SIZE],
    "rescale": 1 / 255,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "top_k": 2,
    "precision": "fp32",
    "agreement": None,
    "weights": "none: a colour is its own class",
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "petal", "sepal", "leaf", "root", "stem", "seed", "soil", "rain")
DIMENSION, MAX_TOKENS = 6, 12
TEXT: dict[str, Any] = {
    "max_tokens": MAX_TOKENS,
    "dimension": DIMENSION,
    "pad_id": 0,
    "precision": "fp32",
    "agreement": None,
    "weights": "none: numbers by chance",
}
NOTHING_RUNS = """
import mlflow

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, model_input):
        raise RuntimeError("the service runs none of this")

mlflow.models.set_model(Model())
"""


def save_pictures(folder: Path, **changed: Any) -> Path:
    """Pictures by their colour, as training logs such a model; ``changed`` are fields of its ``image.json``."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    place = folder.with_name(f"{folder.name}-parts") / "image"
    place.mkdir(parents=True)
    how = {**HOW, **changed}
    (place / "model.onnx").write_bytes(colours(3 if how["mode"] == "RGB" else 1))
    (place / "image.json").write_text(json.dumps(how), encoding="utf-8")
    signature = ModelSignature(Schema([ColSpec("binary", "image")]), Schema([ColSpec("long")]))
    return _save(folder, "image", place, signature, {"class_names": list(COLOURS)})


def save_sentences(folder: Path, **changed: Any) -> Path:
    """Vectors of texts, as training logs such a model; ``changed`` are fields of its ``text.json``."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    place = folder.with_name(f"{folder.name}-parts") / "text"
    place.mkdir(parents=True)
    (place / "model.onnx").write_bytes(words())
    (place / "text.json").write_text(json.dumps({**TEXT, **changed}), encoding="utf-8")
    save_tokenizer(place / "tokenizer.json")
    outputs = Schema([TensorSpec(np.dtype("float32"), (-1, DIMENSION))])
    return _save(folder, "text", place, ModelSignature(Schema([ColSpec("string", "text")]), outputs), {})


def _save(folder: Path, name: str, place: Path, signature: Any, metadata: dict[str, Any]) -> Path:
    import mlflow.pyfunc

    code = place.parent / "code.py"
    code.write_text(NOTHING_RUNS, encoding="utf-8")
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(code),
        artifacts={name: str(place)},
        metadata={**metadata, name: f"artifacts/{name}"},
        signature=signature,
        pip_requirements=[],
    )
    return folder


def colours(channels: int) -> bytes:
    """A graph whose logits are the mean of each channel; of a grey picture, shares of its only one."""
    from onnx import TensorProto, helper

    weights = np.eye(3) * 2 if channels == 3 else np.array([[2.0, 1.0, 0.0]])
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["rows", channels, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", len(COLOURS)])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    return _written(graph)


def words(dimension: int = DIMENSION) -> bytes:
    """A graph that gives the mean of its tokens' vectors, scaled to length 1."""
    from onnx import TensorProto, helper

    table = np.random.default_rng(0).normal(size=(len(WORDS), dimension))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["each"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"]),
        helper.make_node("Mul", ["each", "wide"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["sum"], keepdims=0),
        helper.make_node("ReduceL2", ["sum", "middle"], ["length"]),
        helper.make_node("Div", ["sum", "length"], ["embedding"]),
    ]
    inputs = ["input_ids", "attention_mask"]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows", "tokens"]) for name in inputs],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["rows", dimension])],
        [
            helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.ravel()),
            helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
            helper.make_tensor("middle", TensorProto.INT64, [1], [1]),
        ],
    )
    return _written(graph)


def _written(graph: Any) -> bytes:
    from onnx import checker, helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    checker.check_model(model)
    written: bytes = model.SerializeToString()
    return written


def save_tokenizer(path: Path) -> None:
    """Words of `WORDS` between [CLS] and [SEP]; it pads and cuts at another length, which nobody asked it for."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordPiece({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(path))


def picture(colour: Any = (255, 0, 0), size: tuple[int, int] = (24, 20), kind: str = "PNG", **options: Any) -> bytes:
    """A picture of one colour, in a file's bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind, **options)
    return file.getvalue()
