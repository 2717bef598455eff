"""docs/API.md is true: its lines run against a service with two workers, and answer what stands below them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from nbclient import NotebookClient

from serving.settings import ROOT

API = (ROOT / "docs" / "API.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "notebooks" / "endpoint_test.ipynb"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANYTHING = "…"
TIMEOUT_S = 120


class Snippet(NamedTuple):
    """A block to run, and the JSON that stands right below it."""

    kind: str
    text: str
    answer: Any


def snippets(document: str) -> list[Snippet]:
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(document)]
    following = [*blocks[1:], ("", "")]
    return [
        Snippet(kind, text, json.loads(after) if next_kind == "json" else None)
        for (kind, text), (next_kind, after) in zip(blocks, following, strict=True)
        if kind != "json"
    ]


def name_of(snippet: Snippet) -> str:
    return f"{snippet.kind}: {snippet.text.splitlines()[0][:60]}"


def at(port: int, text: str) -> str:
    """The same for the service under test."""
    return text.replace("localhost:5000", f"localhost:{port}").replace('"localhost", 5000', f'"localhost", {port}')


@pytest.mark.parametrize("snippet", snippets(API), ids=name_of)
def test_it_runs(snippet: Snippet, two_workers_port: int) -> None:
    interpreter = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[snippet.kind]
    text = at(two_workers_port, snippet.text)
    assert str(two_workers_port) in text
    refused = isinstance(snippet.answer, dict) and "error" in snippet.answer
    if snippet.kind == "bash" and not refused:
        text = text.replace("curl -s ", "curl -sS --fail-with-body -w '\\n' ")
    got = subprocess.run([*interpreter, text], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert got.returncode == 0, got.stdout + got.stderr
    assert got.stdout.strip()
    if snippet.kind == "bash":
        answers = [json.loads(line) for line in got.stdout.splitlines()]
        assert len(answers) == text.count("curl ")
        assert snippet.answer is None or alike(snippet.answer, answers[-1]), got.stdout


def alike(told: Any, got: Any) -> bool:
    """The same keys, texts and kinds of numbers; models differ in their numbers."""
    if told == ANYTHING:
        return True
    if isinstance(told, dict):
        return isinstance(got, dict) and told.keys() == got.keys() and all(alike(told[key], got[key]) for key in told)
    if isinstance(told, list):
        return isinstance(got, list) and len(told) == len(got) and all(map(alike, told, got))
    return bool(told == got) if isinstance(told, str) else type(told) is type(got)


def test_each_protocol_has_a_line_and_a_client() -> None:
    sections = re.split(r"^## ", API, flags=re.MULTILINE)[1:]
    kinds = {section.splitlines()[0]: {match[1] for match in BLOCK.finditer(section)} for section in sections}
    protocols = [name for name in kinds if name != "Operations"]
    assert len(protocols) == 4
    assert [name for name in protocols if not {"bash", "python"} <= kinds[name]] == []


def test_every_route_that_is_told_exists_and_the_other_way_round(app: Any) -> None:
    cells = " ".join(line.split("|")[1] for line in API.splitlines() if line.startswith("| `"))
    told = {_expanded(path) for path in re.findall(r"`(?:GET |POST )?(/[\w/<>.\[\]]*)`", cells)}
    rules = {re.sub(r"<\w+>", "<>", rule.rule) for rule in app.url_map.iter_rules()}
    assert {path for paths in told for path in paths} == rules


def _expanded(path: str) -> frozenset[str]:
    """A path with a part in brackets is two."""
    both = {re.sub(r"\[.*?\]", "", path), path.replace("[", "").replace("]", "")}
    return frozenset(re.sub(r"<\w+>", "<>", one) for one in both)


def test_the_notebook_runs(two_workers_port: int, tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == [], "it is kept without its outputs"
    for cell in notebook.cells:
        cell.source = at(two_workers_port, cell.source)
    NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "every check passed" in shown
