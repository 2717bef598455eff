"""What is read and written without gunicorn is what gunicorn reads and writes."""

from __future__ import annotations

import io
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http import get_parser
from gunicorn.http.wsgi import base_environ, create

from serving.exchange import MAX_FIELDS, MAX_HEAD_BYTES, Answer, whole
from serving.worker import FOR_ALL

PLAIN = b"POST /predict HTTP/1.1\r\nHost: here\r\nContent-Length: 3\r\n\r\nabc"
CLIENT, SERVER = ("10.0.0.7", 4321), ("127.0.0.1", 5000)
ENDS = {"REMOTE_ADDR": "10.0.0.7", "REMOTE_PORT": "4321", "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "5000"}
OF_ITS_OWN = {"gunicorn.socket", "wsgi.early_hints", "wsgi.errors", "wsgi.multithread", "wsgi.input"}


def with_fields(*lines: str) -> bytes:
    return PLAIN.replace(b"Host: here", "\r\n".join(["Host: here", *lines]).encode("latin-1"))


def by_gunicorn(data: bytes, app: Callable[..., Any] | None = None) -> tuple[dict[str, Any], bytes]:
    """The environment that gunicorn makes of ``data``, and what it sends of the answer of ``app``."""
    config = Config()
    near, far = socket.socketpair()
    with near, far:
        far.sendall(data)
        request = next(get_parser(config, near, CLIENT))
        response, environ = create(request, near, CLIENT, SERVER, config)
        body = environ["wsgi.input"].read()
        if app is None:
            return {**environ, "body": body}, b""
        environ["wsgi.input"] = io.BytesIO(body)
        for piece in app(environ, response.start_response):
            response.write(piece)
        response.close()
        near.shutdown(socket.SHUT_WR)
        return environ, b"".join(iter(lambda: far.recv(1 << 16), b""))


def ours(data: bytes) -> dict[str, Any]:
    request = whole(data)
    assert request is not None
    return request.environ(base_environ(Config()) | FOR_ALL | ENDS)


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        PLAIN.replace(b"Content-Length:", b"CONTENT-length: \t"),
        PLAIN.replace(b": 3", b":3 "),
        PLAIN.replace(b"predict", b"predict?a=/b&c=%20"),
        PLAIN.replace(b"predict", b"predict?"),
        PLAIN.replace(b"predict", b"models/a-b_c.d~e/versions/7/predict"),
        PLAIN.replace(b"abc", b"\r\n\r"),
        PLAIN.replace(b"abc", b"\xff\x00\xfe"),
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        with_fields("Content-Type: application/json", "User-Agent: python-requests/2", "Accept: */*"),
        with_fields("Connection: keep-alive", "Accept-Encoding: gzip, deflate"),
        with_fields("X-Forwarded-For: 1.2.3.4, 5.6.7.8", "X-Forwarded-Proto: https", "Forwarded: for=1.2.3.4"),
        with_fields("Authorization: Bearer a.b-c", "Content-Encoding: gzip", "X-Empty:", "X-Tab: a\tb"),
        with_fields("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    ],
)
def test_the_environment_is_gunicorns(data: bytes) -> None:
    theirs, _ = by_gunicorn(data)
    environ = ours(data)
    assert environ["wsgi.input"].read() == theirs.pop("body")
    assert environ.keys() - OF_ITS_OWN == theirs.keys() - OF_ITS_OWN
    assert {name: environ[name] for name in environ.keys() - OF_ITS_OWN} == {
        name: theirs[name] for name in theirs.keys() - OF_ITS_OWN
    }


@pytest.mark.parametrize("cut", range(len(PLAIN)))
def test_a_beginning_is_no_whole_request(cut: int) -> None:
    assert whole(PLAIN[:cut]) is None


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + b"G",
        PLAIN + PLAIN,
        b"\r\n" + PLAIN,
        PLAIN.replace(b"POST", b"GET"),
        PLAIN.replace(b"POST", b"post"),
        PLAIN.replace(b"POST ", b"POST  "),
        PLAIN.replace(b"/predict", b"http://here/predict"),
        PLAIN.replace(b"predict", b"models/%2e%2e/predict"),
        PLAIN.replace(b"predict", b"predict#part"),
        PLAIN.replace(b"predict", "prüfen".encode()),
        PLAIN.replace(b"1.1", b"1.0"),
        PLAIN.replace(b"1.1", b"2.0"),
        PLAIN.replace(b"\r\n", b"\n"),
        PLAIN.replace(b"\r\n", b"\n", 1),
        PLAIN.replace(b": 3", b" : 3"),
        PLAIN.replace(b": 3", b": +3"),
        PLAIN.replace(b": 3", b": 3, 3"),
        PLAIN.replace(b": 3", b": 0x3"),
        PLAIN.replace(b": 3", b": "),
        PLAIN.replace(b": 3", b": 3000000"),
        with_fields("Transfer-Encoding: chunked"),
        with_fields("eXpect: 100-continue"),
        with_fields("UPGRADE: h2c"),
        with_fields("TE: trailers"),
        with_fields("Trailer: X"),
        with_fields("HTTP2-Settings: AAMAAABkAAQ"),
        with_fields("Connection: close"),
        with_fields("Connection: keep-alive, Upgrade"),
        with_fields("Content-Length: 3"),
        with_fields("content-length: 4"),
        with_fields("Host: there"),
        with_fields("X-Twice: 1", "x-twice: 1"),
        with_fields("Under_Score: 1"),
        with_fields("Folded: 1", " 2"),
        with_fields("No colon"),
        with_fields(": no name"),
        with_fields("Space before : 1"),
        with_fields("Control: \x01"),
        with_fields("Nul: \x00"),
        with_fields("Return: a\rb"),
        with_fields("Beyond: \xe9"),
        with_fields("Long: " + "x" * MAX_HEAD_BYTES),
        with_fields(*(f"X-{number}: 1" for number in range(MAX_FIELDS))),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + PLAIN,
        b"\x16\x03\x01\x02\x00\r\n\r\n",
    ],
)
def test_what_could_be_understood_in_two_ways_is_left_to_gunicorn(data: bytes) -> None:
    assert whole(data) is None


