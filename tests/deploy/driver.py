"""Runs deploy.sh in a checkout of its own, with stub programs on PATH and a cluster that is a file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stubs import state
from stubs.server import CLIENT, Handler, Server

ROOT = Path(__file__).parents[2]
LOADERS = ("kind", "k3d", "minikube", "ctr")
TOOLS = ("kubectl", "docker", "trivy", *LOADERS)
# fmt: off
SYSTEM = [  # all that deploy.sh may use of the system
    "awk", "bash", "basename", "cat", "cp", "curl", "cut", "date", "df", "diff", "dirname", "env", "false", "git",
    "grep", "head", "hostname", "id", "ln", "mkdir", "mktemp", "mv", "ps", "pwd", "readlink", "rm", "sed", "sh",
    "sleep", "sort", "tail", "tr", "true", "uname", "wc", "xargs",
]
# fmt: on
NEW_WORLD: dict[str, Any] = {
    "reachable": True,
    "context": "kind-dev",
    "server": "https://127.0.0.1:6443",
    "version": "v1.32.1",
    "namespaces": {},
    "objects": {},
    "configmaps": {},
    "secrets": [],
    "kept": [],
    "crds": [],
    "denied": [],
    "daemonsets": ["kindnet"],
    "metrics": True,
    "endpoints": True,
    "nodes": [],
    "revisions": [],
    "generation": 0,
    "polls": 0,
    "bad": {},
    "broken": "",
    "broken_image": "",
    "terminating": 0,
    "deadline_exceeded": False,
    "stale_deadline": 0,
    "stale_after_rollback": 0,
    "image_id": "registry",
    "gitops": {},
    "images": {},
    "registry": {},
    "pulled": [],
    "findings": {},
    "skew": 0,
    "drops": 0,
    "faults": [],
}
LIMIT_S = 60.0
GOOD = ("--skip-scan", "--image", "r.test/mlflow-live:good")
BAD = ("--skip-scan", "--image", "r.test/mlflow-live:poor")


def digest(name: str) -> str:
    """The image `name` as it is deployed, once `Driver.images_pushed` has put it into the registry."""
    return "r.test/mlflow-live@sha256:" + name.encode().hex().ljust(64, "0")


def install(folder: Path, tools: tuple[str, ...] = TOOLS) -> Path:
    """A folder for PATH with the stubs `tools`, and of the system only what deploy.sh may use."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SYSTEM:
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    for name in tools:
        stub = folder / name
        stub.write_text(CLIENT.replace("TOOL", name))
        stub.chmod(0o755)
    return folder


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    calls: list[list[str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)

    def called(self, tool: str, *words: str) -> list[list[str]]:
        return [call for call in self.calls if call[0] == tool and all(word in call for word in words)]

    @property
    def went_back(self) -> bool:
        """Whether an earlier revision was applied."""
        return any(call[-1].endswith("revision.json") for call in self.called("kubectl", "apply"))


class Driver:
    """One world and one checkout. Every run must leave the machine as it was; `run` and `interrupt` look."""

    def __init__(self, home: Path, checkout: Path, path: Path) -> None:
        self.home, self.checkout = home, checkout
        self.temp = home / "temp folder"
        self.temp.mkdir(parents=True)
        state.WORLD.clear()
        state.WORLD.update(json.loads(json.dumps(NEW_WORLD)))
        self.world = state.WORLD
        self.server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.environment = {
            "PATH": str(path),
            "HOME": str(home),
            "TMPDIR": str(self.temp),
            "LANG": "C.UTF-8",
            "STUB_PORT": str(self.server.server_address[1]),
            "DEPLOY_POLL_S": "0.05",
            "DEPLOY_STUCK_S": "1",
            "DEPLOY_SMOKE_S": "3",
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    # ------------------------------------------------------------------------------------------ the world

    def fault(self, tool: str, argv: str, code: int = 1, **more: Any) -> None:
        """`tool`, called with `argv` in its arguments, fails: once, unless `times` says more."""
        self.world["faults"].append({"tool": tool, "argv": argv, "code": code, "times": 1, **more})

    @property
    def live_image(self) -> str:
        live = max(self.world["revisions"], key=lambda r: r["revision"])
        return live["template"]["spec"]["containers"][0]["image"]

    def images_pushed(self, *names: str) -> list[str]:
        """Digests of `names`, which from now on are in the registry, each of a commit of that name."""
        for name in names:
            known = digest(name).partition("@")[2]
            self.world["registry"][f"r.test/mlflow-live:{name}"] = {"id": known, "commit": name, "digest": known}
        return [digest(name) for name in names]

    # ------------------------------------------------------------------------------------------ running

    def start(
        self, *arguments: str, cwd: Path | None = None, script: Path | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        state.CALLS.clear()
        state.HANGING.clear()
        return subprocess.Popen(
            ["bash", str(script or self.checkout / "deploy.sh"), *arguments],
            cwd=cwd or self.home,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **options: Any) -> Outcome:
        return self.ended(self.start(*arguments, **options))

    def ended(self, process: subprocess.Popen[str]) -> Outcome:
        out, err = process.communicate(timeout=LIMIT_S)
        outcome = Outcome(process.returncode, out, err, list(state.CALLS))
        assert not self.left_behind(process.pid), outcome.text
        assert list(self.temp.iterdir()) == [], "the temporary folder stays"
        assert "mlflow-live-deploy-lock" not in self.world["configmaps"] or "keep_lock" in self.world, "the lock stays"
        return outcome

    def interrupt(self, number: signal.Signals, *arguments: str, group: bool = False, **options: Any) -> Outcome:
        """Runs until a stub hangs, then signals the script alone, or all of its group as a terminal does."""
        process = self.start(*arguments, **options)
        self.hangs(process)
        (os.killpg if group else os.kill)(process.pid, number)
        return self.ended(process)

    def hangs(self, process: subprocess.Popen[str]) -> None:
        """Returns when a stub hangs, as a fault told it."""
        deadline = time.monotonic() + LIMIT_S
        while not state.HANGING.wait(timeout=0.1):
            assert time.monotonic() < deadline, f"no stub hangs; called were {state.CALLS}"
            assert process.poll() is None, self.ended(process).text
        state.HANGING.clear()

    @staticmethod
    def left_behind(session: int) -> list[str]:
        """Processes of the script's session that are still there."""
        left = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    left.append((stat.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return left
