"""The digest of a folder: the same for the same files, another for anything else."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from serving.digest import file_sha256, folder_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "data" / "deep").mkdir(parents=True)
    (made / "MLmodel").write_bytes(b"flavors: {}\n")
    (made / "data" / "weights äöü 100%.bin").write_bytes(bytes(range(256)))
    (made / "data" / "deep" / "empty").touch()
    return made


def test_it_is_what_its_description_says(folder: Path) -> None:
    """Computed here from the description, so that other programs can record the same digest."""
    lines = ""
    for name in ("MLmodel", "data/deep/empty", "data/weights äöü 100%.bin"):
        content = (folder / name).read_bytes()
        lines += f"{hashlib.sha256(content).hexdigest()} {len(content)} {name}\n"
    assert folder_digest(folder) == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def test_it_does_not_depend_on_the_place_or_the_time(folder: Path, tmp_path: Path) -> None:
    before = folder_digest(folder)
    copied = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    os.utime(copied / "MLmodel", (0, 0))
    (copied / "data" / "nothing in it").mkdir()
    assert folder_digest(copied) == before


@pytest.mark.parametrize("change", ["content", "truncated", "renamed", "moved", "added", "removed"])
def test_any_change_of_a_file_changes_it(folder: Path, change: str) -> None:
    before = folder_digest(folder)
    weights = folder / "data" / "weights äöü 100%.bin"
    match change:
        case "content":
            weights.write_bytes(bytes(reversed(range(256))))
        case "truncated":
            weights.write_bytes(bytes(range(255)))
        case "renamed":
            weights.rename(weights.with_name("weights.bin"))
        case "moved":
            weights.rename(folder / weights.name)
        case "added":
            (folder / "data" / "more").touch()
        case "removed":
            (folder / "data" / "deep" / "empty").unlink()
    assert folder_digest(folder) != before


def test_what_mlflow_adds_to_a_download_does_not_count(folder: Path) -> None:
    before = folder_digest(folder)
    (folder / "registered_model_meta").write_text("model_name: iris\n")
    assert folder_digest(folder) == before


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_folder_without_files_has_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no files in"):
        folder_digest(tmp_path / name)


def test_a_file_larger_than_a_buffer_is_read_whole(tmp_path: Path) -> None:
    content = os.urandom(3 * 1024 * 1024 + 7)
    (tmp_path / "large").write_bytes(content)
    assert file_sha256(tmp_path / "large") == hashlib.sha256(content).hexdigest()
