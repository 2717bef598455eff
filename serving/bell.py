"""The bell: rung to have the agent look now, so that it need not look all the time.

A named pipe. Whoever cannot ring it (there is no agent, the disk has no pipes) only waits for the agent's next look.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from pathlib import Path


class Bell:
    """The end that listens. Without a pipe it is only a pause."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path, 0o600)
            self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # both ends: it never sees the last ringer hang up

    def wait(self, timeout_s: float) -> bool:
        """Return when it rings, or after ``timeout_s``; whether it rang."""
        if self._fd is None:
            time.sleep(timeout_s)
            return False
        if not select.select([self._fd], [], [], timeout_s)[0]:
            return False
        os.read(self._fd, 4096)  # however often it was rung
        return True

    def close(self) -> None:
        if self._fd is not None:
            self._path.unlink(missing_ok=True)  # who copies the folder need not know of pipes
            os.close(self._fd)
            self._fd = None


def ring(path: Path) -> None:
    """Wake who waits at ``path``, if anybody does."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # fails where nobody listens
        try:
            os.write(fd, b".")  # fails where it was rung thousands of times, which wakes as well
        finally:
            os.close(fd)
