"""The bundle on disk: whole or not there, and read only where it fits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import pytest

from serving import bundle as bundles
from serving.bundle import FORMAT, Bundle, BundleUnreadable, Proof
from serving.tensors import Classes, Field, Signature


@pytest.fixture
def unsealed(tmp_path: Path) -> Bundle:
    """A bundle whose files lie in a work folder and that is not written yet."""
    work = tmp_path / "work"
    (work / "model").mkdir(parents=True)
    (work / "model" / "weights äöü.bin").write_bytes(bytes(1000))
    (work / "graph").write_text("model.onnx")
    return Bundle(
        folder=work,
        name="iris",
        version="3",
        source="registry",
        run_id="0123abcd",
        digest="sha256:00",
        digest_recorded=True,
        runtime="sklearn",
        signature=Signature("columns", (Field("größe", "double"), Field("note", "string", required=False))),
        classes=Classes((-1, 1), ("ham", "spam")),
        example={"features": [{"größe": 1.5, "note": None}]},
        proof=Proof(1000, 0.0, 1e-6),
        libraries={"numpy": installed_version("numpy")},
    )


@pytest.fixture
def sealed(unsealed: Bundle, tmp_path: Path) -> Bundle:
    return bundles.write(unsealed, tmp_path / "bundles" / "3-abc")


def unreadable(folder: Path, **options: bool) -> str:
    with pytest.raises(BundleUnreadable) as caught:
        bundles.read(folder, **options)
    return str(caught.value)


def test_it_reads_back_as_it_was_written(unsealed: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "3-abc"
    assert bundles.write(unsealed, target) == replace(unsealed, folder=target)
    assert bundles.read(target, verify=True) == replace(unsealed, folder=target)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": None},
        {"classes": Classes((False, True), ("False", "True"))},
        {"classes": Classes(("no", "yes"), ("no", "yes"))},
        {"example": None},
        {"run_id": None},
        {"proof": Proof(0, None, None, "the version has no reference rows")},
        {"signature": Signature("tensors", (Field("x", "float32", shape=(-1, 3)),), "inferred")},
        {"signature": Signature("unknown", (), "none")},
        {"libraries": {}},
        {"digest_recorded": False, "source": "local"},
        {"outputs": (Field("label", "int64"), Field("probabilities", "float64", shape=(3,)))},
        {"pyfunc": {"loader": "mlflow.sklearn", "predict_fn": "predict", "params": []}},
        {"threshold": 0.0625},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_it_survives(unsealed: Bundle, tmp_path: Path, change: dict[str, Any]) -> None:
    bundle = replace(unsealed, **change)
    written = bundles.write(bundle, tmp_path / "b")
    assert written == replace(bundle, folder=tmp_path / "b")
    if written.classes and bundle.classes:
        assert [type(label) for label in written.classes.labels] == [type(label) for label in bundle.classes.labels]


def test_writing_moves_the_work_folder_as_a_whole(unsealed: Bundle, sealed: Bundle) -> None:
    assert not unsealed.folder.exists()
    files = sorted(path.relative_to(sealed.folder).as_posix() for path in sealed.folder.rglob("*") if path.is_file())
    assert files == ["bundle.json", "graph", "model/weights äöü.bin"]


def test_writing_replaces_what_an_interrupted_run_left(unsealed: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "bundles" / "3-abc"
    (target / "model").mkdir(parents=True)
    (target / "model" / "half").write_bytes(b"x")
    bundles.write(unsealed, target)
    assert not (target / "model" / "half").exists()


def test_a_bundle_may_be_moved(sealed: Bundle, tmp_path: Path) -> None:
    sealed.folder.rename(tmp_path / "moved")
    assert bundles.read(tmp_path / "moved", verify=True).version == "3"


# --- what is not read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_folder_without_a_bundle(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    assert f"holds no bundle of format {FORMAT}" in unreadable(tmp_path / name)


def test_a_bundle_of_another_format(sealed: Bundle) -> None:
    change_note(sealed.folder, lambda content: content.update(format=FORMAT + 1))
    assert f"holds no bundle of format {FORMAT}" in unreadable(sealed.folder)


def change_note(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "bundle.json").read_text())
    change(content)
    (folder / "bundle.json").write_text(json.dumps(content))


def test_a_note_that_was_cut_off(sealed: Bundle) -> None:
    note = sealed.folder / "bundle.json"
    note.write_bytes(note.read_bytes()[:-10])
    assert "holds no bundle" in unreadable(sealed.folder)


@pytest.mark.parametrize(
    "key", ["name", "version", "source", "digest", "runtime", "signature", "classes", "proof", "libraries", "files"]
)
def test_a_note_that_lacks_a_part(sealed: Bundle, key: str) -> None:
    change_note(sealed.folder, lambda content: content.pop(key))
    assert "is not as it was written" in unreadable(sealed.folder)


@pytest.mark.parametrize("key", ["signature", "proof", "libraries", "files"])
def test_a_note_with_a_part_of_another_kind(sealed: Bundle, key: str) -> None:
    change_note(sealed.folder, lambda content: content.update({key: None}))
    assert "is not as it was written" in unreadable(sealed.folder)


def test_a_file_that_was_cut_off(sealed: Bundle) -> None:
    (sealed.folder / "model" / "weights äöü.bin").write_bytes(bytes(999))
    assert "weights äöü.bin is not as it was written" in unreadable(sealed.folder)


def test_a_file_that_is_gone(sealed: Bundle) -> None:
    (sealed.folder / "graph").unlink()
    assert "graph cannot be read: No such file" in unreadable(sealed.folder)


def test_other_content_of_the_same_size_is_found_when_it_is_verified(sealed: Bundle) -> None:
    (sealed.folder / "model" / "weights äöü.bin").write_bytes(bytes(999) + b"x")
    assert bundles.read(sealed.folder).version == "3"
    assert "is not as it was written" in unreadable(sealed.folder, verify=True)


@pytest.mark.parametrize(
    ("library", "wanted", "found"),
    [("numpy", "0.1", installed_version("numpy")), ("no-such-distribution", "1.0", "not installed")],
)
def test_another_version_of_a_library(sealed: Bundle, library: str, wanted: str, found: str) -> None:
    change_note(sealed.folder, lambda content: content["libraries"].update({library: wanted}))
    assert unreadable(sealed.folder) == f"the bundle was made with {library} {wanted}, here it is {found}"


# --- parts -----------------------------------------------------------------------------------------------------------


def test_the_libraries_are_recorded_as_they_are_installed() -> None:
    assert bundles.library_versions(("numpy", "requests")) == {
        "numpy": installed_version("numpy"),
        "requests": installed_version("requests"),
    }


def test_a_proof_says_what_was_compared() -> None:
    assert Proof(5, 1e-9, 1e-6).as_json() == {"rows": 5, "largest_difference": 1e-9, "tolerance": 1e-6}
    assert Proof(0, None, None, "none").as_json()["note"] == "none"


def test_a_copy_is_the_same_bundle_elsewhere(sealed: Bundle, tmp_path: Path) -> None:
    made = bundles.copy(sealed, tmp_path / "other" / "bundles" / "3-abc")
    assert bundles.read(made.folder, verify=True) == replace(sealed, folder=made.folder)
    assert (made.folder / "graph").samefile(sealed.folder / "graph")  # shared, not written twice
    assert [path.name for path in made.folder.parent.iterdir()] == ["3-abc"]


def test_a_copy_that_cannot_be_made_leaves_nothing(sealed: Bundle, tmp_path: Path) -> None:
    (sealed.folder / "graph").unlink()
    (sealed.folder / "graph").symlink_to(tmp_path / "gone")
    target = tmp_path / "other" / "bundles" / "3-abc"
    with pytest.raises((OSError, BundleUnreadable)):
        bundles.copy(sealed, target)
    assert not list(target.parent.glob(".prepare-*"))
