"""What the documents say is what the code does."""

from __future__ import annotations

import re

from serving.settings import ROOT, TABLE_END, TABLE_START, env_example, table

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_settings_are_those_of_the_code() -> None:
    told = README.partition(TABLE_START)[2].partition(TABLE_END)[0]
    assert told.strip() == table(), "run make docs"
    assert (ROOT / ".env.example").read_text(encoding="utf-8") == env_example(), "run make docs"


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([a-z0-9]+)`", README)) | set(re.findall(r"^make ([a-z0-9]+)", README, re.MULTILINE))
    assert named >= {"run", "test", "check", "lock", "docs"}
    assert {target for target in named if not re.search(rf"^{target}:", makefile, re.MULTILINE)} == set()


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"\]\(([\w/.]+)\)", README) + re.findall(r"`((?:serving|training|tests|docs)/[\w/.]*)`", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_reason_for_a_refusal_is_in_the_design() -> None:
    design = (ROOT / "docs" / "DESIGN.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "serving").rglob("*.py"))
    reasons = set(re.findall(r'reason="(\w+)"', code))
    assert len(reasons) >= 9
    assert {reason for reason in reasons if f"`{reason}`" not in design} == set()


def test_every_route_of_the_readme_is_served() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "serving").rglob("*.py"))
    routes = set(re.findall(r"`(?:GET|POST) (/[\w/<>]+)`", README))
    assert len(routes) >= 12
    assert {route for route in routes if f'"{route}"' not in code} == set()
