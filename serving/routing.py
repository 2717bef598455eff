"""The part that a challenger takes: a share of the callers, or a copy of what they ask.

A caller is told from others by a key, and each key belongs to one side of a share whatever else happens: a reload moves
nobody, and a larger share only moves callers over to the challenger.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

CHALLENGER = "challenger"  # the alias, and what is routed by it
CHAMPION = "champion"  # the route of the version that answers everybody else, whatever its alias
SHADOW = "shadow"
OFF = "off"
SPLIT = "split"

KEYS = 1 << 64


@dataclass(frozen=True)
class Part:
    """``kind`` is `OFF`, `SHADOW` or `SPLIT`; of a split, ``share`` (0 to 1) is the challenger's."""

    kind: str
    share: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Part:
        """``off``, ``shadow``, or a percentage such as ``10%``. Raises ValueError for anything else."""
        word = text.strip().lower()
        if word in (OFF, SHADOW):
            return cls(word)
        try:
            share = float(word.removesuffix("%")) / 100
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise ValueError(f"{text[:80]!r} is neither off, shadow, nor a percentage such as 10%")
        return cls(SPLIT, share) if share else cls(OFF)

    def __str__(self) -> str:
        return f"{100 * self.share:g}%" if self.kind == SPLIT else self.kind


def is_challengers(share: float, model: str, key: str) -> bool:
    """Whether the caller called ``key`` is among the ``share`` (0 to 1) of callers that the challenger answers.

    The model's name is mixed in, so that it is not the same callers who try out every model.
    """
    digest = blake2b(f"{model}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < share * KEYS
