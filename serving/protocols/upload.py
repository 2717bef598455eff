"""Forms with files (``multipart/form-data``): what a browser or ``curl -F`` sends instead of JSON."""

from __future__ import annotations

import io
from typing import IO, Any, NamedTuple

from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import HTTPException
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header

from serving.errors import InvalidInput

MULTIPART = "multipart/form-data"
FILE, FIELDS = "file", ("top_k", "request_id")
MAX_PARTS = 1000  # of one form; each takes time of its own, however short it is
MAX_FIELD_BYTES = 4096


class Upload(NamedTuple):
    """A form that was understood: its files, at least one, and its other fields by name."""

    files: list[bytes]
    fields: dict[str, str]


def is_upload(content_type: str | None) -> bool:
    """Whether a body of that type is such a form."""
    return content_type is not None and content_type.partition(";")[0].strip().lower() == MULTIPART


def read(data: bytes, content_type: str) -> Upload:
    """The form in ``data``. Raises `InvalidInput`."""
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not boundary:
        raise InvalidInput("the form's type says no boundary")
    parser = MultiPartParser(stream_factory=_in_memory, max_form_memory_size=MAX_FIELD_BYTES, max_form_parts=MAX_PARTS)
    try:
        fields, files = parser.parse(io.BytesIO(data), boundary.encode("latin-1"), len(data))
    except HTTPException:
        most = f"at most {MAX_PARTS} parts, and {MAX_FIELD_BYTES} bytes in its fields"
        raise InvalidInput(f"the form is too large: {most}") from None
    except ValueError:
        raise InvalidInput("the form cannot be read: it is no multipart/form-data, or cut off") from None
    if set(files) - {FILE} or set(fields) - set(FIELDS):
        raise InvalidInput(f"the form has a part of another name; expected files as {FILE!r}, and maybe {_listed()}")
    if FILE not in files:
        raise InvalidInput(f"the form has no file; expected at least one part {FILE!r} with a file name")
    if twice := [name for name in FIELDS if len(fields.getlist(name)) > 1]:
        raise InvalidInput(f"the form has {twice[0]!r} more than once")
    return Upload([_content(file) for file in files.getlist(FILE)], fields.to_dict())


def _listed() -> str:
    return " and ".join(map(repr, FIELDS))


def _in_memory(*_: Any, **__: Any) -> IO[bytes]:
    """Where a file goes: the body is in memory already, and within its limit."""
    return io.BytesIO()


def _content(file: FileStorage) -> bytes:
    stream: Any = file.stream
    return bytes(stream.getvalue())
