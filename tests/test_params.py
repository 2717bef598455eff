"""Params are checked against the version's own list: MLflow's types, without its casts."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest

from serving.transforms.params import WrongParam, checked


def spec(kind: str, **more: Any) -> dict[str, Any]:
    return {"name": "p", "type": kind, "default": None, "shape": None, **more}


OBJECT = spec("object", properties={"a": {"type": "long"}, "b": {"type": "string", "required": False}})
LISTS = spec("object", properties={"a": {"type": "array", "items": {"type": "double"}}})


@pytest.mark.parametrize(
    ("known", "value", "expected"),
    [
        (spec("double"), 3, 3.0),
        (spec("float"), 0.5, 0.5),
        (spec("long"), 2**62, 2**62),
        (spec("integer"), -(2**31), -(2**31)),
        (spec("string"), "x", "x"),
        (spec("boolean"), False, False),
        (spec("datetime"), "2020-01-02T03:04:05+01:00", datetime(2020, 1, 2, 2, 4, 5)),
        (spec("datetime"), "2020-01-02", date(2020, 1, 2)),
        (spec("double"), None, None),
        (spec("double", shape=[-1]), [1, 2.5], [1.0, 2.5]),
        (spec("string", shape=[-1]), [], []),
        (OBJECT, {"a": 1}, {"a": 1}),
        (LISTS, {"a": [1, 2.5]}, {"a": [1, 2.5]}),
    ],
)
def test_what_fits(known: dict[str, Any], value: Any, expected: Any) -> None:
    taken, ignored = checked([known], {"p": value})
    assert (taken, ignored) == ({"p": expected}, ())
    assert taken is not None
    assert type(taken["p"]) is type(expected)


@pytest.mark.parametrize(
    ("known", "value", "message"),
    [
        (spec("double"), "3", "param 'p': expected a number, not a text"),
        (spec("double"), True, "param 'p': expected a number, not true or false"),
        (spec("double"), float("inf"), "finite"),
        (spec("double"), 10**400, "finite"),
        (spec("float"), 1e39, "finite"),
        (spec("long"), 1.5, "param 'p': expected a whole number, not a number"),
        (spec("long"), 2**63, "beyond the range of long"),
        (spec("integer"), 2**31, "beyond the range of integer"),
        (spec("integer"), True, "expected a whole number"),
        (spec("string"), 1, "expected a text"),
        (spec("boolean"), 1, "expected true or false"),
        (spec("datetime"), "soon", "expected an ISO 8601 time"),
        (spec("double"), [1.0], "expected a number, not a list"),
        (spec("double", shape=[-1]), 1.0, "expected a list"),
        (spec("double", shape=[-1]), [1.0, "2"], r"param 'p'\[1\]: expected a number"),
        (OBJECT, [], "expected an object"),
        (OBJECT, {}, "'a' is missing"),
        (OBJECT, {"a": 1, "c": 2}, "'c' is none of its properties"),
        (OBJECT, {"a": "1"}, r"param 'p'\['a'\]: expected a whole number"),
        (LISTS, {"a": [1, "x"]}, r"\[1\]: expected a number"),
    ],
)
def test_what_does_not_fit(known: dict[str, Any], value: Any, message: str) -> None:
    with pytest.raises(WrongParam, match=message):
        checked([known], {"p": value})


def test_what_is_not_known_is_left_out_and_said() -> None:
    assert checked([spec("long")], {"p": 1, "q": 2}) == ({"p": 1}, ("q",))
    assert checked([], {"q": 2}) == (None, ("q",))
    assert checked([spec("long")], None) == (None, ())
    assert checked([spec("long")], {}) == (None, ())


@pytest.mark.parametrize("given", [[], "x", 3, False])
def test_params_are_an_object(given: Any) -> None:
    with pytest.raises(WrongParam, match="'params' must be an object"):
        checked([], given)
