"""How to log in to a tracking server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import requests

LONGEST = 200  # characters of a server's words
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 3.05, 10.0


@dataclass(frozen=True, repr=False)
class Auth:
    """A login; all empty for an open server."""

    username: str = ""
    password: str = ""
    token: str = ""

    @classmethod
    def from_env(cls) -> Auth:
        """MLflow's own variables: how secrets reach the agent and its children."""
        return cls(*(os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD", "TOKEN")))

    def session(self) -> requests.Session:
        """A session with this login, and MLflow's own settings for certificates."""
        import requests  # 12 MB that an agent beside an SQLite file does without

        session = requests.Session()
        if self.token:
            session.headers["Authorization"] = f"Bearer {self.token}"
        elif self.username:
            session.auth = (self.username, self.password)
        insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
        session.verify = not insecure and (os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True)
        return session


def answered(err: Exception) -> str | None:
    """What a server answered that made ``err``: its status and, if it has any, its own words. None where it did not."""
    response = getattr(err, "response", None)
    if response is None:
        return None
    try:
        words = str(response.json()["message"]).strip().partition("\n")[0][:LONGEST]
    except (ValueError, KeyError, TypeError):
        words = ""
    return f"{response.status_code}: {words}" if words else str(response.status_code)


def cause(err: Exception) -> str:
    """The innermost reason in a few words: requests wraps it three deep, with addresses of objects."""
    text = str(err)
    for words in ("Connection refused", "Name or service not known", "timed out", "certificate verify failed"):
        if words.lower() in text.lower():
            return words.lower()
    return type(err).__name__
