"""Which version does this alias name, and fetch it: from MLflow, or from local files."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlparse

import requests

from serving import notes
from serving.errors import PrepareFailed, RegistryUnreachable, UnknownModel, VersionRefused

DEFAULT_ALIAS = "champion"

# Tags of a model version that this service reads.
DIGEST_TAG = "artifact_digest"  # what `folder_digest` gave when the version was registered
BREAKING_TAG = "breaking_change"  # "true": clients were told that the signature changes

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 3.05, 10.0


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
    return ClientRegistry(uri)


# --- over HTTP -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Auth:
    """How to log in to a tracking server; all empty for an open one."""

    username: str = ""
    password: str = ""
    token: str = ""

    @classmethod
    def from_env(cls) -> Auth:
        """MLflow's own variables: how secrets reach the agent and its children."""
        return cls(*(os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD", "TOKEN")))

    def session(self) -> requests.Session:
        """A session with this login, and MLflow's own settings for certificates."""
        session = requests.Session()
        if self.token:
            session.headers["Authorization"] = f"Bearer {self.token}"
        elif self.username:
            session.auth = (self.username, self.password)
        insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
        session.verify = not insecure and (os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True)
        return session


class RestRegistry:
    """A tracking server, asked over its REST API, without MLflow's client (which costs a second and 150 MB)."""

    def __init__(self, uri: str, auth: Auth) -> None:
        self._uri = uri.rstrip("/")
        self._shown = re.sub(r"//[^/@]*@", "//", self._uri)  # an address may hold a password
        self._session = auth.session()

    def fingerprint(self) -> None:
        return None

    def resolve(self, ref: Ref) -> Version:
        if ref.version:
            found = self._get("model-versions/get", name=ref.name, version=ref.version)
        else:
            found = self._get("registered-models/alias", name=ref.name, alias=str(ref.alias))
        try:
            plain = found["model_version"]
            where = self._get("model-versions/get-download-uri", name=ref.name, version=str(plain["version"]))
            tags = {tag["key"]: tag["value"] for tag in plain.get("tags", ())}
            return _version(ref, str(plain["version"]), where["artifact_uri"], plain.get("run_id"), tags)
        except (KeyError, TypeError) as err:
            raise RegistryUnreachable(f"{self._shown} does not answer as an MLflow registry does") from err

    def _get(self, path: str, **params: str) -> Any:
        url = f"{self._uri}/api/2.0/mlflow/{path}"
        try:
            answer = self._session.get(url, params=params, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
        except requests.RequestException as err:
            raise RegistryUnreachable(f"registry {self._shown} does not answer: {_cause(err)}") from err
        try:
            content = answer.json()
        except requests.JSONDecodeError as err:
            what = f"{answer.status_code} without JSON"
            raise RegistryUnreachable(f"{self._shown} does not answer as an MLflow registry does: {what}") from err
        if answer.ok:
            return content
        if isinstance(content, dict) and content.get("error_code") in (
            "RESOURCE_DOES_NOT_EXIST",
            "INVALID_PARAMETER_VALUE",
        ):
            raise UnknownModel(f"registry: {content.get('message', 'not found')}")
        raise RegistryUnreachable(f"registry {self._shown} answered {answer.status_code}")


def _version(ref: Ref, version: str, location: str, run_id: str | None, tags: dict[str, str]) -> Version:
    breaking = tags.get(BREAKING_TAG, "").lower() == "true"
    return Version(ref.name, version, ref.alias, "registry", location, run_id or None, tags.get(DIGEST_TAG), breaking)


def _cause(err: Exception) -> str:
    """The innermost reason in a few words: requests wraps it three deep, with addresses of objects."""
    text = str(err)
    for words in ("Connection refused", "Name or service not known", "timed out", "certificate verify failed"):
        if words.lower() in text.lower():
            return words.lower()
    return type(err).__name__


# --- everything else that MLflow reads -------------------------------------------------------------------------------


class ClientRegistry:
    """A database or another store, through MLflow's own client, which is imported at the first look."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._file = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None
        self._client: Any = None

    def fingerprint(self) -> object | None:
        if self._file is None:
            return None
        return tuple(notes.stamp(Path(f"{self._file}{end}")) for end in ("", "-wal"))

    def resolve(self, ref: Ref) -> Version:
        if self._file is not None and not self._file.is_file():
            raise RegistryUnreachable(f"registry: there is no SQLite file {self._file.name}")
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
                raise UnknownModel(f"registry: {_first_line(err)}") from err
            # Whatever else a store raises (its driver's errors, half-migrated schemas): it cannot be asked now.
            raise RegistryUnreachable(f"registry {_scheme(self._uri)}: {_first_line(err)}") from err
        return _version(ref, str(found.version), where, found.run_id, dict(found.tags))

    def _connect(self) -> Any:
        if self._client is None:
            try:
                from mlflow import MlflowClient

                self._client = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            except ImportError as err:
                what = f"registry {_scheme(self._uri)} needs the full mlflow package: {err}"
                raise RegistryUnreachable(what) from err
            except Exception as err:
                raise RegistryUnreachable(f"registry {_scheme(self._uri)}: {_first_line(err)}") from err
        return self._client


def _scheme(uri: str) -> str:
    """The part of a store's URI that is safe to show: a database URI may hold a password."""
    return f"{urlparse(uri).scheme}:…"


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:300]


# --- local files -----------------------------------------------------------------------------------------------------


class LocalFiles:
    """Promoted versions beside the service: ``<folder>/<name>/version.json`` and ``<folder>/<name>/<artifacts>/``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def resolve(self, ref: Ref) -> Version:
        """The version that lies here for ``ref.name``. Raises `UnknownModel`."""
        note = notes.read(self._folder / ref.name / "version.json")
        artifacts = self._folder / ref.name / str((note or {}).get("artifacts", ""))
        if note is None or "version" not in note or not (artifacts / "MLmodel").is_file():
            raise UnknownModel(f"no local files for {ref.name!r} in {self._folder}")
        if ref.version and str(note["version"]) != ref.version:
            raise UnknownModel(f"the local files of {ref.name!r} are version {note['version']}, not {ref.version}")
        return Version(
            ref.name, str(note["version"]), ref.alias, "local", str(artifacts), note.get("run_id"), note.get("digest")
        )

    def publish(self, version: Version, artifacts: Path) -> Path:
        """Leave a copy of ``artifacts`` as what `resolve` gives. A reader sees the old version or the new one."""
        home = self._folder / version.name
        home.mkdir(parents=True, exist_ok=True)
        target = Path(tempfile.mkdtemp(prefix=f"version-{version.version}-", dir=home))
        target.chmod(0o755)
        told = {"version": version.version, "run_id": version.run_id, "digest": version.digest}
        note = {**told, "artifacts": target.name}
        try:
            shutil.copytree(artifacts, target, dirs_exist_ok=True)
            notes.write(home / "version.json", note)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
        (home / "version.json").chmod(0o644)
        for old in home.glob("version-*"):
            if old.is_dir() and old != target:
                shutil.rmtree(old, ignore_errors=True)
        return target


# --- fetching --------------------------------------------------------------------------------------------------------


def fetch(version: Version, into: Path, tracking_uri: str, auth: Auth) -> Path:
    """Copy the version's files into the new folder ``into``.

    Folders are copied and a tracking server's artifact proxy is read directly; every other store goes through MLflow.
    Raises `VersionRefused` when files are missing, `RegistryUnreachable` when the store does not answer, and
    `PrepareFailed` when there is no room for them.
    """
    place = urlparse(version.location)
    try:
        if not place.scheme:
            _copy(Path(version.location), into)
        elif place.scheme == "file":
            _copy(Path(unquote(place.path)), into)
        elif place.scheme == "mlflow-artifacts" and not place.netloc:
            _download(f"{tracking_uri.rstrip('/')}/api/2.0/mlflow-artifacts/artifacts", place.path, into, auth)
        else:
            _through_mlflow(version.location, into, tracking_uri)
    except (requests.RequestException, ConnectionError, TimeoutError) as err:
        raise RegistryUnreachable(f"the artifact store does not answer: {_cause(err)}") from err
    except OSError as err:
        raise PrepareFailed(
            f"cannot write the files of {version.name} {version.version}: {err.strerror or err}"
        ) from err
    return into


def _copy(folder: Path, into: Path) -> None:
    if not folder.is_dir():
        raise VersionRefused(f"its files are not at {folder}", reason="missing_files")
    shutil.copytree(folder, into)


def _download(api: str, root: str, into: Path, auth: Auth) -> None:
    """Everything under ``root`` of the artifact proxy; the server's paths must stay inside ``into``."""
    session = auth.session()
    timeout = (CONNECT_TIMEOUT_S, 60.0)
    root = root.strip("/")
    folders = [""]
    while folders:
        folder = folders.pop()
        path = f"{root}/{folder}".strip("/")
        listing = session.get(api, params={"path": path}, timeout=timeout)
        for name, is_folder in _listed(listing):
            inside = f"{folder}/{name}".strip("/")
            target = (into / inside).resolve()
            if not target.is_relative_to(into.resolve()):
                raise VersionRefused(f"a file's path leaves its folder: {inside}", reason="bad_path")
            if is_folder:
                folders.append(inside)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                _stream(session, f"{api}/{quote(f'{root}/{inside}')}", target, timeout)
    if not into.is_dir():
        raise VersionRefused("it has no files in the artifact store", reason="missing_files")


def _listed(answer: requests.Response) -> list[tuple[str, bool]]:
    """The entries of a folder: the path of each, and whether it is a folder."""
    answer.raise_for_status()
    try:
        return [(str(entry["path"]), bool(entry.get("is_dir"))) for entry in answer.json().get("files", ())]
    except (KeyError, TypeError, AttributeError) as err:
        raise RegistryUnreachable("the artifact store does not answer as MLflow's does") from err


def _stream(session: requests.Session, url: str, target: Path, timeout: tuple[float, float]) -> None:
    with session.get(url, stream=True, timeout=timeout) as answer:
        if answer.status_code == 404:
            raise VersionRefused(f"file {target.name} is missing in the artifact store", reason="missing_files")
        answer.raise_for_status()
        with target.open("wb") as file:
            for piece in answer.iter_content(1 << 20):
                file.write(piece)


def _through_mlflow(location: str, into: Path, tracking_uri: str) -> None:
    import mlflow

    place = into.with_name(f"{into.name}.download")
    place.mkdir(parents=True)
    try:
        got = mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=str(place), tracking_uri=tracking_uri)
    except OSError:
        raise
    except Exception as err:  # every store has errors of its own
        raise RegistryUnreachable(f"the artifact store gave nothing: {_first_line(err)}") from err
    Path(got).rename(into)
    shutil.rmtree(place, ignore_errors=True)
