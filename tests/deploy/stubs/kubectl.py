"""The kubectl of the tests: one cluster in one file, with kubectl 1.32's words and exit codes.

`kustomize` is the real one's. A port-forward is a real HTTP server that plays the service, so that curl is real too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml

from stubs import jsonpath
from stubs.cluster import Cluster
from stubs.state import WORLD, call, option, refuse

REFUSED = "The connection to the server 127.0.0.1:6443 was refused - did you specify the right host or port?"
SPLIT_AT = {"--context", "--namespace", "--request-timeout"}
API = """configmaps cm v1 true ConfigMap
limitranges limits v1 true LimitRange
namespaces ns v1 false Namespace
persistentvolumeclaims pvc v1 true PersistentVolumeClaim
pods po v1 true Pod
resourcequotas quota v1 true ResourceQuota
secrets v1 true Secret
serviceaccounts sa v1 true ServiceAccount
services svc v1 true Service
deployments deploy apps/v1 true Deployment
statefulsets sts apps/v1 true StatefulSet
horizontalpodautoscalers hpa autoscaling/v2 true HorizontalPodAutoscaler
jobs batch/v1 true Job
ingresses ing networking.k8s.io/v1 true Ingress
networkpolicies netpol networking.k8s.io/v1 true NetworkPolicy
poddisruptionbudgets pdb policy/v1 true PodDisruptionBudget
roles rbac.authorization.k8s.io/v1 true Role
rolebindings rbac.authorization.k8s.io/v1 true RoleBinding
priorityclasses pc scheduling.k8s.io/v1 false PriorityClass"""


RENDERED: dict[str, subprocess.CompletedProcess[str]] = {}  # it takes a third of a second
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def manifests(argv: list[str]) -> list[dict[str, Any]]:
    return [doc for doc in yaml.load_all(Path(option(argv, "-f")).read_text(), Loader=LOADER) if doc]


def kustomize(argv: list[str]) -> None:
    """The real kubectl's answer."""
    folder = Path(argv[-1])
    key = f"{(folder / 'k8s').resolve()} {(folder / 'kustomization.yaml').read_text()}"
    if key not in RENDERED:
        real = [shutil.which("kubectl") or "kubectl", *argv]
        RENDERED[key] = subprocess.run(real, capture_output=True, text=True, check=False)
    if RENDERED[key].returncode:
        refuse(RENDERED[key].stderr.strip())
    print(RENDERED[key].stdout)


def version(argv: list[str]) -> None:
    client = {"gitVersion": "v1.32.4", "minor": "32"}
    if "--client" in argv:
        print("Client Version: v1.32.4\nKustomize Version: v5.5.0")
        return
    answer = {"clientVersion": client}
    if WORLD["reachable"]:
        answer["serverVersion"] = {"gitVersion": WORLD["version"]}
    print(json.dumps(answer, indent=2))
    if not WORLD["reachable"]:
        refuse(REFUSED)


def config(argv: list[str], context: str | None) -> None:
    state = WORLD
    if argv[1] == "current-context":
        if not state["context"]:
            refuse("error: current-context is not set")
        print(state["context"])
    elif argv[1] == "get-contexts":
        print(state["context"])
    else:
        if context and context != state["context"]:
            refuse(f'error: context "{context}" does not exist')
        print(state["server"], end="")


def can_i(argv: list[str]) -> None:
    denied = any(word in WORLD["denied"] for word in argv)
    print("no" if denied else "yes")
    raise SystemExit(int(denied))


def get(cluster: Cluster, argv: list[str]) -> None:
    if "--raw" in argv:
        return (
            print("{}")
            if WORLD["metrics"]
            else refuse("Error from server (NotFound): the server could not find the requested resource")
        )
    kind, name = argv[1], argv[2] if len(argv) > 2 and not argv[2].startswith("-") else None
    output = option(argv, "-o", "")
    objects = cluster.get(kind, name)
    if objects is None:
        plural = {
            "deployment": "deployments.apps",
            "namespace": "namespaces",
            "configmap": "configmaps",
            "secret": "secrets",
        }[kind]
        return refuse(f'Error from server (NotFound): {plural} "{name}" not found')
    if output.startswith("jsonpath="):
        print(jsonpath.rendered(output.partition("=")[2], objects[0] if name else {"items": objects}), end="")
    elif output == "name":
        print("\n".join(f"{o.get('kind', kind).lower()}/{o['metadata']['name']}" for o in objects))
    elif kind == "events":
        print("LAST SEEN   TYPE      REASON   OBJECT   MESSAGE\n" + "\n".join(cluster.events()))
    else:
        print("NAME READY STATUS\n" + "\n".join(o["metadata"]["name"] for o in objects))
    return None


