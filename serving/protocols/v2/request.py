"""An inference request, read and checked: bytes in, named arrays out."""

from __future__ import annotations

import base64
import binascii
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidInput
from serving.payload import parsed
from serving.protocols.v2 import binary
from serving.protocols.v2.datatypes import BYTES, COLUMN_TYPES, DTYPES, NAMES
from serving.tensors import Field
from serving.transforms.values import as_array

MAX_ID_CHARACTERS = 128
MAX_AXES = 16
MAX_LENGTH = 2**31  # of an axis: no body holds as much
SHOWN_CHARACTERS = 80  # of a name
SHARED_MEMORY = "shared_memory_region"
WHOLE = {int}
NUMBERS = {float, int}
PLAIN = {
    **{name: NUMBERS if name.startswith("FP") else WHOLE for name in COLUMN_TYPES},
    "BOOL": {bool},
    BYTES: {str},
}  # what JSON values of a datatype are, when nothing has to be looked at
NONE: dict[str, Any] = {}


class Output(NamedTuple):
    """An output that is asked for. ``classes`` is how many of the best are wanted in its place; 0 for the output."""

    name: str
    binary: bool | None  # None where the whole request says it
    classes: int


class Asked(NamedTuple):
    """A request whose tensors are still to be read; without ``outputs`` all are wanted."""

    id: str | None
    inputs: list[Any]
    outputs: tuple[Output, ...]
    binary: bool
    blocks: memoryview


def read(data: bytes, header: str | None) -> Asked:
    """The request in a body; ``header`` is its `binary.HEADER`. Raises `InvalidInput`."""
    text, blocks = binary.split(data, header)
    if not text:
        raise InvalidInput('the body is empty; send a JSON object such as {"inputs": [...]}')
    body = parsed(text)
    if not isinstance(body, dict):
        raise InvalidInput("the body must be a JSON object")
    inputs = body.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidInput("'inputs' must be a list of tensors, at least one")
    wanted = _flag(_parameters(body, "the request"), "binary_data_output", "the request")
    return Asked(_id(body.get("id")), inputs, _outputs(body.get("outputs")), bool(wanted), blocks)


def arrays(asked: Asked) -> dict[str, np.ndarray]:
    """The input tensors by name; BYTES are objects, `str` from JSON and `bytes` else. Raises `InvalidInput`."""
    found: dict[str, np.ndarray] = {}
    start = 0
    for position, tensor in enumerate(asked.inputs):
        values = _usual(tensor) if not asked.blocks else _usual_block(tensor, asked.blocks, start)
        if values is not None and tensor["name"] not in found:
            found[tensor["name"]] = values
            start += values.nbytes if asked.blocks else 0
            continue
        name, datatype, shape = _head(tensor, position)
        shown, parameters = name[:SHOWN_CHARACTERS], _parameters(tensor, "input", position)
        if name in found:
            raise InvalidInput("is there twice", column=shown)
        if "binary_data_size" in parameters:
            if "data" in tensor:
                raise InvalidInput("has both data and binary_data_size", column=shown)
            end = start + _size(shown, parameters["binary_data_size"], len(asked.blocks) - start)
            values = binary.of_datatype(shown, datatype, prod(shape), asked.blocks[start:end]).reshape(shape)
            start = end
        else:
            values = _from_json(shown, datatype, shape, tensor.get("data"))
        if datatype == BYTES and parameters.get("content_type") == "base64":
            values = _decoded(shown, values)
        found[name] = values
    if start != len(asked.blocks):
        raise InvalidInput(f"{len(asked.blocks) - start} bytes of binary data belong to no input")
    return found


# --- the request -----------------------------------------------------------------------------------------------------


def _id(given: Any) -> str | None:
    if given is not None and (not isinstance(given, str) or len(given) > MAX_ID_CHARACTERS):
        raise InvalidInput(f"id must be a text of at most {MAX_ID_CHARACTERS} characters")
    return given


