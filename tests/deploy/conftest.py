"""A checkout with a space in its path, and for each test a cluster of its own."""

from __future__ import annotations

import copy
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driver import GOOD, ROOT, Driver, install

FILES = ("deploy.sh", "pyproject.toml", "Dockerfile", ".gitignore", ".dockerignore")
IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def cloned(folder: Path) -> Path:
    """A clean clone with what deploy.sh reads."""
    folder.mkdir(parents=True)
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "k8s", folder / "k8s", ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """What is started in a shell's background ignores both, which a script cannot undo."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One for all tests; at the end it is as it was."""
    folder = cloned(tmp_path_factory.mktemp("a place") / "check out")
    yield folder
    assert git(folder, "status", "--porcelain") == ""


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("path") / "bin")


@pytest.fixture
def driver(tmp_path: Path, checkout: Path, path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path / "home", checkout, path)
    yield driver
    driver.close()


RELEASED: dict[str, Any] = {}  # the world after a first release, which is the same for every test that begins with one


@pytest.fixture
def released(driver: Driver) -> Driver:
    """A cluster in which the image `good` is live, as revision 1; the image `poor` is in the registry."""
    if not RELEASED:
        driver.images_pushed("good", "poor")
        outcome = driver.run(*GOOD)
        assert outcome.code == 0, outcome.text
        RELEASED.update(copy.deepcopy(driver.world))
    driver.world.update(copy.deepcopy(RELEASED))
    return driver