def create(cluster: Cluster, argv: list[str]) -> None:
    (manifest,) = manifests(argv)
    name = manifest["metadata"]["name"]
    if "--dry-run=server" in argv:
        now = time.gmtime(time.time() + WORLD["skew"])
        print(
            jsonpath.rendered(
                option(argv, "-o").partition("=")[2],
                {"metadata": {"creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", now)}},
            ),
            end="",
        )
    elif name in WORLD["configmaps"]:
        refuse(
            f'Error from server (AlreadyExists): error when creating "{option(argv, "-f")}": '
            f'configmaps "{name}" already exists'
        )
    else:
        manifest["metadata"]["resourceVersion"] = "1"
        WORLD["configmaps"][name] = manifest
        print(f"configmap/{name} created")


def replace(cluster: Cluster, argv: list[str]) -> None:
    (manifest,) = manifests(argv)
    name = manifest["metadata"]["name"]
    live = WORLD["configmaps"].get(name)
    if not live or live["metadata"]["resourceVersion"] != manifest["metadata"]["resourceVersion"]:
        refuse(
            f'Error from server (Conflict): error when replacing "{option(argv, "-f")}": '
            f'Operation cannot be fulfilled on configmaps "{name}": '
            "the object has been modified; please apply your changes to the latest version and try again"
        )
    manifest["metadata"]["resourceVersion"] = str(int(live["metadata"]["resourceVersion"]) + 1)
    WORLD["configmaps"][name] = manifest
    print(f"configmap/{name} replaced")


def apply(cluster: Cluster, argv: list[str]) -> None:
    dry = option(argv, "--dry-run") == "server"
    for manifest in manifests(argv):
        missing = cluster.missing_namespace(manifest)
        if missing:
            refuse(f'Error from server (NotFound): namespaces "{missing}" not found')
        if not dry:
            cluster.apply(manifest)
        api, kind, name = manifest["apiVersion"], manifest["kind"].lower(), manifest["metadata"]["name"]
        group = "." + api.split("/")[0] if "/" in api else ""
        print(f"{kind}{group}/{name} serverside-applied{' (server dry run)' if dry else ''}")


def diff(cluster: Cluster, argv: list[str]) -> None:
    changed = False
    for manifest in manifests(argv):
        missing = cluster.missing_namespace(manifest)
        if missing:
            refuse(f'Error from server (NotFound): namespaces "{missing}" not found', 1 if changed else 2)
        if cluster.differs(manifest):
            changed = True
            about = manifest["metadata"]
            api = manifest["apiVersion"].replace("/", ".")
            name = f"{api}.{manifest['kind']}.{about.get('namespace', '')}.{about['name']}"
            print(
                f"diff -u -N /tmp/LIVE-123/{name} /tmp/MERGED-456/{name}\n"
                f"--- /tmp/LIVE-123/{name}\n+++ /tmp/MERGED-456/{name}\n@@ -1 +1 @@\n+something"
            )
    raise SystemExit(int(changed))


def rollout(cluster: Cluster, argv: list[str]) -> None:
    assert argv[1] == "status"
    print(f'{argv[2]} "{argv[2]}" successfully rolled out')


def annotate(cluster: Cluster, argv: list[str]) -> None:
    key, _, value = argv[3].partition("=")
    cluster.annotate(argv[2], key, value)
    print(f"replicaset.apps/{argv[2]} annotated")


def logs(cluster: Cluster, argv: list[str]) -> None:
    if "--previous" in argv and not cluster.crashes():
        refuse(f'Error from server (BadRequest): previous terminated container "api" in pod "{argv[1]}" not found')
    print("cannot start: MODEL_DIR: there is no model")


def delete(cluster: Cluster, argv: list[str]) -> None:
    kind, name = argv[1].split("/") if "/" in argv[1] else argv[1:3]
    cluster.delete(kind.split(".")[0], name)
    print(f'{kind} "{name}" deleted')


VERBS = {
    "get": get,
    "create": create,
    "replace": replace,
    "apply": apply,
    "diff": diff,
    "rollout": rollout,
    "annotate": annotate,
    "logs": logs,
    "delete": delete,
}


def parsed(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """The command without the options before it, and their values."""
    before, rest = {}, list(argv)
    while rest and rest[0].startswith("--"):
        word = rest.pop(0)
        name, _, value = word.partition("=")
        before[name] = value or (rest.pop(0) if name in SPLIT_AT else "")
    return before, rest


def main(argv: list[str]) -> None:
    call("kubectl", argv)
    before, rest = parsed(argv)
    if rest[0] == "kustomize":
        return kustomize(rest)
    if rest[0] == "version":
        return version(rest)
    cluster = Cluster(WORLD)
    if rest[0] == "config":
        return config(rest, before.get("--context"))
    if not WORLD["reachable"]:
        refuse(REFUSED)
    if rest[0] == "api-resources":
        return print("\n".join([API, *WORLD["crds"]]))
    if rest[:2] == ["auth", "can-i"]:
        return can_i(rest)
    return VERBS[rest[0]](cluster, rest)
