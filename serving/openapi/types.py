"""A version's signature and outputs as JSON schemas: columns and tensors by their names, types and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from serving.bundle import Bundle
from serving.openapi.parts import Schema, closed, either, listed, nullable
from serving.tensors import NUMPY_TYPES, Field, Signature

MOST_ALTERNATIVES = 32  # beyond them a list's values are described together
OTHER_TYPES = {
    "string": {"type": "string"},
    "str": {"type": "string"},
    "datetime": {"type": "string", "format": "date-time", "description": "ISO 8601"},
    "datetime64[ns]": {"type": "string", "format": "date-time", "description": "ISO 8601"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "boolean": {"type": "boolean"},
    "bool": {"type": "boolean"},
    "any": {},
    "object": {},
}


def value(field: Field) -> Schema:
    """One value of an input: a number, a text … or null where the column may have gaps; nested lists for a tensor."""
    plain = scalar(field.type)
    for size in reversed(field.shape):
        plain = {**listed(plain), **({"minItems": size, "maxItems": size} if size >= 0 else {})}
    return plain if field.required else nullable(plain)


def scalar(name: str) -> Schema:
    """A value of MLflow's or NumPy's type called ``name``."""
    if name in OTHER_TYPES:
        return dict(OTHER_TYPES[name])
    dtype = NUMPY_TYPES.get(name) or np.dtype(name)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return {"type": "integer", "format": dtype.name, "minimum": int(limits.min), "maximum": int(limits.max)}
    if dtype.kind == "f":
        return {"type": "number", "format": {8: "double", 4: "float"}.get(dtype.itemsize, dtype.name)}
    return {}


def row(signature: Signature) -> Schema:
    """One row: a list in the signature's order, or an object with its names."""
    if is_bare(signature):
        return row_object(signature)
    return either([kind for kind in (row_list(signature), row_object(signature)) if kind is not None])


def is_bare(signature: Signature) -> bool:
    """Whether a row may be a value without a list around it, which is a row only among others."""
    return signature.layout == "tensors" and [field.shape for field in signature.inputs] == [()]


def row_object(signature: Signature) -> Schema:
    """A row as an object."""
    if signature.layout == "unknown":
        return {"type": "object", "minProperties": 1}
    needed = {field.name: value(field) for field in signature.inputs if _needed(signature, field)}
    return closed(needed, {field.name: value(field) for field in signature.inputs if field.name not in needed})


def row_list(signature: Signature) -> Schema | None:
    """A row as a list, or as the only tensor; None where only an object will do."""
    fields = signature.inputs
    if signature.layout == "unknown":
        return listed({}, least=1)
    if signature.layout == "tensors":
        return value(fields[0]) if len(fields) == 1 else None
    least = max((place for place, field in enumerate(fields, 1) if field.required), default=1)
    limits = {"minItems": least, "maxItems": len(fields)}
    kinds = [value(field) for field in fields]
    if len(fields) > MOST_ALTERNATIVES or all(kind == kinds[0] for kind in kinds):
        return {**listed(either(kinds)), **limits, "description": "in the order of the columns"}
    named = [{**kind, "title": field.name} for kind, field in zip(kinds, fields, strict=True)]
    return {"type": "array", "prefixItems": named, "items": False, **limits}


def rows(signature: Signature) -> Schema:
    """Many rows, all of one kind."""
    kinds = (row_list(signature), row_object(signature))
    return either([listed(kind, least=1) for kind in kinds if kind is not None])


def _needed(signature: Signature, field: Field) -> bool:
    return field.required or signature.layout == "tensors"


# --- answers ---------------------------------------------------------------------------------------------------------


def answered(field: Field) -> Schema:
    """One row's value of an output; what is no number in JSON is null."""
    plain = scalar(field.type)
    if plain.get("type") == "number":
        plain = nullable(plain)
    if plain.get("contentEncoding"):
        plain = {}
    for size in reversed(field.shape):
        plain = {**listed(plain), **({"minItems": size, "maxItems": size} if size >= 0 else {})}
    return plain


def prediction(bundle: Bundle) -> tuple[Schema, Schema | None]:
    """One row's prediction, and its probabilities where the version gives all of them."""
    if bundle.classes is None:
        return closed({"value": _values(bundle.outputs)}), None
    names = list(dict.fromkeys(bundle.classes.names))
    label: dict[str, Any] = {"class_id": {"type": "integer"}, "class_name": {"type": "string", "enum": names}}
    chances = closed({name: {"type": ["number", "null"]} for name in names})
    confident = closed(label, {"confidence": {"type": ["number", "null"]}, **_decision(bundle)})
    return confident, None if (bundle.variant or {}).get("top_k") else chances


def best(bundle: Bundle) -> Schema | None:
    """The most probable classes, best first, of which a caller may say how many."""
    if bundle.classes is None:
        return None
    names = list(dict.fromkeys(bundle.classes.names))
    label: dict[str, Any] = {"class_id": {"type": "integer"}, "class_name": {"type": "string", "enum": names}}
    one = closed({**label, "confidence": {"type": ["number", "null"]}})
    return {**listed(one, least=1), "maxItems": len(bundle.classes.names), "description": "Best first."}


def _decision(bundle: Bundle) -> dict[str, Schema]:
    """What a row says where a threshold decides."""
    if bundle.threshold is None or bundle.classes is None:
        return {}
    positive = bundle.classes.names[1]
    score = {"type": ["number", "null"], "description": f"The probability of {positive!r}."}
    words = f"The answer is {positive!r} where the score is at least this."
    return {"score": score, "threshold": {"type": "number", "const": bundle.threshold, "description": words}}


def _values(outputs: tuple[Field, ...]) -> Schema:
    if not outputs:
        return {}
    if len(outputs) == 1:
        return answered(outputs[0])
    return closed({field.name: answered(field) for field in outputs})