# --- answers ---------------------------------------------------------------------------------------------------------


def answers(status: str, headers: list[tuple[str, str]], *pieces: bytes) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        start_response(status, headers)
        return list(pieces)

    return app


def without_date(data: bytes) -> bytes:
    plain, found = re.subn(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n", b"", data)
    assert found == 1
    return plain


@pytest.mark.parametrize(
    "app",
    [
        answers("200 OK", [("Content-Type", "application/json"), ("Content-Length", "2")], b"{}"),
        answers("503 SERVICE UNAVAILABLE", [("Retry-After", "1"), ("content-length", "0")]),
        answers("200 OK", [("X-Name", "caf\xe9"), ("Content-Length", "6")], b"abc", b"def"),
    ],
)
def test_the_answer_is_gunicorns_to_the_last_byte(app: Callable[..., Any]) -> None:
    _, theirs = by_gunicorn(PLAIN, app)
    assert without_date(Answer().bytes(app, ours(PLAIN))) == without_date(theirs)


def test_an_answer_without_a_length_gets_one() -> None:
    answer = Answer().bytes(answers("200 OK", [], b"abc", b"def"), ours(PLAIN))
    assert answer.endswith(b"\r\nContent-Length: 6\r\n\r\nabcdef")


def test_the_last_answer_of_a_connection_says_so() -> None:
    answer = Answer()
    answer.force_close()
    assert b"\r\nConnection: close\r\n" in answer.bytes(answers("200 OK", [], b""), ours(PLAIN))


@pytest.mark.parametrize("header", [("X", "a\r\nSet-Cookie: b"), ("X", "a\nb"), ("X: y", "1\r\n\r\n"), ("X Y", "1")])
def test_no_header_breaks_the_answer(header: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="no header may have"):
        Answer().bytes(answers("200 OK", [header], b""), ours(PLAIN))


def test_an_answer_starts_once_and_is_given_back() -> None:
    answer = Answer()
    write = answer.start_response("200 OK", [])
    with pytest.raises(AssertionError):
        answer.start_response("200 OK", [])
    with pytest.raises(AssertionError):
        write(b"piece")


def test_what_the_application_opened_is_closed() -> None:
    class Pieces(list[bytes]):
        closed = False

        def close(self) -> None:
            self.closed = True

    pieces = Pieces([b"abc"])

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Pieces:
        start_response("200 OK", [])
        return pieces

    Answer().bytes(app, ours(PLAIN))
    assert pieces.closed
