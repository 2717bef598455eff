"""Model families: each is a module of this package that says in `FAMILY` what is particular to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.family import Family

# What can be trained: the module's name, which is also the registered model's, and what it learns.
# The words stand here so that they can be listed without importing what the family needs.
FAMILIES = {
    "iris": "three species of iris from four measurements of the flower (random forest)",
}


def family(name: str) -> Family:
    """The family called ``name``, one of `FAMILIES`."""
    return import_module(f"training.{name}").FAMILY
