"""The manifests as they reach a cluster: rendered the way deploy.sh does it, through a folder of its own elsewhere.

For linters: ``python tests/k8s/rendered.py FOLDER`` writes each overlay there, alone and with every component.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
ENVIRONMENTS = ("local", "staging", "production")
COMPONENTS = tuple(sorted(folder.name for folder in (K8S / "components").iterdir() if folder.is_dir()))
DIGEST = "sha256:" + "5e" * 32
IMAGES = [
    {"name": "mlflow-live", "newName": "registry:5000/mlflow-live", "digest": DIGEST},
    {"name": "mlflow-live-mlflow", "newName": "registry:5000/mlflow-live-mlflow", "newTag": "0123abc"},
]
CLUSTERED = {"Namespace", "PriorityClass"}
UNITS = {"m": Decimal("0.001"), "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def missing(environment: str) -> tuple[str, ...]:
    """The components that an overlay does not have by itself."""
    own = (K8S / f"overlays/{environment}/kustomization.yaml").read_text(encoding="utf-8")
    return tuple(component for component in COMPONENTS if f"components/{component}\n" not in own)


WHOLE = tuple((environment, *missing(environment)) for environment in ENVIRONMENTS)
# Every overlay alone, with each component that it lacks, with what a newcomer would try together, and with everything.
VARIANTS: tuple[tuple[str, ...], ...] = (
    *((environment,) for environment in ENVIRONMENTS),
    *((environment, component) for environment in ENVIRONMENTS for component in missing(environment)),
    *((environment, "mlflow", "monitoring", "ingress") for environment in ENVIRONMENTS),
    *WHOLE,
)


def kustomize(folder: Path) -> str:
    """What kubectl makes of the folder. Raises CalledProcessError with kubectl's words in it."""
    command = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@functools.cache
def text(environment: str, *components: str, namespace: str = "") -> str:
    """An overlay with components, released, as YAML."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "k8s").symlink_to(K8S)
        wanted: dict[str, Any] = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [f"k8s/overlays/{environment}"],
            "components": [f"k8s/components/{component}" for component in components],
            "images": IMAGES,
        }
        if namespace:
            wanted["namespace"] = namespace
        (folder / "kustomization.yaml").write_text(json.dumps(wanted))
        return kustomize(folder)


@functools.cache
def render(environment: str, *components: str, namespace: str = "") -> list[dict[str, Any]]:
    """The same as objects, which belong to all tests: not to be changed."""
    return parsed(text(environment, *components, namespace=namespace))


def parsed(manifests: str) -> list[dict[str, Any]]:
    """The objects of a YAML text."""
    import yaml  # not needed to write files for linters

    return list(yaml.load_all(manifests, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def named(objects: list[dict[str, Any]], kind: str, name: str = "mlflow-live") -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = [one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def workloads(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What makes pods."""
    return [one for one in objects if one["kind"] in ("Deployment", "StatefulSet", "Job")]


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    """The specification of its pods."""
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a pod's, those that prepare it included."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def quantity(value: str | int) -> Decimal:
    """A Kubernetes quantity in its unit: 500m → 0.5, 1Ki → 1024."""
    match = re.fullmatch(r"(\d+)(m|Ki|Mi|Gi)?", str(value))
    assert match, f"unknown quantity {value!r}"
    return int(match[1]) * Decimal(UNITS.get(match[2] or "", 1))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for environment, *others in WHOLE:
        (target / f"{environment}.yaml").write_text(text(environment), encoding="utf-8")
        (target / f"{environment}-whole.yaml").write_text(text(environment, *others), encoding="utf-8")
