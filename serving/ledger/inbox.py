"""The inbox: asks as the writer sees them. It answers each by a file of the same name."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from serving.ledger.labels import Ask
from serving.ledger.spool import waiting
from serving.state import LedgerState

LABELS = 10_000  # settled by one transaction
YOUNG_S = 5.0  # a prediction made less than this ago may be on its way
POSTPONE_S, LOOK_AGAIN_S = 1.0, 0.02
ANSWER_KEPT_S = 60.0

log = logging.getLogger("serving.ledger")


@dataclass(frozen=True)
class Waiting:
    """An ask and its file; ``young`` are the ids that may not be in the database yet."""

    path: Path
    ask: Ask
    young: frozenset[str]


class Inbox:
    """Asks, the oldest first."""

    def __init__(self, state: LedgerState) -> None:
        self._asks = state.asks
        self._answers = state.answers
        self._bad = state.bad
        self._postponed: dict[str, tuple[float, float]] = {}  # until when, and when to look again
        self.seen_at = self.settled_at = 0.0

    @property
    def postponed(self) -> bool:
        """Whether an ask waits for a prediction."""
        return bool(self._postponed)

    def busy(self, seconds: float) -> bool:
        """Whether asks came within the last ``seconds``."""
        return time.monotonic() < self.seen_at + seconds and self.seen_at > 0

    def ready(self) -> list[Waiting]:
        """The asks to settle now, as many as fit one transaction."""
        found: list[Waiting] = []
        labels, now = 0, time.monotonic()
        for path in waiting(self._asks):
            self.seen_at = now
            if self._postponed.get(path.name, (0.0, 0.0))[1] > now:
                continue
            one = self._parsed(path)
            if one is None:
                continue
            found.append(one)
            labels += len(one.ask.labels)
            if labels >= LABELS:
                break
        return found

    def postpone(self, one: Waiting) -> bool:
        """Look at ``one`` again in a moment; False when that has been done for long enough."""
        now = time.monotonic()
        until, _ = self._postponed.get(one.path.name, (now + POSTPONE_S, 0.0))
        self._postponed[one.path.name] = until, now + LOOK_AGAIN_S
        return now < until

    def answer(self, settled: list[Waiting], answers: list[dict[str, Any]]) -> None:
        """Say what came of asks, which are gone then."""
        self.settled_at = time.monotonic()
        for one, content in zip(settled, answers, strict=True):
            with contextlib.suppress(OSError):  # no room for an answer: the caller hears "pending"
                self._answers.mkdir(parents=True, exist_ok=True)
                written = self._answers / f".{one.path.name}"
                written.write_bytes(orjson.dumps(content))
                written.rename(self._answers / one.path.name)
            one.path.unlink(missing_ok=True)
            self._postponed.pop(one.path.name, None)

    def forget_answers(self) -> None:
        """Remove answers for which nobody waited long enough."""
        oldest = time.time() - ANSWER_KEPT_S
        for path in self._answers.glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _parsed(self, path: Path) -> Waiting | None:
        """An ask that cannot be read (half a file after a loss of power) is set aside."""
        try:
            ask = Ask.parsed(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as err:
            log.error("labels in %s cannot be read: %s", path.name, err)
            self._bad.mkdir(parents=True, exist_ok=True)
            path.replace(self._bad / path.name)
            return None
        youngest = time.time() - YOUNG_S
        return Waiting(path, ask, frozenset(id for id, *_ in ask.labels if _made_at(id) > youngest))


def _made_at(prediction_id: str) -> float:
    """When a UUIDv7 was made, in seconds since 1970; 0 for any other."""
    return int(prediction_id[:8] + prediction_id[9:13], 16) / 1000 if prediction_id[14] == "7" else 0.0
