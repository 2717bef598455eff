"""Log lines, as JSON or as text for people, and the request id.

Most is logged as Python programs do. The line that every request leaves is not: see `RequestLog`.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from serving.entropy import random_id
from serving.errors import ServingError

REQUEST_ID_HEADER = "X-Request-Id"
REQUESTS = "serving.request"  # the logger of what concerns one request
_GOOD_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; fields given as ``extra`` stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line = _fields(record.created, record.levelname.lower(), record.name, record.getMessage())
        for name, value in _extra(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A line that people read while the service runs in front of them."""

    def format(self, record: logging.LogRecord) -> str:
        line = _text(record.created, record.levelname.lower(), record.getMessage(), _extra(record))
        if record.exc_info:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


def formatter(log_format: str) -> logging.Formatter:
    """The formatter for ``json``, ``text`` or ``auto`` (text where standard output is a terminal)."""
    return TextFormatter() if _as_text(log_format) else JsonFormatter()


def log_to_stdout(level: str, log_format: str) -> None:
    """Send everything that this process logs to standard output, once."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # libraries; our own loggers are below
    # What libraries warn of concerns whoever trains. Here it could be a line for each request.
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if level == "debug" else logging.ERROR)
    for name in ("serving", "gunicorn"):
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.handlers.clear()
        logger.propagate = True


def request_id(given: str | None) -> str:
    """The caller's request id if it is a harmless one, else a new one."""
    return given if given and _GOOD_REQUEST_ID.fullmatch(given) else random_id().hex()


def failure(err: Exception, method: str, route: str, request_id: str | None) -> ServingError:
    """A bug: logged in full, answered without a word of it."""
    log = logging.getLogger(REQUESTS)
    log.error("%s %s failed", method, route, exc_info=err, extra={"request_id": request_id})
    return ServingError("the service failed; the log has the request id")


class Request(NamedTuple):
    """What the log says of one request."""

    at: float  # seconds since 1970
    method: str
    route: str
    status: int
    request_id: str
    model: str | None
    version: str | None
    duration_s: float
    trace_id: str | None = None


class RequestLog:
    """One line a request, formatted and written by a thread of its own, many at a time.

    A request never waits for whoever reads the log: at most `QUEUED_LINES` wait to be written, what comes beyond is
    dropped, counted, and said in the log when it is read again. Lines come up to `PAUSE_S` late.
    """

    QUEUED_LINES = 20_000
    PAUSE_S = 0.02

    def __init__(self, level: str, log_format: str, *, dropped: Callable[[int], None], file: int = 1) -> None:
        """``dropped`` is told of lines that are lost, ``file`` is the descriptor of the log."""
        self._wanted = logging.getLevelName(level.upper()) <= logging.INFO
        self._line = _text_line if _as_text(log_format) else _json_line
        self._file = file
        self._tell = dropped
        self._queue: queue.SimpleQueue[Request | threading.Event] = queue.SimpleQueue()
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        if self._wanted:
            self._thread.start()

    def write(self, request: Request) -> None:
        """Have ``request`` written. Never blocks."""
        if not self._wanted:
            return
        if self._queue.qsize() < self.QUEUED_LINES:
            self._queue.put(request)
        else:
            self._lost += 1
            self._tell(1)

    def flush(self, timeout_s: float = 1.0) -> bool:
        """Wait until all that came before is written; False when that takes too long."""
        written = threading.Event()
        self._queue.put(written)
        return not self._wanted or written.wait(timeout_s)

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            time.sleep(self.PAUSE_S)
            waiting = [first, *(self._queue.get() for _ in range(self._queue.qsize()))]
            self._write([one for one in waiting if isinstance(one, Request)])
            for one in waiting:
                if isinstance(one, threading.Event):
                    one.set()

    def _write(self, requests: list[Request]) -> None:
        lines = [self._line(one.at, "info", _message(one), _said(one)) for one in requests]
        if self._lost:
            lost, self._lost = self._lost, 0
            lines.append(self._line(time.time(), "warning", f"{lost} lines of requests were dropped", {}))
        for piece in _pieces(lines):
            try:
                while piece:
                    piece = piece[os.write(self._file, piece) :]
            except OSError:  # nobody reads, or the disk is full
                self._tell(piece.count(b"\n"))


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines, as many as a pipe takes in one piece: other processes write to the same one."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > select.PIPE_BUF:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece


def _json_line(at: float, level: str, message: str, extra: dict[str, Any]) -> bytes:
    return orjson.dumps(_fields(at, level, REQUESTS, message) | extra, option=orjson.OPT_APPEND_NEWLINE)


def _text_line(at: float, level: str, message: str, extra: dict[str, Any]) -> bytes:
    return f"{_text(at, level, message, extra)}\n".encode(errors="replace")


def _message(request: Request) -> str:
    return f"{request.method} {request.route} {request.status}"


def _said(request: Request) -> dict[str, Any]:
    said = {
        "request_id": request.request_id,
        "model": request.model,
        "version": request.version,
        "status": request.status,
        "duration_s": round(request.duration_s, 6),
    }
    return said if request.trace_id is None else {**said, "trace_id": request.trace_id}


def _as_text(log_format: str) -> bool:
    return log_format == "text" or (log_format == "auto" and sys.stdout.isatty())


def _fields(at: float, level: str, logger: str, message: str) -> dict[str, Any]:
    """What every line has."""
    second, millisecond = divmod(int(at * 1000), 1000)
    written = f"{_second(second)}.{millisecond:03}+00:00"
    return {"at": written, "level": level, "logger": logger, "pid": os.getpid(), "message": message}


@lru_cache(maxsize=4)  # a busy second has thousands of lines
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _text(at: float, level: str, message: str, extra: dict[str, Any]) -> str:
    shown = " ".join(f"{name}={value}" for name, value in extra.items() if value is not None)
    return f"{datetime.fromtimestamp(at):%H:%M:%S} {level:7} {message}{'  ' + shown if shown else ''}"


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
