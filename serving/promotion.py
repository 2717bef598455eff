"""Promote and roll back: an alias is moved after its gate, by the record of moves, and never past somebody else's move.

MLflow moves an alias without asking what it named. So what was judged is looked at once more right before, and the
alias right after: two who move in the same milliseconds are told of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving import verdict
from serving.errors import RegistryUnreachable, ServingError
from serving.registry import DEFAULT_ALIAS
from serving.registry.moves import (
    GATE_TAG,
    PASSED,
    ROLLBACK,
    ROLLED_BACK_TAG,
    Aliases,
    Listed,
    Move,
    predecessor,
    rolled_back_note,
)
from serving.routing import CHALLENGER
from serving.verdict import Check

NO_CHALLENGER = "no_challenger"  # the code of a service that has nothing to compare

# What a service says of the champion and the challenger: `serving.comparison.compare`. Raises ServingError.
Compare = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True)
class Wish:
    """What is to be promoted: the version behind ``source``. ``version`` only makes sure of it, but with ``force``."""

    model: str
    by: str
    why: str = ""
    source: str = CHALLENGER
    alias: str = DEFAULT_ALIAS
    version: str | None = None
    force: bool = False


@dataclass(frozen=True)
class Done:
    """Where the alias is now; not ``changed`` where it was there before."""

    model: str
    alias: str
    before: str | None
    to: str
    changed: bool = True
    gate: str = PASSED
    checks: tuple[Check, ...] = ()


class Refused(ServingError):
    """The alias stays where it is. ``decision`` is ``keep``, or ``wait`` where time may tell."""

    status = 409
    code = "not_moved"

    def __init__(
        self,
        message: str,
        *,
        decision: str = "keep",
        checks: Sequence[Check] = (),
        labels_needed: int | None = None,
        versions: Sequence[Listed] = (),
    ) -> None:
        super().__init__(message)
        self.decision = decision
        self.checks = tuple(checks)
        self.labels_needed = labels_needed
        self.versions = tuple(versions)


def promote(aliases: Aliases, wish: Wish, compare: Compare) -> Done:
    """Let the alias name the challenger, if the gate lets it; the challenger's alias is given up then.

    Raises `Refused`, and what ``compare`` and the registry raise.
    """
    before, candidate = aliases.holder(wish.model, wish.alias), _candidate(aliases, wish)
    if candidate == before:
        return Done(wish.model, wish.alias, before, candidate, changed=False)
    checks, labels_needed = _gate(aliases, wish, before, candidate, compare)
    decision = verdict.decision(checks)
    against = "; ".join(check.text for check in checks if not check.passed)
    if decision != "promote" and not wish.force:
        title = f"version {candidate} of {wish.model}"
        said = _wait(title, labels_needed, against) if decision == "wait" else f"{title} is not promoted: {against}"
        raise Refused(said, decision=decision, checks=checks, labels_needed=labels_needed)
    gate = PASSED if decision == "promote" else f"forced: {against}"
    move = Move(wish.alias, before, candidate, wish.by, wish.why, gate)
    if not wish.force:
        _still(aliases, wish.model, wish.source, candidate)
    _move(aliases, wish.model, move, then=lambda: _give_up(aliases, wish, candidate))
    return Done(wish.model, wish.alias, before, candidate, gate=gate, checks=tuple(checks))


def rollback(
    aliases: Aliases,
    model: str,
    *,
    by: str,
    why: str = "",
    alias: str = DEFAULT_ALIAS,
    to: str | None = None,
    only_from: str | None = None,
) -> Done:
    """Let the alias name what its version replaced, by the record of moves, or ``to``; the version left is marked.

    With ``only_from`` a machine decides: the alias must still name that version, and neither it nor the other one may
    have been rolled back before. Raises `Refused`, and what the registry raises.
    """
    before = aliases.holder(model, alias)
    if before is None:
        raise Refused(
            f"no version of {model} is {alias}: there is nothing to go back from", versions=aliases.versions(model)
        )
    target = to or predecessor(aliases.moves(model), alias, before)
    if target is None:
        said = f"it is not on record what version {before} of {model} replaced as {alias}; name one with --to"
        raise Refused(said, versions=aliases.versions(model))
    if target == before and only_from is None:
        return Done(model, alias, before, target, changed=False, gate=ROLLBACK)
    there = aliases.tags(model, target)
    if only_from is not None:
        _check_machine(model, alias, before, only_from, {before: aliases.tags(model, before), target: there})

    def mark() -> None:
        aliases.mark(model, before, ROLLED_BACK_TAG, rolled_back_note(by, why))

    _move(aliases, model, Move(alias, before, target, by, why, ROLLBACK), then=mark)
    return Done(model, alias, before, target, gate=ROLLBACK)


def _check_machine(model: str, alias: str, before: str, only_from: str, tags: Mapping[str, Mapping[str, str]]) -> None:
    if before != only_from:
        raise Refused(f"{alias} of {model} names version {before} by now, not {only_from}")
    for version, of_version in tags.items():
        if ROLLED_BACK_TAG in of_version:
            raise Refused(f"version {version} of {model} was rolled back before; who comes next is for people to say")


# --- the gate --------------------------------------------------------------------------------------------------------


def _candidate(aliases: Aliases, wish: Wish) -> str:
    named = aliases.holder(wish.model, wish.source)
    if wish.version is not None:
        if wish.version != named and not wish.force:
            what = f"names version {named}" if named else "names no version"
            raise Refused(
                f"{wish.source} of {wish.model} {what}, not {wish.version}: only what proved itself is promoted"
            )
        return wish.version
    if named is None:
        said = f"no version of {wish.model} is {wish.source}: set that alias on the one that is to prove itself"
        raise Refused(said, versions=aliases.versions(wish.model))
    return named


def _gate(
    aliases: Aliases, wish: Wish, before: str | None, candidate: str, compare: Compare
) -> tuple[list[Check], int | None]:
    """What was looked at, and how many labels are missing where that is known."""
    checks = _offline(aliases.tags(wish.model, candidate))
    if before is None:
        return [*checks, Check("proof", True, f"there is no {wish.alias} yet to compare it with")], None
    try:
        found = compare()
    except ServingError as err:
        if err.code != NO_CHALLENGER and not wish.force:
            raise
        return [*checks, Check("proof", False, str(err))], None
    live = found["champion"]["version"], found["challenger"]["version"]
    if live != (before, candidate):
        said = f"the service has version {live[1]} challenge {live[0]}, the registry {candidate} {before}"
        return [*checks, Check("proof", None, said)], None
    checks.append(Check("proof", True, "the service has it live as challenger"))
    checks += [Check(**one) for one in found["verdict"]["checks"]]
    return checks, found["verdict"]["labels_needed"]


def _offline(tags: Mapping[str, str]) -> list[Check]:
    gate = tags.get(GATE_TAG)
    said = f"the gate at training: {gate}" if gate else f"it has no tag {GATE_TAG}: no gate saw it at training"
    checks = [Check("offline", gate == PASSED, said)]
    if ROLLED_BACK_TAG in tags:
        checks.append(Check("past", False, f"it was rolled back {_past(tags[ROLLED_BACK_TAG])}"))
    return checks


def _past(text: str) -> str:
    try:
        note = json.loads(text)
        return f"at {note['at']} by {note['by']}: {note['why'] or 'nobody said why'}"
    except (ValueError, KeyError, TypeError):  # a tag that somebody wrote by hand
        return f"before: {text[:100]}"


def _wait(title: str, labels_needed: int | None, against: str) -> str:
    about = f"about {labels_needed} more labels are needed" if labels_needed else "it cannot be told yet"
    return f"wait with {title}: {about}; {against}"


# --- the move --------------------------------------------------------------------------------------------------------


def _still(aliases: Aliases, model: str, alias: str, version: str | None) -> None:
    """Raise `Refused` where the alias no longer names what was judged."""
    now = aliases.holder(model, alias)
    if now != version:
        what = f"version {now}" if now else "no version"
        raise Refused(
            f"{alias} of {model} names {what} by now: somebody moved it meanwhile, look again", decision="wait"
        )


def _move(aliases: Aliases, model: str, move: Move, then: Callable[[], None]) -> None:
    _still(aliases, model, move.alias, move.before)
    aliases.move(model, move.alias, move.to)
    try:
        then()
        aliases.record(model, move)
    except ServingError as err:
        raise RegistryUnreachable(
            f"{move.alias} of {model} names version {move.to} now, but not all of that could be recorded: {err}"
        ) from err
    _still(aliases, model, move.alias, move.to)


def _give_up(aliases: Aliases, wish: Wish, candidate: str) -> None:
    if wish.source != wish.alias and aliases.holder(wish.model, wish.source) == candidate:
        aliases.drop(wish.model, wish.source)
