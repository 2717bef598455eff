"""Notes: replaced in one step, read as a whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving import notes

CONTENT = {"version": "3", "größe": 1.5, "rows": [1, None, True], "nested": {"a": {}}}


def test_a_note_reads_back_as_it_was_written(tmp_path: Path) -> None:
    notes.write(tmp_path / "note.json", CONTENT)
    assert notes.read(tmp_path / "note.json") == CONTENT


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    notes.write(tmp_path / "a" / "b" / "note.json", {})
    assert notes.read(tmp_path / "a" / "b" / "note.json") == {}


def test_nothing_but_the_note_is_left(tmp_path: Path) -> None:
    for number in range(3):
        notes.write(tmp_path / "note.json", {"number": number})
    assert [path.name for path in tmp_path.iterdir()] == ["note.json"]
    assert notes.read(tmp_path / "note.json") == {"number": 2}


def test_what_cannot_be_written_leaves_the_old_note(tmp_path: Path) -> None:
    notes.write(tmp_path / "note.json", CONTENT)
    with pytest.raises(TypeError):
        notes.write(tmp_path / "note.json", {"fine": 1, "not json": object()})
    assert notes.read(tmp_path / "note.json") == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["note.json"]


WRITER = """
import sys
from pathlib import Path
from serving import notes
number = 0
while True:
    notes.write(Path(sys.argv[1]), {"number": number, "filling": str(number % 10) * 50_000})
    number += 1
"""


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "note.json"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    try:
        seen: set[int] = set()
        while len(seen) < 20:
            note = notes.read(path)
            if note is None:
                assert not seen, "there was a note and now there is none"
                continue
            assert note["filling"] == str(note["number"] % 10) * 50_000
            seen.add(note["number"])
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"version": ', b"null", b"[1, 2]", b'"text"', b"\xff\xfe{}", b"\x00" * 64],
    ids=["empty", "brace", "half", "null", "list", "text", "binary", "zeros"],
)
def test_what_is_no_whole_object_is_no_note(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "note.json").write_bytes(content)
    assert notes.read(tmp_path / "note.json") is None


def test_no_file_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert notes.read(tmp_path / "absent.json") is None
    assert notes.read(tmp_path / "file" / "absent.json") is None


def test_every_replacement_gives_another_stamp(tmp_path: Path) -> None:
    stamps: list[Any] = [notes.stamp(tmp_path / "note.json")]
    assert stamps == [None]
    for _ in range(50):
        notes.write(tmp_path / "note.json", {"the": "same"})
        stamps.append(notes.stamp(tmp_path / "note.json"))
        assert stamps[-1] != stamps[-2]


def test_reading_does_not_change_the_stamp(tmp_path: Path) -> None:
    notes.write(tmp_path / "note.json", CONTENT)
    before = notes.stamp(tmp_path / "note.json")
    notes.read(tmp_path / "note.json")
    assert notes.stamp(tmp_path / "note.json") == before


def test_there_is_no_stamp_where_no_note_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert notes.stamp(tmp_path / "file" / "note.json") is None


def test_people_can_read_a_note(tmp_path: Path) -> None:
    notes.write(tmp_path / "note.json", CONTENT)
    text = (tmp_path / "note.json").read_text(encoding="utf-8")
    assert len(text.splitlines()) > len(CONTENT)
    assert json.loads(text) == CONTENT
