"""One model is kept at what the registry names."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from serving import bundle as bundles
from serving import notes
from serving.bundle import Bundle, Proof
from serving.errors import PrepareFailed, RegistryUnreachable, ServingError, UnknownModel, VersionRefused
from serving.follower import Follower
from serving.registry import LocalFiles, Ref, Version
from serving.state import ModelState
from serving.tensors import Classes, Field, Signature

TWO = Signature("columns", (Field("a", "double"), Field("b", "double")))
ONE = Signature("columns", (Field("a", "double"),))


class Shelf:
    """A registry in memory."""

    def __init__(self) -> None:
        self.named: Version | ServingError = UnknownModel("nothing here")
        self.changes = 0

    def name(self, version: str, *, digest: str | None = None, breaking: bool = False) -> None:
        digest = digest or f"sha256:{version}"
        self.named = Version(
            "m", version, "champion", "registry", f"/files/{version}", digest=digest, breaking=breaking
        )
        self.changes += 1

    def resolve(self, ref: Ref) -> Version:
        if isinstance(self.named, ServingError):
            raise self.named
        return self.named

    def fingerprint(self) -> object:
        return self.changes


class Workshop:
    """Prepares empty bundles, or fails as it is told."""

    def __init__(self) -> None:
        self.prepared: list[str] = []
        self.signature = TWO
        self.trouble: ServingError | None = None

    def __call__(self, version: Version, into: Path) -> Bundle:
        self.prepared.append(version.version)
        if self.trouble is not None:
            raise self.trouble
        work = into.parent / f".prepare-{version.version}"
        work.mkdir(parents=True)
        made = Bundle(
            folder=work,
            name=version.name,
            version=version.version,
            source=version.source,
            run_id=None,
            digest=version.digest or "sha256:?",
            digest_recorded=version.digest is not None,
            runtime="onnx",
            signature=self.signature,
            classes=Classes((0, 1), ("no", "yes")),
            example=None,
            proof=Proof(0, None, None),
            libraries={},
        )
        return bundles.write(made, into)


class Scene:
    """A follower with all that it works with."""

    def __init__(self, home: Path, **options: int) -> None:
        self.registry, self.workshop = Shelf(), Workshop()
        self.state = ModelState(home / "state", "m")
        self.local = LocalFiles(home / "models")
        self.follower = Follower(
            Ref("m"), self.registry, self.local, self.state, self.workshop, **{"keep_bundles": 3, **options}
        )

    @property
    def desired(self) -> dict[str, object]:
        return notes.read(self.state.desired) or {}

    @property
    def status(self) -> dict[str, dict[str, object] | None]:
        return notes.read(self.state.status) or {}

    def live(self, *versions: str) -> None:
        for version in versions:
            self.registry.name(version)
            assert self.follower.look()["status"] == 200

    def publish(self, version: str, home: Path) -> None:
        files = home / f"local-{version}"
        files.mkdir()
        (files / "MLmodel").write_text("flavors: {}")
        self.local.publish(Version("m", version, "champion", "local", "", digest=f"sha256:{version}"), files)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_the_alias_names_becomes_desired(scene: Scene) -> None:
    scene.registry.name("1")
    outcome = scene.follower.look()
    assert (outcome["status"], outcome["changed"], outcome["version"], outcome["generation"]) == (200, True, "1", 1)
    assert (scene.desired["version"], scene.desired["source"], scene.desired["alias"]) == ("1", "registry", "champion")
    assert scene.status["registry"] is not None
    assert scene.status["registry"]["reachable"] is True


def test_a_second_look_changes_nothing(scene: Scene) -> None:
    scene.live("1")
    outcome = scene.follower.look()
    assert (outcome["changed"], outcome["generation"], scene.workshop.prepared) == (False, 1, ["1"])


def test_going_back_prepares_nothing_again(scene: Scene) -> None:
    scene.live("1", "2", "1")
    assert (scene.desired["version"], scene.desired["generation"]) == ("1", 3)
    assert scene.workshop.prepared == ["1", "2"]


def test_the_same_number_with_other_files_is_another_version(scene: Scene) -> None:
    scene.live("1")
    scene.registry.name("1", digest="sha256:new")
    assert scene.follower.look()["changed"] is True
    assert scene.workshop.prepared == ["1", "1"]


def test_a_damaged_bundle_is_prepared_again(scene: Scene) -> None:
    scene.live("1")
    (scene.state.home / str(scene.desired["bundle"]) / "bundle.json").write_text("{")
    assert scene.follower.look()["changed"] is True
    assert scene.workshop.prepared == ["1", "1"]


def test_a_refused_version_leaves_the_old_one_and_is_not_tried_again_by_itself(scene: Scene) -> None:
    scene.live("1")
    scene.registry.name("2")
    scene.workshop.trouble = VersionRefused("it is bad", reason="load_failed")
    for _ in range(3):
        outcome = scene.follower.look()
        assert (outcome["status"], outcome["reason"], outcome["version"]) == (409, "load_failed", "1")
        assert outcome["message"] == "m version 2 refused: it is bad"
    assert scene.workshop.prepared == ["1", "2"]
    assert scene.status["refused"] is not None
    assert scene.status["refused"]["version"] == "2"


def test_a_refused_version_is_tried_again_when_asked(scene: Scene) -> None:
    scene.registry.name("2")
    scene.workshop.trouble = VersionRefused("it is bad", reason="load_failed")
    scene.follower.look()
    scene.workshop.trouble = None
    assert scene.follower.look(asked=True)["version"] == "2"
    assert scene.status["refused"] is None


def test_a_version_whose_files_are_missing_is_tried_again_after_a_pause(scene: Scene) -> None:
    scene.live("1")
    scene.registry.name("2")
    scene.workshop.trouble = VersionRefused("file model.onnx is missing", reason="missing_files")
    for _ in range(3):
        assert scene.follower.look()["reason"] == "missing_files"
    assert scene.workshop.prepared == ["1", "2"]
    scene.workshop.trouble = None
    time.sleep(1.05)
    assert scene.follower.look()["version"] == "2"
    assert scene.status["refused"] is None


def test_a_refusal_is_forgotten_when_the_alias_goes_back(scene: Scene) -> None:
    scene.live("1")
    scene.registry.name("2")
    scene.workshop.trouble = VersionRefused("it is bad", reason="load_failed")
    scene.follower.look()
    scene.registry.name("1")
    assert scene.follower.look()["changed"] is False
    assert scene.status["refused"] is None


def test_our_own_trouble_is_tried_again_after_a_pause(scene: Scene) -> None:
    scene.registry.name("1")
    scene.workshop.trouble = PrepareFailed("no room")
    assert scene.follower.look()["code"] == "prepare_failed"
    assert scene.follower.look()["code"] == "waiting"
    assert scene.workshop.prepared == ["1"]
    scene.workshop.trouble = None
    time.sleep(1.05)
    assert scene.follower.look()["version"] == "1"


def test_trouble_with_one_version_does_not_hold_up_another(scene: Scene) -> None:
    scene.registry.name("1")
    scene.workshop.trouble = PrepareFailed("no room")
    scene.follower.look()
    scene.workshop.trouble = None
    scene.registry.name("2")
    assert scene.follower.look()["version"] == "2"


def test_a_change_of_the_signature_must_be_declared(scene: Scene) -> None:
    scene.live("1")
    scene.workshop.signature = ONE
    scene.registry.name("2")
    outcome = scene.follower.look()
    assert (outcome["status"], outcome["reason"], outcome["version"]) == (409, "signature_changed", "1")
    scene.registry.name("2", breaking=True)
    assert scene.follower.look()["version"] == "2"
    scene.registry.name("1")  # and back again
    assert scene.follower.look()["version"] == "1"


def test_a_registry_that_is_gone_changes_nothing(scene: Scene, tmp_path: Path) -> None:
    scene.live("1")
    scene.publish("9", tmp_path)
    scene.registry.named = RegistryUnreachable("it is gone")
    outcome = scene.follower.look()
    assert (outcome["status"], outcome["version"]) == (502, "1")
    assert scene.status["registry"] is not None
    assert (scene.status["registry"]["reachable"], scene.status["registry"]["error"]) == (False, "it is gone")


@pytest.mark.parametrize("trouble", [RegistryUnreachable("it is gone"), UnknownModel("no such alias")])
def test_local_files_serve_while_nothing_else_did(scene: Scene, tmp_path: Path, trouble: ServingError) -> None:
    scene.registry.named = trouble
    scene.publish("8", tmp_path)
    assert scene.follower.look()["version"] == "8"
    scene.publish("9", tmp_path)
    assert scene.follower.look()["version"] == "9"
    assert scene.desired["source"] == "local"
    scene.workshop.signature = ONE  # what local files bridged is not held against the registry
    scene.live("1")
    assert scene.desired["source"] == "registry"


def test_trouble_with_the_local_files_is_said_when_it_happens(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene.publish("7", tmp_path)
    scene.registry.named = RegistryUnreachable("no answer")
    scene.workshop.trouble = PrepareFailed("the disk is full")
    for _ in range(3):
        scene.follower.look()
    told = [record.message for record in caplog.records if "local files" in record.message]
    assert told == ["m@champion: the local files cannot serve either: the disk is full"]


def test_local_files_step_in_for_a_damaged_last_good_copy(scene: Scene, tmp_path: Path) -> None:
    scene.live("1")
    scene.publish("9", tmp_path)
    (scene.state.home / str(scene.desired["bundle"]) / "bundle.json").unlink()
    scene.registry.named = RegistryUnreachable("it is gone")
    assert scene.follower.look()["version"] == "9"


def test_old_bundles_go_the_live_one_and_the_one_before_stay(tmp_path: Path) -> None:
    scene = Scene(tmp_path, keep_bundles=1)
    scene.live("1", "2", "3", "4")
    assert sorted(path.name.split("-")[0] for path in scene.state.bundles.iterdir()) == ["3", "4"]


def test_a_bug_is_an_outcome_too(scene: Scene) -> None:
    scene.registry.named = replace(Version("m", "1", None, "registry", ""), version=None)  # type: ignore[arg-type]
    scene.state.home.mkdir(parents=True, exist_ok=True)
    scene.state.bundles.write_text("a file where a folder belongs")
    outcome = scene.follower.look()
    assert outcome["status"] == 500
    assert "Traceback" not in str(outcome["message"])


def test_following_looks_at_once_when_the_registry_changes_and_when_asked(scene: Scene) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=scene.follower.follow, args=(stop, 3600.0))
    thread.start()
    try:
        scene.registry.name("1")
        _wait(lambda: scene.desired.get("version") == "1")
        (scene.state.asks / "abc").touch()
        _wait(lambda: (scene.state.answers / "abc").is_file())
        assert (notes.read(scene.state.answers / "abc") or {})["version"] == "1"
        assert list(scene.state.asks.iterdir()) == []
    finally:
        stop.set()
        thread.join()


def _wait(true: object) -> None:
    deadline = time.monotonic() + 5
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)
