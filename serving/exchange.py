"""A small request that came in whole, and its answer, without gunicorn's own reader and writer.

Those take several times as long as a compiled model. Only what can be understood in one way is read here: ``POST`` by
HTTP/1.1 with a body of a known length, every field once, and nothing that asks something of the server itself. All
else is left to gunicorn, to be read or refused. Both give the application the same environment and send the same bytes.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from gunicorn import SERVER

MAX_HEAD_BYTES = 4094  # gunicorn's limit for the request line alone
MAX_FIELDS = 100  # gunicorn's too

_FIELDS = rb"(?:[A-Za-z0-9-]+:[\t\x20-\x7e]*\r\n)*"
_HEAD = re.compile(rb"POST (/[A-Za-z0-9._~/-]*)(?:[?]([!\x24-\x7e]*))? HTTP/1\.1\r\n(" + _FIELDS + rb")")
_ANSWER_FIELDS = re.compile(_FIELDS.replace(rb"\x7e", rb"\x7e\x80-\xff"))
_LENGTH = re.compile("[0-9]{1,5}")
_FOR_THE_SERVER = frozenset({"TRANSFER-ENCODING", "EXPECT", "UPGRADE", "TE", "TRAILER", "HTTP2-SETTINGS"})

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Whole:
    """One whole request: its path and query, its header fields with names in upper case, and its body."""

    __slots__ = ("body", "fields", "path", "query")

    def __init__(self, path: str, query: str | None, fields: dict[str, str], body: bytes) -> None:
        self.path = path
        self.query = query
        self.fields = fields
        self.body = body

    def environ(self, base: dict[str, Any]) -> dict[str, Any]:
        """The WSGI environment, on top of ``base``: what does not differ from request to request."""
        environ = base | {f"HTTP_{name.replace('-', '_')}": value for name, value in self.fields.items()}
        for name in ("CONTENT_LENGTH", "CONTENT_TYPE"):  # as CGI had them
            if f"HTTP_{name}" in environ:
                environ[name] = environ.pop(f"HTTP_{name}")
        environ["PATH_INFO"] = self.path
        environ["QUERY_STRING"] = self.query or ""
        environ["RAW_URI"] = self.path if self.query is None else f"{self.path}?{self.query}"
        environ["wsgi.input"] = io.BytesIO(self.body)
        return environ


def whole(data: bytes) -> Whole | None:
    """The one request that ``data`` is; None for a beginning, for more than one, and for what gunicorn has to judge."""
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES)
    head = _HEAD.fullmatch(data, 0, end + 2)
    if end < 0 or head is None:
        return None
    path, query, block = head.groups()
    lines = block.decode("ascii").split("\r\n")[:-1]
    fields = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields[name.upper()] = value.strip(" \t")
    length = fields.get("CONTENT-LENGTH", "0")
    if len(fields) != len(lines) or len(lines) > MAX_FIELDS or not _LENGTH.fullmatch(length):
        return None
    if len(data) != end + 4 + int(length) or not _FOR_THE_SERVER.isdisjoint(fields):
        return None
    if fields.get("CONNECTION", "keep-alive").lower() != "keep-alive":
        return None
    return Whole(path.decode("ascii"), None if query is None else query.decode("ascii"), fields, data[end + 4 :])


class Answer:
    """What the application gives for one request. Nothing is sent before all of it is there."""

    def __init__(self) -> None:
        self.closes = False  # the connection, after this
        self._status = ""
        self._headers: list[tuple[str, str]] = []

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[..., Any]:
        """As in PEP 3333, but without the ``write`` callable that it gives back for old applications."""
        if self._status and exc_info is None:
            raise AssertionError("the answer has been started already")
        self._status, self._headers = status, headers
        return _no_write

    def force_close(self) -> None:
        """Close the connection after this answer; the same name as gunicorn's."""
        self.closes = True

    def bytes(self, app: App, environ: dict[str, Any]) -> bytes:
        """The whole answer of ``app``. Raises what ``app`` raises, and ValueError for a header that would break it."""
        pieces = app(environ, self.start_response)
        try:
            body = b"".join(pieces)
        finally:
            if hasattr(pieces, "close"):
                pieces.close()
        fields = "".join([f"{name}: {value}\r\n" for name, value in self._headers]).encode("latin-1")
        if not _ANSWER_FIELDS.fullmatch(fields) or fields.count(b"\r\n") != len(self._headers):
            raise ValueError("a header of the answer has a character that no header may have")
        if not any(name.lower() == "content-length" for name, _ in self._headers):
            fields += b"Content-Length: %d\r\n" % len(body)
        start = (
            f"HTTP/1.1 {self._status}\r\nServer: {SERVER}\r\nDate: {_date(int(time.time()))}\r\n"
            f"Connection: {'close' if self.closes else 'keep-alive'}\r\n"
        )
        return b"%b%b\r\n%b" % (start.encode("latin-1"), fields, body)


def _no_write(_: bytes) -> None:
    raise AssertionError("give the body back instead of writing it")


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, localtime=False, usegmt=True)
