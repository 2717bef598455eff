"""The request's body is read whole before the answer goes out, or the connection is closed.

Otherwise gunicorn's threaded worker reads the rest after the answer, takes the beginning of the next request on that
connection along with it, and waits for bytes that have already come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

DRAIN_MAX_BYTES = 1 << 20
PIECE_BYTES = 1 << 16

# A method is a metric's label: what is not one of these is counted, and answered, as OTHER.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


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
