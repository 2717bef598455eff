"""Models that are served: those of the settings, and those that were added since."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving import notes
from serving.roster import Roster


@pytest.fixture
def state(tmp_path: Path) -> Path:
    notes.write(tmp_path / "service.json", {"started_at": "today"})
    return tmp_path


def test_what_it_was_told(state: Path) -> None:
    roster = Roster(["iris@live", "fraud/3"], state)
    assert roster() == ("iris@live", "fraud/3")
    assert roster.names == ("iris", "fraud")


def test_what_is_added_is_seen_by_every_process(state: Path) -> None:
    ours, theirs = Roster(["iris"], state), Roster(["iris"], state)
    assert ours.add("fraud")
    assert theirs.names == ("iris", "fraud")
    assert not theirs.add("fraud@other")
    assert not theirs.add("iris")
    assert theirs.remove("fraud")
    assert not theirs.remove("iris")
    assert ours.names == ("iris",)


def test_it_ends_with_the_service(state: Path) -> None:
    Roster(["iris"], state).add("fraud")
    notes.write(state / "service.json", {"started_at": "tomorrow"})
    assert Roster(["iris"], state).names == ("iris",)


def test_it_is_the_same_object_until_something_changes(state: Path) -> None:
    roster = Roster(["iris"], state)
    assert roster() is roster()
    roster.add("fraud")
    assert roster() is roster()


def test_many_add_at_once(state: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: Roster(["iris"], state).add(f"m{number}"), range(24)))
    assert sorted(Roster(["iris"], state).names) == sorted(["iris", *(f"m{number}" for number in range(24))])