def _parameters(owner: dict[str, Any], whose: str, position: int | None = None) -> dict[str, Any]:
    """Those that are not known are for others."""
    given = owner.get("parameters")
    if given is None:
        return NONE
    if not isinstance(given, dict):
        raise InvalidInput(
            f"parameters of {whose} {'' if position is None else position}".rstrip() + " must be an object"
        )
    return given


def _flag(parameters: dict[str, Any], name: str, whose: str) -> bool | None:
    given = parameters.get(name)
    if given is not None and not isinstance(given, bool):
        raise InvalidInput(f"{name} of {whose} must be true or false")
    return given


def _outputs(given: Any) -> tuple[Output, ...]:
    if given is None:
        return ()
    if not isinstance(given, list):
        raise InvalidInput("'outputs' must be a list")
    outputs = tuple(_output(output, position) for position, output in enumerate(given))
    if len({output.name for output in outputs}) != len(outputs):
        raise InvalidInput("an output is asked for twice")
    return outputs


def _output(given: Any, position: int) -> Output:
    whose = f"output {position}"
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise InvalidInput(f"{whose} must be an object with a name")
    parameters = _parameters(given, whose)
    if SHARED_MEMORY in parameters:
        raise InvalidInput(f"{whose} asks for shared memory, which this server does not offer")
    classes = parameters.get("classification")
    if classes is not None and (type(classes) is not int or classes < 1):
        raise InvalidInput(f"classification of {whose} must be a number of classes, at least 1")
    return Output(given["name"], _flag(parameters, "binary_data", whose), classes or 0)


# --- tensors ---------------------------------------------------------------------------------------------------------


def _usual(tensor: Any) -> np.ndarray | None:
    """A tensor of plain values in a flat list. None for all that has to be looked at, or refused."""
    try:
        name, shape, data, plain = tensor["name"], tensor["shape"], tensor["data"], PLAIN[tensor["datatype"]]
    except (KeyError, TypeError):
        return None
    if type(name) is not str or not name or type(shape) is not list or type(data) is not list or len(tensor) > 4:
        return None
    if not WHOLE.issuperset(map(type, shape)) or not data or (shape != [len(data)] and prod(shape) != len(data)):
        return None
    if not plain.issuperset(map(type, data)) or not 0 < len(shape) <= 2 or min(shape) < 1:
        return None
    values = _at_once(tensor["datatype"], data)
    return values if values is None or len(shape) == 1 else values.reshape(shape)


def _usual_block(tensor: Any, blocks: memoryview, start: int) -> np.ndarray | None:
    """A tensor of numbers whose block begins at ``start``. None for all that has to be looked at, or refused."""
    try:
        name, shape, parameters = tensor["name"], tensor["shape"], tensor["parameters"]
        dtype, size = binary.NUMBERS[tensor["datatype"]], parameters["binary_data_size"]
    except (KeyError, TypeError):
        return None
    if type(name) is not str or not name or len(tensor) != 4 or len(parameters) != 1 or type(size) is not int:
        return None
    if type(shape) is not list or not 0 < len(shape) <= 2 or not WHOLE.issuperset(map(type, shape)) or min(shape) < 1:
        return None
    count = prod(shape)
    if count * dtype.itemsize != size or start + size > len(blocks):
        return None
    values = np.frombuffer(blocks, dtype, count, start).copy()  # the block may lie where numbers may not
    return values if len(shape) == 1 else values.reshape(shape)


