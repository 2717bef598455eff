"""Fetch a version's files, with MLflow only where nothing else can."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlparse

from serving.errors import PrepareFailed, RegistryUnreachable, VersionRefused
from serving.registry.client import first_line
from serving.registry.login import CONNECT_TIMEOUT_S, Auth, answered, cause
from serving.registry.versions import Version

if TYPE_CHECKING:
    import requests


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
        else:
            _from_store(version.location, into, tracking_uri, auth)
    except (ConnectionError, TimeoutError) as err:
        raise _silent(err) from err
    except OSError as err:
        raise PrepareFailed(
            f"cannot write the files of {version.name} {version.version}: {err.strerror or err}"
        ) from err
    return into


def _silent(err: Exception) -> RegistryUnreachable:
    said = answered(err)
    what = f"answers {said}" if said is not None else f"does not answer: {cause(err)}"
    return RegistryUnreachable(f"the artifact store {what}")


def _from_store(location: str, into: Path, tracking_uri: str, auth: Auth) -> None:
    import requests

    place = urlparse(location)
    try:
        if place.scheme == "mlflow-artifacts" and not place.netloc:
            _download(f"{tracking_uri.rstrip('/')}/api/2.0/mlflow-artifacts/artifacts", place.path, into, auth)
        else:
            _through_mlflow(location, into, tracking_uri)
    except requests.RequestException as err:
        raise _silent(err) from err


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
        raise RegistryUnreachable(f"the artifact store gave nothing: {first_line(err)}") from err
    Path(got).rename(into)
    shutil.rmtree(place, ignore_errors=True)
