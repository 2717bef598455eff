"""What is said before the start, and what the start takes its settings from."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from served import free_port, settings_of

import app
from serving.errors import SettingError
from serving.settings import ROOT, names

READ = """
import os, pathlib, sys, app
app._read_env_file(pathlib.Path(sys.argv[1]))
print(os.environ.get("PORT"), os.environ.get("THREADS"))
"""


def refusal(home: Path, **changed: Any) -> str:
    with pytest.raises(SettingError) as caught:
        app.check_start(settings_of(home, **{"port": free_port(), **changed}))
    return str(caught.value)


def python(code: str, *arguments: str, **environ: str) -> str:
    """What a fresh process prints that has these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if name not in names()}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**kept, **environ}, capture_output=True, check=True, text=True
    ).stdout.strip()


def test_good_settings_can_start_and_leave_the_state_folder_empty(tmp_path: Path) -> None:
    app.check_start(settings_of(tmp_path, port=free_port()))
    assert list((tmp_path / "state").iterdir()) == []


@pytest.mark.parametrize("model", ["iris@", "@champion", "iris/", "a/b/c"])
def test_a_model_that_is_malformed(tmp_path: Path, model: str) -> None:
    message = refusal(tmp_path, models=("prices", model))
    assert message.startswith("MODELS: ")
    assert model in message


@pytest.mark.parametrize("again", ["iris", "iris@challenger", "iris/3"])
def test_a_model_that_is_named_twice(tmp_path: Path, again: str) -> None:
    assert refusal(tmp_path, models=("iris", "prices", again)) == "MODELS names iris more than once"


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(tmp_path, state_dir=tmp_path / "file" / "state")
    assert message == f"STATE_DIR: cannot write in {tmp_path / 'file' / 'state'}: Not a directory"


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert refusal(tmp_path).startswith(f"STATE_DIR: cannot write in {tmp_path / 'state'}: ")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert refusal(tmp_path, port=port) == f"PORT: 127.0.0.1:{port} is in use; set PORT to a free one"


def test_an_address_that_is_not_of_this_machine(tmp_path: Path) -> None:
    assert refusal(tmp_path, bind_address="192.0.2.1").startswith("PORT: 192.0.2.1:")


def test_the_program_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in names()}
    env = {**kept, "STATE_DIR": str(tmp_path), "MODELS": "iris,iris"}
    done = subprocess.run([sys.executable, ROOT / "app.py"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "cannot start: MODELS names iris more than once\n")


def test_to_import_the_program_imports_no_flask() -> None:
    assert python("import sys, app; print(sorted({'flask', 'mlflow', 'numpy'} & set(sys.modules)))") == "[]"


def test_the_env_file_stands_below_the_environment(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# ours\nPORT=8001\nTHREADS=9\n", encoding="utf-8")
    assert python(READ, str(tmp_path / ".env"), PORT="8002") == "8002 9"


def test_there_may_be_no_env_file(tmp_path: Path) -> None:
    assert python(READ, str(tmp_path / ".env"), PORT="8002") == "8002 None"
