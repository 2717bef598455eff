"""The request's body is read whole before the answer goes out, or the connection is closed."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from serving.body import DRAIN_MAX_BYTES, METHODS, PIECE_BYTES, WholeBody

SMALL = 3 * PIECE_BYTES + 5


class Server:
    """What a server hands to the application: an environ, and a method of the object that can close the connection."""

    def __init__(self, body: bytes, method: str = "POST", length: bool = True, gunicorn: bool = True) -> None:
        self.input = io.BytesIO(body)
        self.environ: dict[str, Any] = {"REQUEST_METHOD": method, "wsgi.input": self.input}
        if length:
            self.environ["CONTENT_LENGTH"] = str(len(body))
        if gunicorn:
            self.environ["gunicorn.socket"] = object()
        self.statuses: list[str] = []
        self.closed = False

    def start_response(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.statuses.append(status)

    def force_close(self) -> None:
        self.closed = True

    def call(self, app: Callable[..., Iterable[bytes]]) -> list[bytes]:
        """The answer; what is not read when the middleware returns it is still in ``input`` afterwards."""
        answer = WholeBody(app)(self.environ, self.start_response)
        self.unread = len(self.input.getbuffer()) - self.input.tell()
        return list(answer)


def refuse(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """An application that answers without a look at the body."""
    start_response("404 NOT FOUND", [])
    return [b"no ", environ["REQUEST_METHOD"].encode()]


def read_all(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"read"]


def test_the_answer_is_the_applications() -> None:
    server = Server(b"body")
    assert server.call(refuse) == [b"no ", b"POST"]
    assert server.statuses == ["404 NOT FOUND"]


@pytest.mark.parametrize("size", [0, 1, SMALL])
def test_what_is_left_of_a_small_body_is_read_before_the_answer(size: int) -> None:
    server = Server(b"x" * size)
    server.call(refuse)
    assert (server.unread, server.closed) == (0, False)


def test_a_small_body_without_a_length_is_read_before_the_answer() -> None:
    server = Server(b"x" * SMALL, length=False)
    server.call(refuse)
    assert (server.unread, server.closed) == (0, False)


def test_a_body_that_is_too_large_to_read_closes_the_connection() -> None:
    server = Server(b"x" * (DRAIN_MAX_BYTES + 1))
    server.call(refuse)
    assert server.closed
    assert server.unread == DRAIN_MAX_BYTES


def test_a_large_body_without_a_length_is_read_up_to_the_limit_and_closes_the_connection() -> None:
    server = Server(b"x" * (DRAIN_MAX_BYTES + 9), length=False)
    server.call(refuse)
    assert server.closed
    assert server.unread == 9


def test_a_large_body_that_the_application_has_read_keeps_the_connection() -> None:
    server = Server(b"x" * (DRAIN_MAX_BYTES + 1))
    server.call(read_all)
    assert (server.unread, server.closed) == (0, False)


@pytest.mark.parametrize("size", [SMALL, DRAIN_MAX_BYTES + 1])
def test_nothing_is_read_for_another_server(size: int) -> None:
    server = Server(b"x" * size, gunicorn=False)
    server.call(refuse)
    assert (server.unread, server.closed) == (size, False)


@pytest.mark.parametrize("method", ["BREW", "post", "GET2"])
def test_an_unknown_method_is_other(method: str) -> None:
    assert Server(b"", method=method).call(refuse) == [b"no ", b"OTHER"]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_known_method_stays(method: str) -> None:
    assert Server(b"", method=method).call(refuse) == [b"no ", method.encode()]
