"""Errors that a caller may read: each knows its status and its code.

Anything that is not a `ServingError` is a bug or a failing model: it is logged in full and answered as a bare 500.
"""

from __future__ import annotations


class SettingError(Exception):
    """A setting is unknown or malformed, or the place it names cannot be used. Stops the start."""


class ServingError(Exception):
    """An error that is answered to the caller as ``status`` with ``code`` and the message."""

    status = 500
    code = "internal"
    retry_after_s: int | None = None

    @property
    def discreet(self) -> str:
        """The message without any value of the request."""
        return str(self)

    def details(self) -> dict[str, object]:
        """What the answer carries beside code and message."""
        return {}


class InvalidInput(ServingError):
    """The request's content does not fit; ``row`` counts from 0 and ``column`` is the name in the signature.

    ``what`` is the message without them, and ``plain`` is ``what`` without any value of the request.
    """

    status = 400
    code = "invalid_input"

    def __init__(
        self, message: str, *, row: int | None = None, column: str | None = None, plain: str | None = None
    ) -> None:
        where = ", ".join(
            part for part in (f"row {row}" if row is not None else "", f"column {column!r}" if column else "") if part
        )
        self._where = f"{where}: " if where else ""
        super().__init__(self._where + message)
        self.what = message
        self.plain = message if plain is None else plain
        self.row = row
        self.column = column

    @property
    def discreet(self) -> str:
        return self._where + self.plain

    def details(self) -> dict[str, object]:
        return {key: value for key, value in (("row", self.row), ("column", self.column)) if value is not None}


class UnknownModel(ServingError):
    """No such model, version or alias."""

    status = 404
    code = "unknown_model"


class VersionRefused(ServingError):
    """A version did not prove itself; ``reason`` is a short word from a fixed list, also used in metrics."""

    status = 409
    code = "version_refused"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def details(self) -> dict[str, object]:
        return {"reason": self.reason}


class BodyTooLarge(ServingError):
    """The body has more bytes than the service takes."""

    status = 413
    code = "body_too_large"


class TooManyRows(ServingError):
    """The request has more rows than the service answers at once."""

    status = 413
    code = "too_many_rows"


class UnsupportedMediaType(ServingError):
    """The body's content type is none that this route reads."""

    status = 415
    code = "unsupported_media_type"


class PrepareFailed(ServingError):
    """A version could not be prepared for a reason that is ours and not the version's: no disk space, no child."""

    status = 500
    code = "prepare_failed"


class ModelFailed(ServingError):
    """The model raised while it answered. The caller learns only that; the log has the rest."""

    status = 500
    code = "model_failed"


class RegistryUnreachable(ServingError):
    """The registry does not answer, or not as a registry does. What is live serves on."""

    status = 502
    code = "registry_unreachable"


class ModelNotReady(ServingError):
    """No version of this model is live yet."""

    status = 503
    code = "model_not_ready"
    retry_after_s = 1


class QueueFull(ServingError):
    """As many rows wait for the model as may wait; nothing was run."""

    status = 503
    code = "queue_full"
    retry_after_s = 1


class DeadlineExceeded(ServingError):
    """The answer was not there in time."""

    status = 504
    code = "deadline_exceeded"
