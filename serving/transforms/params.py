"""What a call asks of a model beside its rows → values checked against the version's own list of params."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from serving.errors import InvalidInput
from serving.transforms.tabular import NAMED_CHARACTERS
from serving.transforms.values import kind_of

RANGES = {"integer": 2**31, "long": 2**63}
MOST_FLOAT32 = 3.4028234663852886e38

# A type as it is called in an answer.
WORDS = {
    "integer": "a whole number",
    "long": "a whole number",
    "float": "a number",
    "double": "a number",
    "string": "a text",
    "boolean": "true or false",
    "datetime": "an ISO 8601 time",
    "array": "a list",
    "object": "an object",
    "map": "an object",
}


class WrongParam(InvalidInput):
    """A param has a value that the version does not take."""


def checked(specs: Sequence[Mapping[str, Any]], given: Any) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """Those of ``given`` that ``specs`` name, or None for none; and the names of the others, which MLflow ignores.

    ``specs`` are those of the version's MLmodel file. What is not given has its default, in the model. Raises
    `WrongParam`.
    """
    if given is None:
        return None, ()
    if not isinstance(given, dict):
        raise WrongParam(f"'params' must be an object, not {kind_of(given)}")
    known = {str(spec.get("name")): spec for spec in specs}
    ignored = tuple(name for name in given if name not in known)
    taken = {name: _param(known[name], name, value) for name, value in given.items() if name in known}
    return taken or None, ignored


def _param(spec: Mapping[str, Any], name: str, value: Any) -> Any:
    shape, where = spec.get("shape"), f"param {name[:NAMED_CHARACTERS]!r}"
    if shape is None:
        return None if value is None else _value(spec, where, value)
    if not isinstance(value, list):
        raise WrongParam(f"{where}: expected a list, not {kind_of(value)}")
    return [None if item is None else _value(spec, f"{where}[{place}]", item) for place, item in enumerate(value)]


def _value(spec: Mapping[str, Any], where: str, value: Any) -> Any:
    """``value`` as the type that ``spec`` names."""
    kind = spec.get("type") or spec.get("dtype") or "any"
    if kind == "any":
        return value
    if not _is(kind, value):
        raise WrongParam(f"{where}: expected {WORDS.get(kind, kind)}, not {kind_of(value)}")
    if kind in ("integer", "long") and not -RANGES[kind] <= value < RANGES[kind]:
        raise WrongParam(f"{where}: is beyond the range of {kind}")
    if kind in ("float", "double"):
        return _float(kind, where, value)
    if kind == "datetime":
        return _time(value)
    if kind == "array":
        return [_value(spec.get("items") or {}, f"{where}[{place}]", item) for place, item in enumerate(value)]
    if kind == "map":
        return {key: _value(spec.get("values") or {}, f"{where}[{key[:40]!r}]", item) for key, item in value.items()}
    if kind == "object":
        _check_properties(spec.get("properties") or {}, where, value)
    return value


def _is(kind: str, value: Any) -> bool:
    if kind == "datetime":
        return isinstance(value, str) and _time(value) is not None
    types = {"string": (str,), "boolean": (bool,), "array": (list,), "object": (dict,), "map": (dict,)}
    if kind in ("integer", "long"):
        return type(value) is int
    if kind in ("float", "double"):
        return type(value) in (int, float)
    return type(value) in types.get(kind, ())


def _time(text: str) -> datetime | date | None:
    """A day, or a time without a zone (in UTC if it had one); None where it is neither."""
    try:
        if len(text) == len("2020-01-01"):
            return date.fromisoformat(text)
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        return None


def _float(kind: str, where: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or (kind == "float" and abs(number) > MOST_FLOAT32):
        raise WrongParam(f"{where}: is not a finite number of its type")
    return number


def _check_properties(properties: Mapping[str, Any], where: str, value: dict[str, Any]) -> None:
    for name, spec in properties.items():
        if name in value:
            _value(spec, f"{where}[{name[:40]!r}]", value[name])
        elif spec.get("required", True):
            raise WrongParam(f"{where}: {name!r} is missing")
    if unknown := sorted(value.keys() - properties.keys()):
        raise WrongParam(f"{where}: {unknown[0][:NAMED_CHARACTERS]!r} is none of its properties")
