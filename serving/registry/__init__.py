"""Which version does this alias name, and fetch it: from MLflow, or from local files."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlparse

from serving.registry.client import ClientRegistry
from serving.registry.fetching import fetch
from serving.registry.local import LocalFiles
from serving.registry.login import Auth
from serving.registry.rest import RestRegistry
from serving.registry.sqlite import SqliteRegistry
from serving.registry.versions import BREAKING_TAG, DEFAULT_ALIAS, DIGEST_TAG, ROUTE_TAG, Ref, Version

__all__ = [
    "BREAKING_TAG",
    "DEFAULT_ALIAS",
    "DIGEST_TAG",
    "ROUTE_TAG",
    "Auth",
    "ClientRegistry",
    "LocalFiles",
    "Ref",
    "Registry",
    "RestRegistry",
    "SqliteRegistry",
    "Version",
    "fetch",
    "registry_at",
]


class Registry(Protocol):
    """Where versions come from."""

    def resolve(self, ref: Ref) -> Version:
        """The version that ``ref`` names now. Raises `UnknownModel` or `RegistryUnreachable`."""

    def fingerprint(self) -> object | None:
        """Differs whenever something may have changed, at the cost of a system call; None when that is not known."""


def registry_at(uri: str, auth: Auth | None = None) -> Registry:
    """The registry behind an MLflow tracking URI."""
    if urlparse(uri).scheme in ("http", "https"):
        return RestRegistry(uri, auth or Auth())
    if uri.startswith("sqlite:///") and "?" not in uri:  # what follows a ? is for MLflow's driver
        return SqliteRegistry(uri)
    return ClientRegistry(uri)
