"""The binary tensor data extension: arrays as blocks of bytes behind the JSON, little-endian, row by row."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np

from serving.errors import InvalidInput
from serving.protocols.v2.datatypes import BYTES, DTYPES

HEADER = "Inference-Header-Content-Length"
MEDIA_TYPE = "application/octet-stream"
MAX_DIGITS = 12
NATIVE = {name: dtype.newbyteorder("=") for name, dtype in DTYPES.items()}
# Those whose bytes are numbers as they lie there, on a machine of that order.
NUMBERS = {name: dtype for name, dtype in DTYPES.items() if dtype.kind in "iuf" and sys.byteorder == "little"}
_LENGTH = struct.Struct("<I")


def split(data: bytes, header: str | None) -> tuple[bytes, memoryview]:
    """The JSON of a body and the blocks behind it; ``header`` is what `HEADER` says. Raises `InvalidInput`."""
    if header is None:
        return data, memoryview(b"")
    written = header.strip()
    if not (written.isascii() and written.isdecimal() and len(written) <= MAX_DIGITS):
        raise InvalidInput(f"{HEADER} must be a number of bytes")
    length = int(written)
    if not 0 < length <= len(data):
        raise InvalidInput(f"{HEADER} is {length} where the body has {len(data)} bytes")
    return data[:length], memoryview(data)[length:]


def numbers(name: str, datatype: str, count: int, block: memoryview) -> np.ndarray:
    """``count`` values of a number's datatype, as an array of their own. Raises `InvalidInput`."""
    dtype = DTYPES[datatype]
    if count * dtype.itemsize != len(block):
        what = f"has {len(block)} bytes of binary data where its shape asks for {count * dtype.itemsize}"
        raise InvalidInput(what, column=name)
    if datatype == "BOOL":
        return _booleans(name, block)
    # One copy of the whole block: behind JSON of any length it lies at no place where numbers may lie.
    return np.frombuffer(block, dtype).astype(NATIVE[datatype])


def _booleans(name: str, block: memoryview) -> np.ndarray:
    values = np.frombuffer(block, np.uint8)
    if (values > 1).any():
        raise InvalidInput("has a byte that is neither 0 nor 1", row=int(np.argmax(values > 1)), column=name)
    return values.astype(np.bool_)


def texts(name: str, count: int, block: memoryview) -> np.ndarray:
    """``count`` values of BYTES, each behind its length. Raises `InvalidInput`."""
    if count * _LENGTH.size > len(block):
        raise InvalidInput(f"has {len(block)} bytes of binary data, too few for {count} lengths", column=name)
    content, values, start = bytes(block), np.empty(count, dtype=object), 0
    for row in range(count):
        if start + _LENGTH.size > len(content):
            raise InvalidInput(f"has {row} values where its shape asks for {count}", column=name)
        end = start + _LENGTH.size + _LENGTH.unpack_from(content, start)[0]
        if end > len(content):
            raise InvalidInput("has a length that goes beyond its binary data", row=row, column=name)
        values[row] = content[start + _LENGTH.size : end]
        start = end
    if start != len(content):
        raise InvalidInput(f"has {len(content) - start} bytes of binary data beyond its shape", column=name)
    return values


def block_of(array: np.ndarray) -> bytes:
    """Numbers as they are sent."""
    return (array if sys.byteorder == "little" else array.astype(array.dtype.newbyteorder("<"))).tobytes()


def block_of_texts(values: Iterable[Any]) -> bytes:
    """Texts and bytes as they are sent."""
    plain = [value.encode() if isinstance(value, str) else value for value in values]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(value)), value) for value in plain))


def of_datatype(name: str, datatype: str, count: int, block: memoryview) -> np.ndarray:
    """``count`` values of any datatype. Raises `InvalidInput`."""
    return texts(name, count, block) if datatype == BYTES else numbers(name, datatype, count, block)
