"""Options: what the command line says about one family; and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("fp32", "int8")


class Unusable(Exception):
    """What an option names cannot be used; the message says why in one line."""


@dataclass(frozen=True)
class Options:
    """The options of every family; each reads those that `training.FAMILIES` says it takes."""

    data: Path | None = None  # rows of the user's own, instead of those that the family makes
    weights: str | None = None  # a name or a path; "none" for learning from nothing; None for the family's own choice
    precision: str = "fp32"  # one of `PRECISIONS`
