"""Kubernetes' own schemas and checkov find nothing. Both live in an environment of tools, which `make tools` makes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rendered import K8S, ROOT, VARIANTS, WHOLE, render, text

TOOLS = ROOT / ".venv-tools/bin"
VERSIONS = ("1.32", "1.33", "1.34", "1.35", "1.36")
CUSTOM = {"monitoring.coreos.com/v1"}  # resources of operators, of which these schemas know nothing
VALIDATE = """
import json, sys, kubernetes_validate
versions, manifests = json.load(sys.stdin)
for version in versions:
    for where, one in manifests:
        try:
            used = kubernetes_validate.validate(one, version, strict=True)
            assert used == version, f"has no schemas of {version}"
        except Exception as err:
            name = one["kind"] + "/" + one["metadata"]["name"]
            print(version, where, name, str(getattr(err, "message", err))[:300])
"""


@pytest.fixture(scope="session")
def validator() -> Path:
    """A Python that has kubernetes-validate."""
    python = Path(os.environ.get("KUBERNETES_VALIDATE_PYTHON", TOOLS / "python"))
    known = python.exists() and subprocess.run(
        [python, "-c", "import kubernetes_validate"], check=False, capture_output=True
    )
    if not known or known.returncode:
        pytest.skip(f"{python} has no kubernetes-validate")
    return python


@pytest.fixture(scope="session")
def checkov() -> Path:
    """The program."""
    program = Path(os.environ.get("CHECKOV", TOOLS / "checkov"))
    if not program.exists():
        pytest.skip(f"{program} is not installed")
    return program


def schema_errors(python: Path, manifests: list[tuple[str, dict[str, Any]]]) -> str:
    asked = json.dumps([VERSIONS, manifests])
    done = subprocess.run(
        [python, "-c", VALIDATE], input=asked, capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout


def test_every_object_is_valid_in_every_supported_version(validator: Path) -> None:
    """Strictly: a field that a version does not know is an error. What variants have in common is looked at once."""
    different: dict[str, tuple[str, dict[str, Any]]] = {}
    for variant in VARIANTS:
        for one in render(*variant, namespace="here"):
            if one["apiVersion"] not in CUSTOM:
                different.setdefault(json.dumps(one, sort_keys=True), ("+".join(variant), one))
    assert schema_errors(validator, list(different.values())) == ""


def test_a_misspelt_field_would_be_found(validator: Path) -> None:
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"port": []}}
    assert schema_errors(validator, [("here", wrong)]).count("Service/x") == len(VERSIONS)


def findings(checkov: Path, files: list[Path]) -> tuple[int, set[str], set[str]]:
    """How many checks passed; what failed; what is left out for a reason that the object gives."""
    asked = [argument for file in files for argument in ("--file", file.name)]
    command = [checkov, "--config-file", K8S / ".checkov.yaml", "--output", "json", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=files[0].parent)
    report = json.loads(done.stdout[done.stdout.index("{") :])

    def named(kind: str) -> set[str]:
        found = report["results"].get(f"{kind}_checks", ())
        return {f"{one['check_id']} {one['resource']}" for one in found}

    return report["summary"]["passed"], named("failed"), named("skipped")


def test_checkov_finds_nothing(checkov: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{variant[0]}.yaml" for variant in WHOLE]
    for file, variant in zip(files, WHOLE, strict=True):
        file.write_text(text(*variant))
    passed, failed, _ = findings(checkov, files)
    assert failed == set()
    assert passed > 1000


def test_checkov_would_find_what_is_wrong(checkov: Path, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text("staging").replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"))
    _, failed, skipped = findings(checkov, [file])
    assert failed == {"CKV_K8S_22 Deployment.mlflow-live-staging.mlflow-live"}
    assert skipped == set(), "no exemption is needed outside local"
