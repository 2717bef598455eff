"""The trivy of the tests: it writes what it is told to write, and finds what the world says."""

from __future__ import annotations

from pathlib import Path

from stubs.state import WORLD, call, option


def main(argv: list[str]) -> int:
    call("trivy", argv)
    if argv == ["--version"]:
        print("Version: 0.74.0\nVulnerability DB:\n  UpdatedAt: 2026-11-20 06:00:00 +0000 UTC")
        return 0
    if option(argv, "--output"):
        Path(option(argv, "--output")).write_text("{}")
    if "--input" in argv:
        Path(option(argv, "--input")).read_text()
    gate = option(argv, "--exit-code")
    findings = WORLD["findings"]
    kind = "config" if "config" in argv else "image"
    if gate and kind in findings:
        print(f"{findings[kind]}: HIGH: 1")
        return int(gate)
    return 0
