"""The spool: files on their way to the database, each of them whole or not there."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path

LEFTOVER_S = 60.0
LOOK_PAUSE_S = 1.0
LOOK_SHARE = 50  # looking at the folder takes at most one part in so many of a process's time

_count = itertools.count()


class Spool:
    """A folder of files that many processes fill and one empties, bounded to about ``limit_bytes``.

    About, because a process sees what others wrote only when it looks; it looks once a second.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Makes the folder, and removes what writers left half done that died more than a minute ago."""
        self.folder = folder
        self.limit_bytes = limit_bytes
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        self._seen = 0
        self._look_again = 0.0

    def write(self, content: bytes, *, durable: bool = False) -> Path | None:
        """Put ``content`` in as one file; None when the folder is full.

        Raises OSError when the disk does not take it. It survives this process; with ``durable`` a loss of power too.
        """
        if self._estimate() + len(content) > self.limit_bytes:
            return None
        path = self.folder / _name()
        written = path.with_name(f".{path.name}")
        try:
            with written.open("xb") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            written.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                written.unlink()
            raise
        self._seen += len(content)
        return path

    def pages(self) -> list[Path]:
        """What is there, the oldest first."""
        return waiting(self.folder)

    def bytes(self) -> int:
        """How much is there."""
        total = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # the writer has just taken it
                    total += entry.stat().st_size
        return total

    def _estimate(self) -> int:
        """What was there at the last look and what this process wrote since. Many files are not looked at often."""
        started = time.monotonic()
        if started >= self._look_again:
            self._seen = self.bytes()
            now = time.monotonic()
            self._look_again = now + max(LOOK_PAUSE_S, LOOK_SHARE * (now - started))
        return self._seen


def waiting(folder: Path) -> list[Path]:
    """The files of a spool, the oldest first; none when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return [folder / name for name in sorted(entry.name for entry in entries if entry.name[0] != ".")]
    except FileNotFoundError:
        return []


def _name() -> str:
    """Sorts by time, and is nobody else's."""
    return f"{time.time_ns():020d}-{os.getpid()}-{next(_count)}"


def _remove_leftovers(folder: Path) -> None:
    oldest = time.time() - LEFTOVER_S
    for path in folder.glob(".*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < oldest:
                path.unlink()
