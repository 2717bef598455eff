"""An inference response: what a version answered, as named tensors in JSON or behind it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.answers import Reply, dumps
from serving.errors import InvalidInput
from serving.live import Live
from serving.protocols.v2 import binary
from serving.protocols.v2.datatypes import BYTES, of_dtype
from serving.protocols.v2.request import Asked, Output
from serving.service import Answer
from serving.tensors import Field, by_name, described
from serving.transforms.arrays import ArrayReader

UNNAMED = "output"  # an output that nobody named
PROBABILITIES = "probabilities"
NUMBERS = "iuf"


class Form:
    """How one version reads and answers. What does not differ from request to request is worked out once, here."""

    def __init__(self, live: Live) -> None:
        bundle = live.bundle
        self.reader = ArrayReader(bundle.signature)
        self._model, self._version = bundle.name, bundle.version
        self._declared = {field.name: field for field in bundle.outputs}
        self._only = bundle.outputs[0].name if len(bundle.outputs) == 1 else UNNAMED
        self._classes = bundle.classes.names if bundle.classes is not None else ()

    def check(self, outputs: Sequence[Output]) -> None:
        """Whether the version has the outputs that are asked for, as far as it says. Raises `InvalidInput`."""
        if outputs and self._declared:
            _check(outputs, self._declared)

    def reply(self, answer: Answer, asked: Asked) -> Reply:
        """The response. Raises `InvalidInput` for an output that is not there after all."""
        arrays = by_name(answer.prediction, self._only)
        if asked.outputs:
            _check(asked.outputs, {field.name: field for field in described(arrays)})
        wanted = asked.outputs or [Output(name, None, 0) for name in arrays]
        blocks: list[bytes] = []
        outputs = [self._output(output, arrays[output.name], asked.binary, blocks) for output in wanted]
        content: dict[str, Any] = {"model_name": self._model, "model_version": self._version}
        if asked.id is not None:
            content["id"] = asked.id
        content["parameters"] = {"prediction_id": answer.prediction_id}
        content["outputs"] = outputs
        text = dumps(content)
        if not blocks:
            return Reply(text)
        return Reply(b"".join([text, *blocks]), binary.MEDIA_TYPE, ((binary.HEADER, str(len(text))),))

    def _output(self, output: Output, array: np.ndarray, all_binary: bool, blocks: list[bytes]) -> dict[str, Any]:
        """One tensor of the response; its values go to ``blocks`` where they are wanted in binary."""
        if output.classes:
            array = best(array, output.classes, self._classes if output.name == PROBABILITIES else ())
        array = _of_one_type(array) if array.dtype.kind == "O" else array
        datatype = of_dtype(array.dtype)
        tensor: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": array.shape}
        values = texts(array) if datatype == BYTES else array
        if all_binary if output.binary is None else output.binary:
            block = binary.block_of_texts(values) if datatype == BYTES else binary.block_of(array)
            blocks.append(block)
            tensor["parameters"] = {"binary_data_size": len(block)}
        elif datatype != BYTES:
            tensor["data"] = array.ravel()
        elif any(type(value) is bytes for value in values):
            tensor["parameters"] = {"content_type": "base64"}
            tensor["data"] = [base64.b64encode(v.encode() if isinstance(v, str) else v).decode() for v in values]
        else:
            tensor["data"] = values
        return tensor


def best(scores: np.ndarray, count: int, names: Sequence[str]) -> np.ndarray:
    """The ``count`` highest scores of each row, best first: ``score:position`` or ``score:position:name``."""
    table = scores.reshape(len(scores), -1)
    order = np.argsort(-table.astype(np.float64), axis=1, kind="stable")[:, :count]
    labels = [f":{name}" for name in names] if len(names) == table.shape[1] else [""] * table.shape[1]
    found = np.empty(order.shape, dtype=object)
    for row, positions in enumerate(order.tolist()):
        found[row] = [f"{table[row, position]!s}:{position}{labels[position]}" for position in positions]
    return found


def texts(array: np.ndarray) -> list[str | bytes]:
    """BYTES for what is no number: texts and bytes as they are, times by ISO 8601, other objects as JSON."""
    if array.dtype.kind == "M":
        return list(np.datetime_as_string(array).ravel().tolist())
    values = array.ravel().tolist()
    return [value if isinstance(value, (str, bytes)) else dumps(value).decode() for value in values]


def _check(outputs: Sequence[Output], fields: Mapping[str, Field]) -> None:
    for output in outputs:
        field = fields.get(output.name)
        if field is None:
            listed = ", ".join(map(repr, fields))
            raise InvalidInput(f"is not an output of this model; it has {listed}", column=output.name[:80])
        if output.classes and (not field.shape or field.type in ("any", "str", "bool")):
            raise InvalidInput("has no scores to choose classes by", column=output.name[:80])


def _of_one_type(array: np.ndarray) -> np.ndarray:
    """Numbers that came as objects are numbers, if all are of one kind."""
    if len(set(map(type, array.flat))) != 1:
        return array
    plain = np.array(array.tolist())
    return plain if plain.dtype.kind in "iufb" and plain.shape == array.shape else array
