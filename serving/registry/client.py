"""Everything else that MLflow reads, as a registry."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlparse

from serving.errors import RegistryUnreachable, UnknownModel
from serving.registry.versions import Ref, Version

SERVERS = ("postgresql", "mysql")  # databases that are elsewhere, and may be away
CONNECT_S = 5


class ClientRegistry:
    """A database or another store, through MLflow's own client, which is imported at the first look."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client: Any = None

    def fingerprint(self) -> None:
        return None

    def resolve(self, ref: Ref) -> Version:
        client = self._connect()
        try:
            found = (
                client.get_model_version(ref.name, ref.version)
                if ref.version
                else client.get_model_version_by_alias(ref.name, ref.alias)
            )
            where = client.get_model_version_download_uri(ref.name, found.version)
        except Exception as err:
            code = getattr(err, "error_code", "")
            if code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise UnknownModel(f"registry: {first_line(err)}") from err
            # Whatever else a store raises (its driver's errors, half-migrated schemas): it cannot be asked now.
            raise RegistryUnreachable(f"registry {_scheme(self._uri)}: {first_line(err)}") from err
        return Version.registered(ref, str(found.version), where, found.run_id, dict(found.tags))

    def _connect(self) -> Any:
        if self._client is None:
            self._client = connected(self._uri)
        return self._client


def connected(uri: str) -> Any:
    """MLflow's client for what is behind ``uri``. Raises `RegistryUnreachable` where it cannot read that."""
    try:
        from mlflow import MlflowClient

        _reach(uri)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    except ImportError as err:
        what = f"registry {_scheme(uri)} needs the full mlflow package: {err}"
        raise RegistryUnreachable(what) from err
    except Exception as err:
        raise RegistryUnreachable(f"registry {_scheme(uri)}: {_reason(err)}") from err


def _reach(uri: str) -> None:
    """Connect to a database once: MLflow would try for a minute and a half before it says that there is none."""
    if urlparse(uri).scheme.partition("+")[0] not in SERVERS:
        return
    import sqlalchemy as sa

    engine = sa.create_engine(uri, poolclass=sa.NullPool)
    sa.event.listen(engine, "do_connect", lambda *given: given[-1].setdefault("connect_timeout", CONNECT_S))
    with engine.connect():
        pass


def _scheme(uri: str) -> str:
    """The part of a store's URI that is safe to show: a database URI may hold a password."""
    return f"{urlparse(uri).scheme}:…"


def _reason(err: Exception) -> str:
    if type(err).__name__ == "UnsupportedModelRegistryStoreURIException":  # its own words hold the whole URI
        return "the mlflow that is installed does not read this; a database needs the full mlflow package"
    return first_line(err)


def first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:300]
