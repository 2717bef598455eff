"""The protocol's datatypes, and the types of this house."""

from __future__ import annotations

import numpy as np

from serving.tensors import NUMPY_TYPES, Field

BYTES = "BYTES"

# Little-endian, as their binary form is; BYTES and BF16 have no NumPy type.
DTYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}
NAMES = (*DTYPES, BYTES)

# The column type whose rules a value of JSON has to pass, for each datatype that JSON can write.
COLUMN_TYPES = {
    "BOOL": "boolean",
    **{f"UINT{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "integer",
    "INT64": "long",
    "FP32": "float",
    "FP64": "double",
    BYTES: "string",
}

_OF_DTYPE = {dtype.newbyteorder("="): name for name, dtype in DTYPES.items()}


def of_dtype(dtype: np.dtype[np.generic]) -> str:
    """What an array of ``dtype`` is called; everything that is no number is BYTES."""
    return _OF_DTYPE.get(dtype, BYTES)


def of_field(field: Field) -> str:
    """What a field is called. ``any`` is BYTES: texts, or JSON in them."""
    if field.type in NUMPY_TYPES:
        return of_dtype(NUMPY_TYPES[field.type])
    if field.type in ("any", "str", "string", "binary"):
        return BYTES
    return of_dtype(np.dtype(field.type))
