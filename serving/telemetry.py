"""Log lines, as JSON or as text for people, and the request id."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
import uuid
from datetime import UTC, datetime
from typing import Any

REQUEST_ID_HEADER = "X-Request-Id"
_GOOD_REQUEST_ID = re.compile(r"[A-Za-z0-9._:\-]{1,128}")
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line; fields given as ``extra`` stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        for name, value in _extra(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A line that people read while the service runs in front of them."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items() if value is not None)
        line = f"{at} {record.levelname.lower():7} {record.getMessage()}{'  ' + extra if extra else ''}"
        if record.exc_info:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info)).rstrip()
        return line


def formatter(log_format: str) -> logging.Formatter:
    """The formatter for ``json``, ``text`` or ``auto`` (text where standard output is a terminal)."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stdout.isatty())
    return TextFormatter() if as_text else JsonFormatter()


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
    return given if given and _GOOD_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
