"""Moving aliases, and the record of every move: who moved one when, from which version to which, and why.

A move is a tag of the registered model, ``move.<time in UTC>``, with a JSON object in it.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from serving.errors import RegistryUnreachable, UnknownModel
from serving.registry.client import connected, first_line

GATE_TAG = "gate"  # of a version: what the gate said at training, "passed" or why not
PASSED = "passed"
ROLLED_BACK_TAG = "rolled_back"  # of a version: when, who and why, as JSON
MOVE_PREFIX = "move."
TIME = "%Y%m%dT%H%M%S.%fZ"
ROLLBACK = "rollback"  # what the gate of a move says that went back
SERVICE = "service"  # who moved, where no person did
LONGEST_NAME, LONGEST_TEXT = 100, 500


@dataclass(frozen=True)
class Move:
    """One move of an alias; ``gate`` is what let it pass. ``at`` sorts by time, and is empty until it is recorded."""

    alias: str
    before: str | None
    to: str
    by: str
    why: str
    gate: str
    at: str = ""

    def as_json(self) -> dict[str, str | None]:
        """As it is recorded."""
        texts = {"by": self.by[:LONGEST_NAME], "why": self.why[:LONGEST_TEXT], "gate": self.gate[:LONGEST_TEXT]}
        return {"alias": self.alias, "from": self.before, "to": self.to, **texts}

    @classmethod
    def from_json(cls, at: str, plain: Mapping[str, Any]) -> Self:
        """Raises KeyError where something is missing."""
        alias, to, by, why, gate = (str(plain[name]) for name in ("alias", "to", "by", "why", "gate"))
        return cls(alias, None if plain["from"] is None else str(plain["from"]), to, by, why, gate, at)


@dataclass(frozen=True)
class Listed:
    """A version as people choose one."""

    version: str
    aliases: tuple[str, ...]
    gate: str | None
    rolled_back: bool


class Aliases:
    """The aliases of a registry, through MLflow's client.

    Every method raises `UnknownModel` for a model, version or alias that is not there, and `RegistryUnreachable` where
    the registry does not answer, or not to us.
    """

    def __init__(self, client: Any) -> None:
        """``client`` is an ``mlflow.MlflowClient``."""
        self._client = client

    @classmethod
    def at(cls, uri: str) -> Self:
        """Of the registry behind an MLflow tracking URI. Raises `RegistryUnreachable` where MLflow cannot read it."""
        return cls(connected(uri))

    def holder(self, model: str, alias: str) -> str | None:
        """The version that the alias names; None where it names none."""
        try:
            with _told():
                return str(self._client.get_model_version_by_alias(model, alias).version)
        except UnknownModel:
            return None

    def tags(self, model: str, version: str) -> dict[str, str]:
        """The tags of a version."""
        with _told():
            return dict(self._client.get_model_version(model, version).tags)

    def versions(self, model: str) -> list[Listed]:
        """Every version, the newest first."""
        with _told():
            aliases = self._client.get_registered_model(model).aliases
            found = self._client.search_model_versions(f"name='{model}'", max_results=1000)
        named: dict[str, list[str]] = {}
        for alias, version in aliases.items():
            named.setdefault(str(version), []).append(alias)
        ordered = sorted(found, key=lambda one: int(one.version), reverse=True)
        return [_listed(one, named.get(str(one.version), ())) for one in ordered]

    def move(self, model: str, alias: str, version: str) -> None:
        """Let the alias name ``version``."""
        with _told():
            self._client.set_registered_model_alias(model, alias, version)

    def drop(self, model: str, alias: str) -> None:
        """Let the alias name nothing."""
        with _told():
            self._client.delete_registered_model_alias(model, alias)

    def mark(self, model: str, version: str, key: str, value: str) -> None:
        """Set a tag of a version."""
        with _told():
            self._client.set_model_version_tag(model, version, key, value)

    def record(self, model: str, move: Move) -> None:
        """Write down a move that was made just now."""
        key = f"{MOVE_PREFIX}{datetime.now(UTC).strftime(TIME)}"
        with _told():
            self._client.set_registered_model_tag(model, key, json.dumps(move.as_json()))

    def moves(self, model: str) -> list[Move]:
        """Every move on record, the oldest first. What somebody else wrote under such a name is passed over."""
        with _told():
            tags = dict(self._client.get_registered_model(model).tags)
        found = []
        for key in sorted(key for key in tags if key.startswith(MOVE_PREFIX)):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found.append(Move.from_json(key.removeprefix(MOVE_PREFIX), json.loads(tags[key])))
        return found


def predecessor(moves: Sequence[Move], alias: str, version: str) -> str | None:
    """The version that ``version`` replaced behind the alias; None where the record does not lead to it.

    What was rolled back is replaced by what came before it, so rolling back twice goes back twice.
    """
    line: list[str] = []
    for move in moves:
        if move.alias != alias:
            continue
        if move.gate == ROLLBACK:
            line = _before(line, move.to)
        elif move.before is not None and line[-1:] != [move.before]:
            line.append(move.before)  # somebody moved it there without a record
        line.append(move.to)
    return line[-2] if line[-1:] == [version] and len(line) > 1 else None


def _before(line: list[str], version: str) -> list[str]:
    """What came before the last time that it was ``version``'s turn; all but the last where it never was."""
    places = [place for place, one in enumerate(line) if one == version]
    return line[: places[-1]] if places else line[:-1]


def actor() -> str:
    """Who moves: the person that a workflow runs for, or the user and the machine."""
    if name := os.environ.get("GITHUB_ACTOR"):
        return name[:LONGEST_NAME]
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user often has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:LONGEST_NAME]


def rolled_back_note(by: str, why: str) -> str:
    """What the tag of a version that was left says."""
    return json.dumps({"at": datetime.now(UTC).strftime(TIME), "by": by[:LONGEST_NAME], "why": why[:LONGEST_TEXT]})


def _listed(version: Any, aliases: Sequence[str]) -> Listed:
    tags = dict(version.tags)
    return Listed(str(version.version), tuple(sorted(aliases)), tags.get(GATE_TAG), ROLLED_BACK_TAG in tags)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What MLflow raises, as what it means."""
    try:
        yield
    except Exception as err:  # every store has errors of its own
        if getattr(err, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UnknownModel(f"registry: {first_line(err)}") from err
        raise RegistryUnreachable(f"registry: {first_line(err)}") from err
