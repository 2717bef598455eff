"""Promote and roll back, in a real registry: what the gate lets pass, what is put on record, who came in between."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from registries import empty_registry

from serving import verdict
from serving.errors import RegistryUnreachable, ServingError, UnknownModel
from serving.promotion import Done, Refused, Wish, promote, rollback
from serving.registry.moves import Aliases, Move, actor, predecessor, rolled_back_note

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

_names = itertools.count()


class Model:
    """A registered model of its own with three versions, of which the first is the champion."""

    def __init__(self, client: Any, aliases: Aliases, home: Path) -> None:
        self.client, self.aliases = client, aliases
        self.name = f"model-{next(_names)}"
        client.create_registered_model(self.name)
        for number in ("1", "2", "3"):
            client.create_model_version(self.name, str(home / self.name / number), tags={"gate": "passed"})
        self.point("champion", "1")

    def point(self, alias: str, version: str) -> None:
        self.client.set_registered_model_alias(self.name, alias, version)

    def tag(self, version: str, key: str, value: str) -> None:
        self.client.set_model_version_tag(self.name, version, key, value)

    @property
    def named(self) -> dict[str, str]:
        found = self.client.get_registered_model(self.name).aliases
        return {alias: str(version) for alias, version in found.items()}

    def tags(self, version: str) -> dict[str, str]:
        return self.aliases.tags(self.name, version)

    def moves(self) -> list[tuple[str | None, str, str, str, str]]:
        return [(one.before, one.to, one.by, one.why, one.gate) for one in self.aliases.moves(self.name)]

    def promote(self, compare: Callable[[], Mapping[str, Any]], **wish: Any) -> Done:
        return promote(self.aliases, Wish(self.name, **{"by": "ada@host", "why": "better", **wish}), compare)

    def rollback(self, **how: Any) -> Done:
        return rollback(self.aliases, self.name, **{"by": "ada@host", "why": "worse", **how})


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from mlflow import MlflowClient

    uri = empty_registry(tmp_path_factory.mktemp("registry") / "mlflow.db")
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture
def model(client: Any, tmp_path: Path) -> Model:
    return Model(client, Aliases(client), tmp_path)


def side(version: str, **changed: Any) -> dict[str, Any]:
    return {"version": version, "error_ratio": 0.0, "latency": {"p95_s": 0.001}, **changed}


def compared(
    challenger: str = "2", *, champion: str = "1", labels: int = 500, low: float = 0.01, high: float = 0.03, **them: Any
) -> Callable[[], dict[str, Any]]:
    """What a service says of the two, with the verdict that it makes of such numbers."""
    ours, theirs = side(champion), side(challenger, **them)
    found = verdict.Gain("brier", True, labels, 0.02, low, high, 0.001, labels)
    checks = verdict.checks(ours, theirs, found)
    plain = [check.as_json() for check in checks]
    needed = verdict.labels_needed(found)
    made = {"decision": verdict.decision(checks), "labels_needed": needed, "checks": plain}
    return lambda: {"champion": ours, "challenger": theirs, "verdict": made}


class NoContest(ServingError):
    """As a service answers without a challenger."""

    status, code = 404, "no_challenger"


class Silent(ServingError):
    """A service that is not there."""

    status, code = 502, "no_answer"


def fails(err: ServingError) -> Callable[[], dict[str, Any]]:
    def compare() -> dict[str, Any]:
        raise err

    return compare


def refusal(act: Callable[[], object]) -> Refused:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value


# --- promote ---------------------------------------------------------------------------------------------------------


def test_what_proved_itself_is_promoted_and_on_record(model: Model) -> None:
    model.point("challenger", "2")
    done = model.promote(compared())
    assert (done.before, done.to, done.changed, done.gate) == ("1", "2", True, "passed")
    assert [check.what for check in done.checks] == ["offline", "proof", "errors", "latency", "labels", "quality"]
    assert model.named == {"champion": "2"}  # nobody challenges any more
    assert model.moves() == [("1", "2", "ada@host", "better", "passed")]


def test_the_record_is_a_tag_of_the_model_with_the_time_in_its_name(model: Model) -> None:
    model.point("challenger", "2")
    model.promote(compared())
    [(key, value)] = model.client.get_registered_model(model.name).tags.items()
    assert key.startswith("move.20")
    assert key.endswith("Z")
    assert set(json.loads(value)) == {"alias", "from", "to", "by", "why", "gate"}


def test_what_is_champion_already_needs_nothing(model: Model) -> None:
    model.point("challenger", "1")
    assert not model.promote(fails(Silent("nobody asks"))).changed
    assert model.moves() == []


@pytest.mark.parametrize(
    ("changed", "decision", "word"),
    [
        ({"low": -0.01}, "wait", "labels are needed"),  # it may be better or worse
        ({"labels": 20}, "wait", "20 labels, at least 100"),
        ({"low": -0.05, "high": -0.01}, "keep", "brier is better by"),
        ({"error_ratio": 0.2}, "keep", "20.000% of its rows failed"),
        ({"error_ratio": None}, "wait", "answered nothing yet"),
        ({"latency": {"p95_s": 0.1}}, "keep", "95 % of its calls take 100 ms"),
    ],
)
def test_what_is_worse_or_undecided_is_not(model: Model, changed: dict[str, Any], decision: str, word: str) -> None:
    model.point("challenger", "2")
    err = refusal(lambda: model.promote(compared(**changed)))
    assert err.decision == decision
    assert word in str(err)
    assert (err.labels_needed or 0) > 0 or "labels" not in word
    assert model.named == {"champion": "1", "challenger": "2"}
    assert model.moves() == []


@pytest.mark.parametrize("gate", ["refused: accuracy 0.1, must be at least 0.9", None])
def test_what_the_gate_at_training_did_not_pass_is_not(model: Model, gate: str | None) -> None:
    model.point("challenger", "2")
    model.client.delete_model_version_tag(model.name, "2", "gate")
    if gate:
        model.tag("2", "gate", gate)
    said = str(refusal(lambda: model.promote(compared())))
    assert (gate or "it has no tag gate") in said
    assert model.promote(compared(), force=True).gate.startswith("forced: ")
    assert "accuracy 0.1" in model.moves()[0][4] or gate is None


def test_what_was_rolled_back_before_is_not(model: Model) -> None:
    model.point("challenger", "2")
    model.tag("2", "rolled_back", rolled_back_note("service", "it failed"))
    assert "by service: it failed" in str(refusal(lambda: model.promote(compared())))
    model.tag("2", "rolled_back", "by hand")
    assert "by hand" in str(refusal(lambda: model.promote(compared())))


def test_what_is_not_live_as_challenger_has_proved_nothing(model: Model) -> None:
    model.point("challenger", "2")
    err = refusal(lambda: model.promote(fails(NoContest("no version challenges it: refused, load_failed"))))
    assert "load_failed" in str(err)
    with pytest.raises(Silent):
        model.promote(fails(Silent("the service does not answer")))
    assert model.promote(fails(Silent("the service does not answer")), force=True).to == "2"


@pytest.mark.parametrize("live", [{"challenger": "3"}, {"champion": "3"}])
def test_a_service_that_is_behind_the_registry_is_waited_for(model: Model, live: dict[str, str]) -> None:
    model.point("challenger", "2")
    err = refusal(lambda: model.promote(compared(**live)))  # type: ignore[arg-type]
    assert (err.decision, "the service has version" in str(err)) == ("wait", True)


def test_only_the_version_that_is_named(model: Model) -> None:
    model.point("challenger", "2")
    assert "names version 2, not 3" in str(refusal(lambda: model.promote(compared(), version="3")))
    assert model.promote(compared(), version="2").to == "2"
    assert "names no version, not 3" in str(refusal(lambda: model.promote(compared(), version="3")))
    forced = model.promote(fails(NoContest("nobody challenges")), version="3", force=True)
    assert (forced.to, forced.gate) == ("3", "forced: nobody challenges")
    with pytest.raises(UnknownModel):
        model.promote(compared(), version="99", force=True)


def test_without_a_challenger_there_are_versions_to_choose_from(model: Model) -> None:
    err = refusal(lambda: model.promote(compared()))
    assert [(one.version, one.aliases) for one in err.versions] == [("3", ()), ("2", ()), ("1", ("champion",))]
    with pytest.raises(UnknownModel):
        promote(model.aliases, Wish("nobody", "me"), compared())


def test_the_first_champion_has_nobody_to_beat(model: Model) -> None:
    model.point("challenger", "2")
    assert model.promote(fails(Silent("nobody asks")), alias="staging").before is None
    assert model.named == {"champion": "1", "staging": "2"}


@pytest.mark.parametrize("alias", ["champion", "challenger"])
def test_who_moves_meanwhile_is_not_run_over(model: Model, alias: str) -> None:
    model.point("challenger", "2")

    def compare() -> dict[str, Any]:
        model.point(alias, "3")  # while the service is asked
        return compared()()

    assert f"{alias} of {model.name} names version 3 by now" in str(refusal(lambda: model.promote(compare)))
    assert model.moves() == []


def test_a_move_that_cannot_be_recorded_says_that_it_was_made(client: Any, tmp_path: Path) -> None:
    class Forgets(Aliases):
        def record(self, model: str, move: Move) -> None:
            raise RegistryUnreachable("registry: 503")

    model = Model(client, Forgets(client), tmp_path)
    model.point("challenger", "2")
    with pytest.raises(RegistryUnreachable, match="names version 2 now, but not all of that could be recorded"):
        model.promote(compared())
    assert model.named["champion"] == "2"


# --- roll back -------------------------------------------------------------------------------------------------------


def test_back_to_what_it_replaced_step_by_step(model: Model) -> None:
    for challenger, champion in (("2", "1"), ("3", "2")):
        model.point("challenger", challenger)
        model.promote(compared(challenger, champion=champion))
    assert (model.rollback().to, model.named["champion"]) == ("2", "2")
    assert json.loads(model.tags("3")["rolled_back"])["why"] == "worse"
    assert model.rollback().to == "1"
    assert "what version 1" in str(refusal(model.rollback))
    assert [move[:2] + move[4:] for move in model.moves()][2:] == [("3", "2", "rollback"), ("2", "1", "rollback")]


def test_without_a_record_there_are_versions_to_choose_from(model: Model) -> None:
    err = refusal(model.rollback)
    assert ("--to" in str(err), len(err.versions)) == (True, 3)
    assert model.rollback(to="3").before == "1"
    assert not model.rollback(to="3").changed
    with pytest.raises(UnknownModel):
        model.rollback(to="99")
    assert "no version" in str(refusal(lambda: model.rollback(alias="nobody")))


def test_a_move_by_hand_is_not_on_record(model: Model) -> None:
    model.point("challenger", "2")
    model.promote(compared())
    model.point("champion", "3")
    assert "not on record" in str(refusal(model.rollback))


def test_a_machine_goes_back_once_and_only_from_what_it_judged(model: Model) -> None:
    model.point("champion", "2")
    assert "names version 2 by now, not 3" in str(refusal(lambda: model.rollback(to="1", only_from="3")))
    assert model.rollback(to="1", only_from="2").to == "1"
    again = refusal(lambda: model.rollback(to="1", only_from="2"))  # another pod, a moment later
    assert "names version 1 by now" in str(again)
    assert "version 2 of" in str(refusal(lambda: model.rollback(to="2", only_from="1")))  # not to what went back
    model.point("champion", "2")
    assert "was rolled back before" in str(refusal(lambda: model.rollback(to="1", only_from="2")))
    assert model.rollback(to="1").to == "1"  # a person may


# --- the record ------------------------------------------------------------------------------------------------------


def line(*moves: tuple[str | None, str] | tuple[str | None, str, str]) -> list[Move]:
    return [Move("champion", one[0], one[1], "me", "", one[2] if len(one) > 2 else "passed") for one in moves]


@pytest.mark.parametrize(
    ("moves", "version", "before"),
    [
        ([], "1", None),
        ([(None, "1")], "1", None),
        ([(None, "1"), ("1", "2")], "2", "1"),
        ([("7", "8")], "8", "7"),  # the first move on record
        ([(None, "1"), ("1", "2"), ("2", "1")], "1", "2"),  # promoted again
        ([(None, "1"), ("1", "2"), ("2", "1", "rollback")], "1", None),
        ([(None, "1"), ("1", "2"), ("2", "3"), ("3", "2", "rollback"), ("3", "2", "rollback")], "2", "1"),  # two pods
        ([(None, "1"), ("1", "2"), ("2", "1"), ("1", "3"), ("3", "1", "rollback")], "1", "2"),
        ([(None, "1"), ("1", "2"), ("2", "9", "rollback")], "9", "1"),  # by --to
        ([(None, "1"), ("5", "6")], "6", "5"),  # somebody moved it to 5 without a record
        ([(None, "1"), ("1", "2")], "3", None),
    ],
)
def test_what_a_version_replaced(moves: list[Any], version: str, before: str | None) -> None:
    assert predecessor(line(*moves), "champion", version) == before
    assert predecessor(line(*moves), "staging", version) is None


def test_what_is_no_move_is_passed_over(model: Model) -> None:
    for number, text in enumerate(("{", "[]", '{"alias": "champion"}')):
        model.client.set_registered_model_tag(model.name, f"move.{number}", text)
    model.aliases.record(model.name, Move("champion", None, "1", "b" * 999, "w" * 9999, "passed"))
    [move] = model.aliases.moves(model.name)
    assert (len(move.by), len(move.why)) == (100, 500)


def test_who_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTOR", raising=False)
    assert "@" in actor()
    monkeypatch.setenv("GITHUB_ACTOR", "octocat")
    assert actor() == "octocat"
