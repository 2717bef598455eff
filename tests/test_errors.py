"""Errors: each knows its status, its code and what its answer carries."""

from __future__ import annotations

import inspect

import pytest

from serving import errors
from serving.errors import InvalidInput, ModelNotReady, ServingError, VersionRefused

STATUSES = {
    "InvalidInput": 400,
    "UnknownModel": 404,
    "VersionRefused": 409,
    "BodyTooLarge": 413,
    "UnsupportedMediaType": 415,
    "PrepareFailed": 500,
    "ModelFailed": 500,
    "RegistryUnreachable": 502,
    "ModelNotReady": 503,
    "QueueFull": 503,
    "DeadlineExceeded": 504,
}

CHILDREN = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ServingError) and kind is not ServingError
}


@pytest.mark.parametrize("name", STATUSES)
def test_each_error_has_the_status_of_the_contract(name: str) -> None:
    assert CHILDREN[name].status == STATUSES[name]


@pytest.mark.parametrize("name", CHILDREN)
def test_every_error_is_an_http_error_with_a_plain_word_as_code(name: str) -> None:
    assert 400 <= CHILDREN[name].status <= 599
    assert CHILDREN[name].code.isidentifier()
    assert CHILDREN[name].code.islower()


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in CHILDREN.values()]
    assert sorted(codes) == sorted(set(codes))


def test_every_error_says_what_it_is_for() -> None:
    assert all(kind.__doc__ for kind in CHILDREN.values())


@pytest.mark.parametrize(
    ("where", "message", "details"),
    [
        ({}, "is wrong", {}),
        ({"row": 3}, "row 3: is wrong", {"row": 3}),
        ({"row": 0}, "row 0: is wrong", {"row": 0}),
        ({"column": "age"}, "column 'age': is wrong", {"column": "age"}),
        ({"row": 7, "column": "age"}, "row 7, column 'age': is wrong", {"row": 7, "column": "age"}),
    ],
)
def test_invalid_input_says_where(where: dict[str, object], message: str, details: dict[str, object]) -> None:
    err = InvalidInput("is wrong", **where)  # type: ignore[arg-type]
    assert str(err) == message
    assert err.details() == details
    assert err.what == "is wrong"


def test_a_refusal_carries_its_reason() -> None:
    err = VersionRefused("its files differ", reason="digest_mismatch")
    assert (str(err), err.details()) == ("its files differ", {"reason": "digest_mismatch"})


def test_whoever_comes_before_the_model_is_told_to_come_again() -> None:
    assert ModelNotReady("none yet").retry_after_s == 1
    assert ServingError("no").retry_after_s is None


def test_a_setting_error_is_never_answered_to_a_caller() -> None:
    assert not issubclass(errors.SettingError, ServingError)