def _head(tensor: Any, position: int) -> tuple[str, str, list[int]]:
    """Name, datatype and shape of an input."""
    if not isinstance(tensor, dict):
        raise InvalidInput(f"input {position} must be an object")
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"input {position} has no name")
    shown = name[:SHOWN_CHARACTERS]
    if not isinstance(datatype, str) or datatype not in NAMES:
        raise InvalidInput(f"its datatype must be one of {', '.join(NAMES)}", column=shown)
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not WHOLE.issuperset(map(type, shape)):
        raise InvalidInput(f"its shape must be a list of at most {MAX_AXES} whole numbers", column=shown)
    if shape and not 0 <= min(shape) <= max(shape) < MAX_LENGTH:
        raise InvalidInput("its shape has a number that is no length", column=shown)
    if 0 in shape:
        raise InvalidInput("there are no rows" if shape[0] == 0 else "its rows have no values", column=shown)
    return name, datatype, shape


def _size(name: str, given: Any, left: int) -> int:
    if type(given) is not int or given < 0:
        raise InvalidInput("its binary_data_size must be a number of bytes", column=name)
    if given > left:
        what = f"its binary_data_size goes beyond the {left} bytes of binary data that are left"
        raise InvalidInput(f"{what} ({binary.HEADER} says where they begin)", column=name)
    return given


def _from_json(name: str, datatype: str, shape: list[int], data: Any) -> np.ndarray:
    if not isinstance(data, list):
        raise InvalidInput("has neither a list as its data nor a binary_data_size", column=name)
    if datatype not in COLUMN_TYPES:
        raise InvalidInput(f"{datatype} has no form in JSON; send it as binary data", column=name)
    flat = _flattened(name, data, shape) if data and type(data[0]) is list else data
    if len(flat) != prod(shape):
        raise InvalidInput(f"has {len(flat)} values where its shape asks for {prod(shape)}", column=name)
    array = _at_once(datatype, flat) if PLAIN[datatype].issuperset(map(type, flat)) else None
    if array is None:
        array = _one_by_one(name, datatype, flat, prod(shape[1:]))
    return array.reshape(shape)


def _flattened(name: str, data: list[Any], shape: list[int]) -> list[Any]:
    """The values row by row of ``data`` that is nested as ``shape`` says."""
    flat, sizes = data, iter(shape[1:])
    if len(data) != (shape[0] if shape else 1):
        raise InvalidInput(f"has {len(data)} rows where its shape says otherwise", column=name)
    while flat and type(flat[0]) is list:
        size = next(sizes, None)
        if size is None or set(map(type, flat)) != {list} or set(map(len, flat)) != {size}:
            raise InvalidInput("is not nested as its shape says", column=name)
        flat = list(chain.from_iterable(flat))
    if next(sizes, None) is not None:
        raise InvalidInput("is not nested as its shape says", column=name)
    return flat


def _at_once(datatype: str, flat: list[Any]) -> np.ndarray | None:
    """Values that are all `PLAIN`. None where one of them is too large for the datatype."""
    if datatype == BYTES:
        texts = np.empty(len(flat), dtype=object)
        texts[:] = flat
        return texts
    try:
        values = np.array(flat, np.float64 if datatype == "FP32" else DTYPES[datatype])
    except OverflowError:
        return None
    if datatype != "FP32":
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return narrow if np.isfinite(narrow).all() else None


def _one_by_one(name: str, datatype: str, flat: list[Any], size: int) -> np.ndarray:
    """By the rules for a column that may have gaps (null). Raises `InvalidInput` for the first that does not fit."""
    try:
        return as_array(Field(name, COLUMN_TYPES[datatype], required=False), flat)
    except InvalidInput as err:
        row = None if err.row is None else err.row // max(1, size)
        raise InvalidInput(err.what, row=row, column=name, plain=err.plain) from None


def _decoded(name: str, values: np.ndarray) -> np.ndarray:
    """BYTES that say that they are base64, as bytes; other content types are the signature's to know."""
    decoded = np.empty(values.size, dtype=object)
    for position, value in enumerate(values.reshape(-1).tolist()):
        try:
            decoded[position] = None if value is None else base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            row = position // max(1, prod(values.shape[1:]))
            raise InvalidInput("is not base64", row=row, column=name) from None
    return decoded.reshape(values.shape)
