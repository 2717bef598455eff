"""A tracking server as a registry, over its REST API."""

from __future__ import annotations

import re
from typing import Any

from serving.errors import RegistryUnreachable, UnknownModel
from serving.registry.login import CONNECT_TIMEOUT_S, READ_TIMEOUT_S, Auth, cause
from serving.registry.versions import Ref, Version


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
            return Version.registered(ref, str(plain["version"]), where["artifact_uri"], plain.get("run_id"), tags)
        except (KeyError, TypeError) as err:
            raise RegistryUnreachable(f"{self._shown} does not answer as an MLflow registry does") from err

    def _get(self, path: str, **params: str) -> Any:
        import requests

        url = f"{self._uri}/api/2.0/mlflow/{path}"
        try:
            answer = self._session.get(url, params=params, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
        except requests.RequestException as err:
            raise RegistryUnreachable(f"registry {self._shown} does not answer: {cause(err)}") from err
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
