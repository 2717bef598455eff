"""The manifests of k8s/, without a cluster."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from rendered import VARIANTS, render


@pytest.fixture(scope="session", autouse=True)
def kubectl() -> None:
    """kubectl renders what is tested here."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")


@pytest.fixture(params=VARIANTS, ids="+".join)
def variant(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """An overlay, and components on top of it."""
    chosen: tuple[str, ...] = request.param
    return chosen


@pytest.fixture
def objects(variant: tuple[str, ...]) -> list[dict[str, Any]]:
    """What it renders to."""
    return render(*variant)
