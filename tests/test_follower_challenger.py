"""A challenger takes the part that its tag or the setting says, as long as it fits the champion's clients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_follower import ONE, TWO, Shelf, Workshop

from serving import notes
from serving.errors import RegistryUnreachable, UnknownModel
from serving.follower import Challenge, Follower
from serving.registry import LocalFiles, Ref, Version
from serving.routing import Part
from serving.state import ModelState


class Contest:
    """A champion's follower and a challenger's, side by side."""

    def __init__(self, home: Path, part: str = "shadow") -> None:
        self.states = ModelState(home / "state", "m"), ModelState(home / "state", "m", ModelState.CHALLENGER)
        self.shelves, self.workshop = (Shelf(), Shelf()), Workshop()
        local = LocalFiles(home / "models")
        self.champion, self.challenger = (
            Follower(
                ref,
                shelf,
                local,
                state,
                self.workshop,
                keep_bundles=2,
                others=other.bundles,
                challenge=challenge,
            )
            for ref, shelf, state, other, challenge in (
                (Ref("m"), self.shelves[0], self.states[0], self.states[1], None),
                (
                    Ref("m", "challenger"),
                    self.shelves[1],
                    self.states[1],
                    self.states[0],
                    Challenge(self.states[0], Part.parse(part)),
                ),
            )
        )

    def live(self, version: str) -> None:
        self.shelves[0].name(version)
        assert self.champion.look()["status"] == 200

    def name(self, version: str, *, route: str | None = None, breaking: bool = False) -> dict[str, Any]:
        self.shelves[1].name(version, breaking=breaking)
        named = self.shelves[1].named
        assert isinstance(named, Version)
        self.shelves[1].named = replace(named, alias="challenger", route=route)
        return self.challenger.look()

    @property
    def desired(self) -> dict[str, Any]:
        return notes.read(self.states[1].desired) or {}


@pytest.fixture
def contest(tmp_path: Path) -> Contest:
    contest = Contest(tmp_path)
    contest.live("1")
    return contest


@pytest.mark.parametrize(("route", "part"), [(None, "shadow"), ("10%", "10%"), ("shadow", "shadow"), ("2.5", "2.5%")])
def test_the_part_is_the_tags_or_else_the_settings(contest: Contest, route: str | None, part: str) -> None:
    assert contest.name("2", route=route)["status"] == 200
    assert (contest.desired["version"], contest.desired["part"]) == ("2", part)


def test_another_share_prepares_nothing_and_keeps_the_evidence(contest: Contest) -> None:
    contest.name("2", route="10%")
    before = contest.desired
    contest.name("2", route="30%")
    after = contest.desired
    assert (after["part"], after["generation"]) == ("30%", before["generation"] + 1)
    assert (after["bundle"], after["since"]) == (before["bundle"], before["since"])
    assert contest.workshop.prepared == ["1", "2"]


def test_it_begins_anew_against_another_champion(contest: Contest) -> None:
    contest.name("2", route="10%")
    before = contest.desired["since"]
    contest.live("3")
    assert contest.challenger.look()["changed"] is True
    assert contest.desired["since"] > before


def test_off_is_off(contest: Contest) -> None:
    contest.name("2")
    assert contest.name("2", route="off")["changed"] is True
    assert contest.desired["bundle"] is None
    assert contest.challenger.look()["changed"] is False


def test_without_the_alias_nobody_challenges(contest: Contest) -> None:
    contest.name("2")
    contest.shelves[1].named = UnknownModel("no such alias")
    outcome = contest.challenger.look()
    assert (outcome["status"], outcome["changed"]) == (200, True)
    assert contest.desired["bundle"] is None
    assert contest.name("2")["status"] == 200
    assert contest.desired["version"] == "2"
    assert contest.workshop.prepared == ["1", "2"]


def test_the_champion_does_not_challenge_itself(contest: Contest) -> None:
    contest.name("1", route="50%")
    assert contest.desired == {}
    contest.name("2", route="50%")
    contest.live("2")
    contest.challenger.look()
    assert contest.desired["bundle"] is None


def test_who_is_promoted_is_not_prepared_again(contest: Contest) -> None:
    contest.name("2")
    contest.live("2")
    assert contest.workshop.prepared == ["1", "2"]
    assert (contest.states[0].bundles / Path(str(notes.read(contest.states[0].desired)["bundle"])).name).is_dir()  # type: ignore[index]


def test_before_there_is_a_champion_nobody_challenges(tmp_path: Path) -> None:
    contest = Contest(tmp_path)
    assert contest.name("2")["changed"] is False
    assert contest.workshop.prepared == []


def test_while_the_registry_is_away_it_goes_on(contest: Contest) -> None:
    contest.name("2", route="10%")
    contest.shelves[1].named = RegistryUnreachable("gone")
    assert contest.challenger.look()["status"] == 502
    assert contest.desired["part"] == "10%"


@pytest.mark.parametrize("breaking", [False, True])
def test_it_must_fit_the_champions_clients_even_if_it_declares_not_to(contest: Contest, breaking: bool) -> None:
    assert contest.workshop.signature == TWO
    contest.workshop.signature = ONE
    outcome = contest.name("2", breaking=breaking)
    assert (outcome["status"], outcome["reason"]) == (409, "signature_changed")
    assert contest.desired == {}


def test_one_that_is_refused_takes_the_place_of_nobody(contest: Contest) -> None:
    contest.name("2")
    contest.workshop.signature = ONE
    assert contest.name("3")["status"] == 409
    assert contest.desired["bundle"] is None


def test_a_tag_that_says_nothing_is_a_refusal_that_says_so(contest: Contest) -> None:
    outcome = contest.name("2", route="a few")
    assert (outcome["status"], outcome["reason"]) == (409, "bad_route")
    assert "'a few' is neither off, shadow, nor a percentage" in outcome["message"]


def test_local_files_never_challenge(tmp_path: Path) -> None:
    contest = Contest(tmp_path)
    contest.live("1")
    files = tmp_path / "files"
    files.mkdir()
    (files / "MLmodel").write_text("flavors: {}")
    LocalFiles(tmp_path / "models").publish(Version("m", "9", "champion", "local", "", digest="sha256:9"), files)
    contest.shelves[1].named = RegistryUnreachable("gone")
    contest.challenger.look()
    assert contest.desired == {}
