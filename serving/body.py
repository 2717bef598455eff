"""The request's body is read whole before the answer goes out, or the connection is closed.

Otherwise gunicorn's threaded worker reads the rest after the answer, takes the beginning of the next request on that
connection along with it, and waits for bytes that have already come. `complete` tells a request that is there whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

DRAIN_MAX_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
SMALL_BYTES = 1 << 14

_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[^ ?#\r\n]*)(?:[?][^ #\r\n]*)? HTTP/1\.[01]\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,5})[ \t]*\r\n")

# A method is a metric's label: what is not one of these is counted, and answered, as OTHER.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


def complete(data: bytes) -> tuple[str, str, int] | None:
    """Method, raw path (no query) and body bytes of the one plain HTTP/1 request that ``data`` is.

    None for anything else: a request's beginning, one with more behind it, or one whose end cannot be told at a glance.
    The server still parses, and may refuse, what this takes for a request.
    """
    line, end = _REQUEST_LINE.match(data), data.find(b"\r\n\r\n")
    if line is None or end < 0:
        return None
    head = data[: end + 2].lower()
    if b"\r\ntransfer-encoding" in head or b"\r\nexpect" in head or b"\r\nupgrade" in head:
        return None
    length = _LENGTH.search(head)
    if head.count(b"\r\ncontent-length") != (length is not None):
        return None  # more than one, or none that is a small number
    body_bytes = int(length[1]) if length else 0
    if len(data) != end + 4 + body_bytes:
        return None
    return line[1].decode("ascii"), line[2].decode("latin-1"), body_bytes


class WholeBody:
    """WSGI middleware around ``app``; outermost, so that ``start_response`` is the server's own."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in METHODS:
            environ["REQUEST_METHOD"] = "OTHER"
        answer = self._app(environ, start_response)
        if "gunicorn.socket" in environ and not _drained(environ):
            # gunicorn drops a Connection header that the application sets; this is its own way to say close.
            start_response.__self__.force_close()  # type: ignore[attr-defined]
        return answer


def _drained(environ: dict[str, Any]) -> bool:
    """Read what is left of a small body. False when there is, or may be, more than that."""
    if int(environ.get("CONTENT_LENGTH") or 0) > DRAIN_MAX_BYTES:
        return not environ["wsgi.input"].read(1)
    left = DRAIN_MAX_BYTES
    while left > 0:
        piece = environ["wsgi.input"].read(min(PIECE_BYTES, left))
        if not piece:
            return True
        left -= len(piece)
    return False
