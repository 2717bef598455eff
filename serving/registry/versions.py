"""What is asked of a registry, and what it answers: references and versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_ALIAS = "champion"

# Tags of a model version that this service reads.
DIGEST_TAG = "artifact_digest"  # what `folder_digest` gave when the version was registered
BREAKING_TAG = "breaking_change"  # "true": clients were told that the signature changes
ROUTE_TAG = "route"  # the part that it takes as a challenger: `serving.routing.Part`


@dataclass(frozen=True)
class Ref:
    """What to serve of a registered model: the version behind an alias, or one fixed version."""

    name: str
    alias: str | None = DEFAULT_ALIAS
    version: str | None = None

    @classmethod
    def parse(cls, text: str) -> Ref:
        """``name``, ``name@alias`` or ``name/version``. Raises ValueError for anything else."""
        name, at, alias = text.partition("@")
        name, slash, version = name.partition("/") if not at else (name, "", "")
        if name in ("", ".", "..") or (at and not alias) or (slash and not version.isdecimal()):
            raise ValueError(f"{text!r} is not a name, name@alias or name/version")
        return cls(name, None if version else alias or DEFAULT_ALIAS, version or None)

    def __str__(self) -> str:
        return f"{self.name}/{self.version}" if self.version else f"{self.name}@{self.alias}"


@dataclass(frozen=True)
class Version:
    """One version of a model, and where its files are."""

    name: str
    version: str
    alias: str | None
    source: str  # "registry" or "local"
    location: str  # an artifact URI, or a folder
    run_id: str | None = None
    digest: str | None = None  # as recorded when it was registered
    breaking: bool = False
    route: str | None = None  # as its tag has it

    @classmethod
    def registered(
        cls, ref: Ref, version: str, location: str, run_id: str | None, tags: Mapping[str, str | None]
    ) -> Version:
        """What a registry tells of the version that ``ref`` names."""
        breaking = (tags.get(BREAKING_TAG) or "").lower() == "true"
        plain = ref.name, version, ref.alias, "registry", location, run_id or None, tags.get(DIGEST_TAG)
        return cls(*plain, breaking, tags.get(ROUTE_TAG))
