"""The roster: which models a service serves. Those it was told, and those that were added since it began.

What was added holds in every process until the service starts anew: what it serves for good is said by its settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from serving import notes
from serving.state import Lock

LOCK_S = 0.01


class Roster:
    """Models as they are written in settings: ``name``, ``name@alias`` or ``name/version``."""

    def __init__(self, told: Sequence[str], state_dir: Path) -> None:
        self._told = tuple(told)
        self._service = state_dir / "service.json"
        self._path = state_dir / "models.json"
        self._lock_path = state_dir / "models.lock"
        self._seen: object = None
        self._models = self._told

    def __call__(self) -> tuple[str, ...]:
        """All models, those that it was told first. The same object until something changes."""
        stamp = notes.stamp(self._path)
        if stamp != self._seen:
            self._seen, self._models = stamp, (*self._told, *self._added())
        return self._models

    @property
    def names(self) -> tuple[str, ...]:
        """Their registered names."""
        return tuple(map(name_of, self()))

    def add(self, model: str) -> bool:
        """Serve ``model`` too; False where its name is served already. Raises OSError where that cannot be noted."""
        return self._change(lambda added: [*added, model] if name_of(model) not in self._names(added) else added)

    def remove(self, model: str) -> bool:
        """Take `add` back; False where it was not added. Raises OSError."""
        return self._change(lambda added: [one for one in added if one != model])

    def _names(self, added: Sequence[str]) -> set[str]:
        return {name_of(text) for text in (*self._told, *added)}

    def _change(self, change: Callable[[list[str]], list[str]]) -> bool:
        lock = Lock(self._lock_path)
        while not lock.acquire():
            time.sleep(LOCK_S)
        try:
            before = self._added()
            after = change(before)
            if after != before:
                notes.write(self._path, {"service": self._started_at(), "added": after})
            return after != before
        finally:
            lock.release()

    def _added(self) -> list[str]:
        """A note of a service that ran before this one says nothing."""
        note = notes.read(self._path) or {}
        return list(note.get("added", ())) if note.get("service") == self._started_at() else []

    def _started_at(self) -> str | None:
        return (notes.read(self._service) or {}).get("started_at")


def name_of(model: str) -> str:
    """The registered name, without alias or version."""
    return model.partition("@")[0].partition("/")[0]
