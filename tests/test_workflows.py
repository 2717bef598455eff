"""The workflows keep the rules that they were written by, and what they call exists."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.settings import ROOT

GITHUB = ROOT / ".github"
TEXTS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((GITHUB / "workflows").glob("*.yml"))}
WORKFLOWS: dict[str, dict[Any, Any]] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
JOBS = {f"{name}.{job}": body for name, workflow in WORKFLOWS.items() for job, body in workflow["jobs"].items()}
STEPS = [(f"{job}.{number}", step) for job, body in JOBS.items() for number, step in enumerate(body.get("steps", []))]
SCRIPTS = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in sorted(GITHUB.rglob("*.sh"))}
# All that is run: in workflows, and in the scripts that they call.
STEP_RUNS = [step["run"] for _, step in STEPS if "run" in step]
RUNS = STEP_RUNS + list(SCRIPTS.values())

NOT_BY_COMMIT = {"./.github/workflows/ci.yml": "of this repository, at the same commit"}
NOT_BY_DIGEST = {"POLARIS_IMAGE": "no public source shows its digest; it gets no network and nothing to write to"}
WRITES = {  # whoever may change something, and why it is not the job that runs the project's code or a scanner
    "security.codeql": {"security-events"},
    "security.report": {"security-events"},
    "release.publish": {"packages", "id-token", "attestations"},
    "release.notes": {"contents"},
    "release.deploy": {"id-token"},
    "release.gitops": {"contents", "pull-requests"},
}


def triggers(workflow: dict[Any, Any]) -> dict[str, Any]:
    return workflow[True]  # what YAML 1.1 makes of `on`


def test_these_are_the_workflows() -> None:
    assert set(WORKFLOWS) == {"ci", "e2e", "release", "security"}
    assert {"schedule", "workflow_dispatch"} <= set(triggers(WORKFLOWS["security"]))
    assert triggers(WORKFLOWS["release"]) == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}


def test_actions_are_pinned_by_commit_and_one_commit_each() -> None:
    used = [line.strip().removeprefix("- ") for text in TEXTS.values() for line in text.splitlines() if "uses:" in line]
    others = [line for line in used if line.split()[1] not in NOT_BY_COMMIT]
    assert len(used) > len(others) > 20
    pinned = [re.fullmatch(r"uses: ([\w./-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line) for line in others]
    assert [line for line, pin in zip(others, pinned, strict=True) if pin is None] == []
    repositories = {(pin[1].split("/")[0] + "/" + pin[1].split("/")[1], pin[2], pin[3]) for pin in pinned if pin}
    assert len(repositories) == len({repository for repository, _, _ in repositories})


def test_images_and_tools_are_pinned() -> None:
    environments = [holder.get("env", {}) for holder in [*WORKFLOWS.values(), *JOBS.values()]]
    images = {key: value for env in environments for key, value in env.items() if key.endswith("_IMAGE")}
    assert {"TRIVY_IMAGE", "NODE_IMAGE", "PROMETHEUS_IMAGE"} <= set(images)
    by_tag = {key for key, image in images.items() if not re.search(r":[\w.-]+@sha256:[0-9a-f]{64}$", image)}
    assert by_tag == set(NOT_BY_DIGEST)
    text = "".join(TEXTS.values())
    modules = re.findall(r"^ +\w+: ([\w.-]+\.\w+/[\w./-]+@\S+)$", text, re.MULTILINE)
    modules = [module for module in modules if "sha256" not in module]
    assert len(modules) == 5
    assert [module for module in modules if not re.search(r"@v\d+\.\d+\.\d+$", module)] == []
    assert "@latest" not in text


def test_the_scanner_is_that_of_deploy_sh() -> None:
    used = {body["env"]["TRIVY_IMAGE"] for body in JOBS.values() if "TRIVY_IMAGE" in body.get("env", {})}
    assert len(used) == 1
    assert used.pop() in (ROOT / "deploy.sh").read_text(encoding="utf-8")


def test_nothing_is_permitted_but_to_jobs_that_say_why() -> None:
    assert {name: workflow["permissions"] for name, workflow in WORKFLOWS.items()} == {name: {} for name in WORKFLOWS}
    granted = {job: body["permissions"] for job, body in JOBS.items()}
    writes = {job: {scope for scope, level in of.items() if level == "write"} for job, of in granted.items()}
    assert {job: scopes for job, scopes in writes.items() if scopes} == WRITES
    lines = [line for text in TEXTS.values() for line in text.splitlines()]
    grants = [line for line in lines if re.match(r" {6}[a-z-]+: (read|write)\b", line)]
    assert len(grants) == sum(len(of) for of in granted.values())
    assert [line for line in grants if not re.search(r" # \w.{6}", line)] == []


def test_scanners_see_no_secret_and_no_token() -> None:
    scanners = {job: body for job, body in JOBS.items() if "TRIVY_IMAGE" in body.get("env", {})}
    assert set(scanners) == {"release.scan", "security.scan"}
    for body in scanners.values():
        assert body["permissions"] == {}
        assert not re.search(r"token|secrets\.|checkout", json.dumps(body), re.IGNORECASE)
    assert not any("secrets." in text for text in TEXTS.values())


def test_who_may_publish_runs_nothing_of_the_project() -> None:
    assert not re.search(r"checkout|make |deploy\.sh", json.dumps(JOBS["release.publish"]))
    assert JOBS["release.publish"]["needs"] == ["check", "scan"]
    assert JOBS["release.deploy"]["environment"] == "production"


def test_everything_ends_and_makes_way() -> None:
    without_limit = [job for job, body in JOBS.items() if "uses" not in body and not 0 < body["timeout-minutes"] <= 60]
    assert without_limit == []
    cancelled = {name: workflow["concurrency"]["cancel-in-progress"] for name, workflow in WORKFLOWS.items()}
    assert cancelled == {"ci": True, "e2e": True, "release": False, "security": True}
    groups = [workflow["concurrency"]["group"] for workflow in WORKFLOWS.values()]
    assert len(set(groups)) == len(groups)
    assert all("github.ref" in group for group in groups)


def test_nothing_of_strangers_is_run() -> None:
    assert {"pull_request_target", "workflow_run"} & {
        name for of in WORKFLOWS.values() for name in triggers(of)
    } == set()
    assert [where for where, step in STEPS if "${{" in step.get("run", "")] == []
    checkouts = [(where, step) for where, step in STEPS if "actions/checkout" in step.get("uses", "")]
    assert len(checkouts) >= 9
    assert [where for where, step in checkouts if step["with"]["persist-credentials"] is not False] == []


def test_nothing_is_cached_and_packages_are_held_by_hashes() -> None:
    assert [where for where, step in STEPS if "cache" in json.dumps([step.get("uses"), step.get("with")])] == []
    installs = [line for run in RUNS for line in run.splitlines() if "pip install" in line]
    assert installs
    assert [line for line in installs if "--require-hashes --only-binary=:all:" not in line] == []


def test_the_registry_is_the_repositorys_own() -> None:
    named = re.findall(r"ghcr\.io/\S*", "".join(TEXTS.values()))
    assert named
    assert set(named) == {"ghcr.io/${GITHUB_REPOSITORY,,}"}


def test_what_is_called_exists() -> None:
    called = {name for run in STEP_RUNS for name in re.findall(r"(?<![\w/$])(?:\./)?([\w./-]+\.(?:sh|py))\b", run)}
    called |= {name for text in SCRIPTS.values() for name in re.findall(r"\.github/\w+/\w+\.sh", text)}
    assert {"deploy.sh", ".github/e2e/load.sh", "train_model.py", "demo.py"} <= called
    assert [name for name in called if not (ROOT / name).exists()] == []
    assert [str(path) for path in SCRIPTS if not os.access(ROOT / path, os.X_OK)] == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {target for run in RUNS for target in re.findall(r"^make (\S+)", run, re.MULTILINE)}
    assert ".venv-tools/.installed" in targets
    assert [target for target in targets if f"\n{target}:" not in makefile] == []


def test_the_options_of_deploy_sh_exist() -> None:
    said = subprocess.run([ROOT / "deploy.sh", "--help"], capture_output=True, text=True, check=True, timeout=30).stdout
    call = re.compile(r"\bdeploy\.sh (up|rollback|status|down|\")")
    calls = [line for run in RUNS for line in run.splitlines() if call.search(line)]
    assert len(calls) >= 8
    options = {option for call in calls for option in re.findall(r"--[a-z-]+", call)} | {"--target", "--registry"}
    assert {"--context", "--image", "--env", "--skip-scan", "--yes"} <= options
    assert [option for option in options if f"\n  {option} " not in said] == []
    verbs = {verb for call in calls for verb in re.findall(r"deploy\.sh ([a-z]+)", call)}
    assert verbs == {"up", "rollback", "status", "down"}
    assert [verb for verb in verbs if f"\n  {verb} " not in said] == []
    expected = re.search(r"ROLL_OUT=(\d+)", SCRIPTS[Path(".github/e2e/broken.sh")])
    assert expected is not None
    assert re.search(rf"\n  {expected[1]} +roll-out", said)


def test_the_tools_find_nothing() -> None:
    make = ["make", "--silent", "--directory", str(ROOT)]
    if subprocess.run([*make, "--question", ".venv-tools/.installed"], capture_output=True, timeout=60).returncode:
        pytest.skip("the tools are not installed: make .venv-tools/.installed")
    done = subprocess.run([*make, "lint-deploy"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the scripts that only workflows call ----------------------------------------------------------------------------


@contextmanager
def answering(statuses: Iterator[int], body: bytes = b"{}") -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that answers with these statuses, one after the other; its address, and what it was asked."""
    asked: list[tuple[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.path, self.headers.get("Authorization", "")))
            self.send_response(next(statuses))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def loaded(host: str, home: Path, asked: list[tuple[str, str]], requests: int) -> tuple[int, dict[str, Any]]:
    """The code of load.py, and the line that it ends with, once the service was asked this often."""
    request, stop = ROOT / "k8s" / "smoke" / "golden.request.json", home / "stop"
    command = [sys.executable, str(GITHUB / "e2e" / "load.py"), host, str(request), str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        while len(asked) < requests and load.poll() is None:
            threading.Event().wait(0.05)
        stop.touch()
        output, _ = load.communicate(timeout=30)
    return load.returncode, json.loads(output.splitlines()[-1])


def always(*statuses: int) -> Iterator[int]:
    yield from statuses
    while True:
        yield 200


def test_load_of_which_nothing_fails(tmp_path: Path) -> None:
    with answering(always()) as (host, asked):
        code, said = loaded(host, tmp_path, asked, 20)
    assert (code, said["failed"]) == (0, 0)
    assert said["requests"] >= 20


def test_one_failed_request_is_seen(tmp_path: Path) -> None:
    with answering(always(200, 200, 503)) as (host, asked):
        code, said = loaded(host, tmp_path, asked, 20)
    assert (code, said["failed"], said["by"]) == (1, 1, {"503 b'{}'": 1})


def test_load_on_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    with answering(always()) as (host, asked):
        code, said = loaded(host, tmp_path, asked, 0)
    assert (code == 1) == (said["requests"] == 0)


@pytest.mark.skipif(not (shutil.which("jq") and shutil.which("curl")), reason="token.sh needs jq and curl")
def test_the_token_is_that_of_github() -> None:
    with answering(always(), b'{"value": "made by GitHub"}') as (host, asked):
        github = {
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of the run",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://{host}/token?api-version=2.0",
        }
        said = subprocess.run(
            [GITHUB / "deploy" / "token.sh", "https://cluster.example"],
            env={"PATH": os.environ["PATH"], **github},
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout
    assert json.loads(said)["status"] == {"token": "made by GitHub"}
    assert [(path.lower(), who) for path, who in asked] == [
        ("/token?api-version=2.0&audience=https%3a%2f%2fcluster.example", "bearer of the run")
    ]
