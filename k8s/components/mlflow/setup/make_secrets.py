"""Makes the passwords of MLflow, PostgreSQL and the object store in this namespace, where there are none.

They are made inside the cluster, so that they are in no file, no manifest and no shell's history. What is there already
stays: running this again changes nothing. It talks to the API server with the pod's own token, which may create Secrets
and read back one.
"""

import base64
import json
import secrets
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ACCOUNT = Path("/run/account")
SERVER = "https://kubernetes.default.svc"
PASSWORDS, SERVICE = "mlflow-passwords", "mlflow-live"


class Api:
    """The Secrets of the namespace that ``account`` names. Raises OSError when the API server does not answer."""

    def __init__(self, server: str, account: Path) -> None:
        namespace = (account / "namespace").read_text(encoding="utf-8").strip()
        self._url = f"{server}/api/v1/namespaces/{namespace}/secrets"
        self._account = account
        self._tls = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https") else None

    def read(self, name: str) -> dict[str, str]:
        """What the Secret says."""
        data = self._call("GET", f"{self._url}/{name}")["data"]
        return {key: base64.b64decode(text).decode() for key, text in data.items()}

    def create(self, name: str, content: dict[str, str]) -> bool:
        """Whether it was created; what is there already stays as it is."""
        labels = {"app.kubernetes.io/part-of": "mlflow-live"}
        secret = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "stringData": content}
        try:
            self._call("POST", self._url, secret | {"metadata": {"name": name, "labels": labels}})
        except urllib.error.HTTPError as err:
            if err.code != 409:
                raise
            return False
        return True

    def _call(self, method: str, url: str, body: dict[str, Any] | None = None) -> Any:
        token = (self._account / "token").read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode() if body else None, headers, method=method)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )
        with opener.open(request, timeout=10) as answer:
            return json.load(answer)


def passwords() -> dict[str, str]:
    """New ones, each file as the program that reads it wants it."""
    mlflow, key = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    return {
        "postgres-superuser": secrets.token_urlsafe(24),
        "postgres-mlflow": mlflow,
        "postgres-ledger": secrets.token_urlsafe(24),
        "pgpass": f"postgres:5432:mlflow:mlflow:{mlflow}\n",
        "s3-user": "mlflow",
        "s3-password": key,
        "aws": f"[default]\naws_access_key_id = mlflow\naws_secret_access_key = {key}\n",
    }


def main(api: Api) -> None:
    """Both Secrets, the second of the first's passwords: also when it was interrupted between the two."""
    words = {True: "created", False: "is there"}
    print(f"secrets: {PASSWORDS}:", words[api.create(PASSWORDS, passwords())])
    ledger = api.read(PASSWORDS)["postgres-ledger"]
    made = api.create(SERVICE, {"database-url": f"postgresql://ledger:{ledger}@postgres/ledger"})
    print(f"secrets: {SERVICE}:", words[made])


if __name__ == "__main__":
    try:
        main(Api(SERVER, ACCOUNT))
    except urllib.error.HTTPError as err:
        sys.exit(f"secrets: the API server answers {err.code}: {err.read(500).decode(errors='replace')}")
    except OSError as err:
        sys.exit(f"secrets: the API server does not answer: {err}")
