"""deploy.sh as a text: shellcheck, bash 3.2, its tables; and its questions to kubectl, put to the real one."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from driver import ROOT
from stubs import jsonpath

SCRIPT = ROOT / "deploy.sh"
TEXT = SCRIPT.read_text(encoding="utf-8")
QUESTIONS = dict(re.findall(r"^readonly (P_[A-Z]+)='(.*)'$", TEXT, re.M))
# What macOS's bash cannot do, and the tools of a Mac or of a small container.
NOT_IN_BASH_3 = {
    r"\b(mapfile|readarray|coproc)\b": "bash 4",
    r"\b(declare|local|typeset) -[a-zA-Z]*[Agn]": "associative arrays, globals, references",
    r"\$\{[A-Za-z_]+(\^|,,|@[A-Z]\})": "case conversion and transformation",
    r"&>>|\|&": "redirections of bash 4",
    r"\$(EPOCHSECONDS|EPOCHREALTIME|BASHPID|SRANDOM)": "variables of bash 4 and 5",
    r"printf ['\"]?%\(": "dates in printf",
    r"\bwait -[np]\b": "wait for the next",
    r"\[\[ -v ": "is it set",
    r"\$\{\w+\[-\d|\$\{\w+:\d+:-": "negative indexes and lengths",
    r"\breadlink -f|\bdate -[dI]|\bsed -[a-z]*i|\bstat -|\bmktemp -p": "GNU only",
    r"\bgrep -[a-zA-Z]*[oP]|\bxargs -r|\bsort -V|\bcp -[a-z]*t": "GNU only, too",
    r"\bjq\b|\bpython3?\b(?! )|\bperl\b|\brealpath\b|\btimeout \d": "may not be there",
    r"\$\([^()]*\bcase\b": "case inside $( ) is misread by bash 3.2",
    r"\beval\b": "never",
}


def code() -> str:
    """The script without its comments and its help."""
    body = TEXT.replace(TEXT[TEXT.index("cat <<'HELP'") : TEXT.index("\nHELP\n")], "")
    return "\n".join(re.sub(r"(^|\s)#\s.*$", "", line) for line in body.splitlines())


@pytest.mark.parametrize("pattern", NOT_IN_BASH_3)
def test_uses_nothing_that_bash_3_2_or_a_mac_lacks(pattern: str) -> None:
    assert re.search(pattern, code()) is None, NOT_IN_BASH_3[pattern]


def test_arrays_are_never_empty_where_they_are_expanded() -> None:
    """bash 3.2 calls an empty array unbound."""
    arrays = set(re.findall(r"\$\{(\w+)\[@\]\}", code()))
    assert arrays == {"K", "KN", "words"}
    assert re.search(r"^K=\(kubectl\)", TEXT, re.M)
    assert re.search(r"^KN=\(kubectl\)", TEXT, re.M)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing_with_all_its_checks() -> None:
    assert "# shellcheck enable=all disable=SC2250,SC2310,SC2311,SC2312,SC2317\n" in TEXT
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_functions_stay_small() -> None:
    for name, body in re.findall(r"^([a-z_]+)\(\) \{.*\n((?:.*\n)*?)\}$", TEXT, re.M):
        assert name == "usage" or body.count("\n") <= 45, name


def test_it_can_be_executed_and_says_how_to_use_it() -> None:
    assert os.access(SCRIPT, os.X_OK)
    done = subprocess.run([str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("mlflow-live to Kubernetes")


def section(title: str) -> str:
    return TEXT.split(f"\n{title}\n")[1].split("\n\n")[0]


def test_the_tables_of_the_help_are_those_of_the_code() -> None:
    options = set(re.findall(r"^  (--[a-z-]+)", section("Options"), re.M))
    handled = set(re.findall(r"^    (--[a-z-]+)(?: \| -h)?\) ", TEXT, re.M)) | set(
        re.findall(r"^      (--[a-z-]+)(?: \| -h)?\) ", TEXT, re.M)
    )
    assert options == handled
    verbs = re.findall(r"^  ([a-z]+) ", section("Verbs"), re.M)
    assert f"    {' | '.join(verbs)}) VERB=" in TEXT
    stages = section("Stages").split()
    assert stages == [
        name.replace("_", "-") for name in re.findall(r"^  stage ([a-z-]+)$", TEXT, re.M) if name in stages
    ] or set(stages) <= set(re.findall(r"^  stage ([a-z-]+)$", TEXT, re.M))
    codes = set(re.findall(r"^  (\d+) ", section("Exit codes"), re.M))
    assert codes == {"0", "2", "10", "20", "30", "40", "50", "60", "70", "130", "143"}
    assert set(re.findall(r"echo (\d+) ;;", TEXT)) == codes - {"0", "2", "130", "143"}
    named = set(re.findall(r"^  ([A-Z][A-Z_]+)(?:, ([A-Z]+))?", section("Environment"), re.M))
    for name in {n for pair in named for n in pair if n}:
        assert re.search(rf"\$\{{{name}:-", TEXT), name


# ---------------------------------------------------------------------------------------------------- the real kubectl

POD = {
    "kind": "Pod",
    "metadata": {"name": "pod-a", "namespace": "ns"},
    "status": {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes: a|b"}
        ],
        "containerStatuses": [
            {"name": "sidecar", "ready": True, "image": "x", "imageID": "y", "state": {"running": {}}},
            {
                "name": "api",
                "ready": False,
                "image": "docker.io/library/mlflow-live:1",
                "imageID": "sha256:1",
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": {"terminated": {"reason": "OOMKilled"}},
            },
        ],
    },
}
TEMPLATE = {"spec": {"containers": [{"name": "api", "image": "r/mlflow-live@sha256:1"}]}}
MARKS = {"deployment.kubernetes.io/revision": "3", "mlflow-live/commit": "abc"}
DEPLOYMENT = {
    "kind": "Deployment",
    "metadata": {
        "name": "d",
        "namespace": "ns",
        "generation": 4,
        "annotations": MARKS | {"argocd.argoproj.io/tracking-id": "t"},
        "labels": {"app.kubernetes.io/managed-by": "kustomize"},
        "managedFields": [
            {"manager": "deploy", "operation": "Apply"},
            {"manager": "argocd-controller", "operation": "Apply"},
        ],
    },
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"a": "b|c"}},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
        "minReadySeconds": 5,
        "revisionHistoryLimit": 5,
        "progressDeadlineSeconds": 240,
        "template": TEMPLATE,
    },
    "status": {
        "observedGeneration": 4,
        "updatedReplicas": 1,
        "conditions": [{"type": "Progressing", "reason": "ReplicaSetUpdated"}],
    },
}
REPLICA_SET = {
    "kind": "ReplicaSet",
    "metadata": {"name": "r", "annotations": MARKS},
    "spec": {"template": TEMPLATE},
    "status": {"readyReplicas": 2},
}
LOCK = {
    "kind": "ConfigMap",
    "metadata": {"name": "c", "resourceVersion": "7"},
    "data": {"holder": "a@b pid 1", "since": "s", "expires": "9"},
}
SLICE = {
    "kind": "EndpointSlice",
    "metadata": {"name": "e"},
    "endpoints": [{"conditions": {"ready": True}}, {"conditions": {"ready": False}}],
}
ANSWERS = {  # question: (path of the API, kind of the resource, the object or objects)
    "P_DEPLOYMENT": ("apps/v1", "deployments", DEPLOYMENT),
    "P_RELEASE": ("apps/v1", "deployments", DEPLOYMENT),
    "P_GITOPS": ("apps/v1", "deployments", DEPLOYMENT),
    "P_REVISIONS": ("apps/v1", "replicasets", [REPLICA_SET, REPLICA_SET]),
    "P_REVISION": ("apps/v1", "replicasets", REPLICA_SET),
    "P_FRAME": ("apps/v1", "deployments", DEPLOYMENT),
    "P_PODS": ("v1", "pods", [POD, POD]),
    "P_REASONS": ("v1", "pods", [POD, POD]),
    "P_LOCK": ("v1", "configmaps", LOCK),
    "P_ENDPOINTS": ("discovery.k8s.io/v1", "endpointslices", [SLICE, SLICE]),
}
GROUPS = {
    "v1": ["pods", "configmaps"],
    "apps/v1": ["deployments", "replicasets"],
    "discovery.k8s.io/v1": ["endpointslices"],
}
KINDS = {
    "pods": "Pod",
    "configmaps": "ConfigMap",
    "deployments": "Deployment",
    "replicasets": "ReplicaSet",
    "endpointslices": "EndpointSlice",
}


class ApiServer(http.server.BaseHTTPRequestHandler):
    """Discovery, and one answer for each resource."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        answer = self.answer(self.path.partition("?")[0].strip("/"))
        body = json.dumps(answer or {"kind": "Status", "status": "Failure", "code": 404}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer(self, path: str) -> dict[str, object] | None:
        if path == "api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "apis":
            groups = [(g.split("/")[0], g) for g in GROUPS if "/" in g]
            versions = [
                {
                    "name": n,
                    "versions": [{"groupVersion": g, "version": "v1"}],
                    "preferredVersion": {"groupVersion": g, "version": "v1"},
                }
                for n, g in groups
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": versions}
        api = path.removeprefix("apis/").removeprefix("api/")
        if api in GROUPS:
            resources = [
                {"name": r, "kind": KINDS[r], "namespaced": True, "verbs": ["get", "list"]} for r in GROUPS[api]
            ]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": resources}
        for version, resource, objects in ANSWERS.values():
            if re.fullmatch(
                rf"{version}/namespaces/ns/{resource}" + ("" if isinstance(objects, list) else r"/\w+"), api
            ):
                if isinstance(objects, list):
                    return {
                        "kind": f"{KINDS[resource]}List",
                        "apiVersion": version,
                        "metadata": {},
                        "items": [{"apiVersion": version, **o} for o in objects],
                    }
                return {"apiVersion": version, **objects}
        return None


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ApiServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path_factory.mktemp("cache")
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("question", ANSWERS)
def test_the_real_kubectl_understands_each_question_as_the_stub_does(api: tuple[str, Path], question: str) -> None:
    url, cache = api
    _, resource, objects = ANSWERS[question]
    name = [] if isinstance(objects, list) else [str(objects["metadata"]["name"])]
    command = ["kubectl", f"--server={url}", f"--cache-dir={cache}", "--namespace=ns", "get", resource, *name]
    if question == "P_GITOPS":
        command.append("--show-managed-fields")
    done = subprocess.run(
        [*command, "-o", f"jsonpath={QUESTIONS[question]}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"KUBECONFIG": "/nowhere"},
    )
    assert done.returncode == 0, done.stderr
    ours = jsonpath.rendered(
        QUESTIONS[question].replace("\\\\", "\\"), {"items": objects} if isinstance(objects, list) else objects
    )
    assert done.stdout == ours
    assert done.stdout.count("|") >= QUESTIONS[question].count("|")


def test_every_question_is_checked() -> None:
    assert set(QUESTIONS) == set(ANSWERS)
