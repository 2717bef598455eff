"""gunicorn's configuration, from the settings in the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.settings import ROOT, names

SHOW = """
import json, os
from serving import gunicorn_conf as conf
shown = {name: getattr(conf, name) for name in ("bind", "workers", "threads", "graceful_timeout")}
shown["worker"] = conf.worker_class.__name__
shown |= {"drain_s": conf.worker_class.drain_s, "cpus": conf.cpu_limit(), "affinity": len(os.sched_getaffinity(0))}
print(json.dumps(shown | {"metrics": os.environ["PROMETHEUS_MULTIPROC_DIR"]}))
"""


def imported(home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """A process that imports the configuration, with these settings and no others."""
    return run(home, SHOW, **environ)


def run(home: Path, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in names()}
    env = {**kept, "STATE_DIR": str(home / "state"), **environ}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)


def shown(home: Path, **environ: str) -> dict[str, Any]:
    done = imported(home, **environ)
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of an environment that sets nothing but a place for the state."""
    home = tmp_path_factory.mktemp("plain")
    return {**shown(home), "home": home}


def test_the_cpu_limit_is_at_least_one_and_at_most_the_affinity(plain: dict[str, Any]) -> None:
    assert 1 <= plain["cpus"] <= plain["affinity"]


def test_there_are_as_many_workers_as_cpus(plain: dict[str, Any]) -> None:
    assert plain["workers"] == plain["cpus"]


def test_it_listens_on_the_loopback(plain: dict[str, Any]) -> None:
    assert plain["bind"] == "127.0.0.1:5000"


def test_metrics_are_shared_in_the_state_folder(plain: dict[str, Any]) -> None:
    assert plain["metrics"] == str(plain["home"] / "state" / "metrics")


def test_settings_become_gunicorns(tmp_path: Path) -> None:
    got = shown(tmp_path, BIND_ADDRESS="0.0.0.0", PORT="8123", WEB_CONCURRENCY="3", THREADS="7", DRAIN_S="12.5")
    assert (got["bind"], got["workers"], got["threads"]) == ("0.0.0.0:8123", 3, 7)
    assert (got["graceful_timeout"], got["drain_s"]) == (42, 12.5)


def test_small_requests_are_answered_on_the_loop(plain: dict[str, Any]) -> None:
    assert plain["worker"] == "InlineWorker"


def test_an_unfamiliar_gunicorn_serves_from_its_pool_and_says_so(tmp_path: Path) -> None:
    change = "from gunicorn.workers.gthread import ThreadWorker; del ThreadWorker.finish_request"
    code = f"""
{change}
import logging
from types import SimpleNamespace
from serving import gunicorn_conf as conf
logging.basicConfig(format="%(message)s")
conf.when_ready(SimpleNamespace(num_workers=1))
print(conf.worker_class.__name__)
"""
    done = run(tmp_path, code)
    assert done.stdout == "DrainingWorker\n", done.stderr
    assert done.stderr == "every request takes the pool: this gunicorn has another finish_request\n"


def test_an_ipv6_address_stands_in_brackets(tmp_path: Path) -> None:
    assert shown(tmp_path, BIND_ADDRESS="::1", PORT="8123")["bind"] == "[::1]:8123"


def test_metrics_are_shared_where_the_setting_says(tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    assert shown(tmp_path, PROMETHEUS_MULTIPROC_DIR=elsewhere)["metrics"] == elsewhere


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    done = imported(tmp_path, WEB_CONCURENCY="3")
    assert done.returncode != 0
    assert "SettingError: unknown setting WEB_CONCURENCY; did you mean WEB_CONCURRENCY?" in done.stderr


def test_an_empty_metrics_folder_setting_is_an_unset_one(tmp_path: Path) -> None:
    assert shown(tmp_path, PROMETHEUS_MULTIPROC_DIR="")["metrics"] == str(tmp_path / "state" / "metrics")


def test_a_start_removes_the_metrics_before_it_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in ("counter_17.db", "notes.txt"):
        (folder / name).write_text("…")
    env = {**os.environ, "STATE_DIR": str(tmp_path / "state"), "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    code = "from serving import gunicorn_conf; gunicorn_conf.on_starting(None)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, check=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
