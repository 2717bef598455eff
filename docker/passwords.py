"""Makes the stack's passwords where there are none: ``python docker/passwords.py FOLDER``.

FOLDER has a folder, which is a volume, for each service that needs a secret. What is there already stays: running this
again changes nothing, and a password that was put there by hand holds.
"""

import os
import secrets
import sys
from pathlib import Path

MLFLOW_UID = 10001


def made(path: Path) -> str:
    """The secret at ``path``, new if there is none."""
    if not path.exists():
        write(path, secrets.token_urlsafe(24))
    return path.read_text(encoding="utf-8").strip()


def write(path: Path, text: str, mode: int = 0o644, owner: int | None = None) -> None:
    """Whole or not at all; readable for all who see the volume, because each has another UID."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.chmod(mode)
    if owner is not None:
        os.chown(partial, owner, owner)
    partial.rename(path)


def main(home: Path) -> None:
    made(home / "postgres/superuser")
    mlflow, ledger = made(home / "postgres/mlflow"), made(home / "postgres/ledger")
    user, password = home / "minio/user", made(home / "minio/password")
    if not user.exists():
        write(user, "mlflow")
    # libpq takes a password file only if nobody else can read it.
    write(home / "mlflow/pgpass", f"postgres:5432:mlflow:mlflow:{mlflow}", 0o400, MLFLOW_UID)
    keys = f"aws_access_key_id = {user.read_text().strip()}\naws_secret_access_key = {password}"
    write(home / "mlflow/aws", f"[default]\n{keys}")
    write(home / "api/database_url", f"postgresql://ledger:{ledger}@postgres/ledger")
    write(home / "alertmanager/webhook_url", os.environ.get("ALERT_WEBHOOK_URL", ""))
    made(home / "grafana/admin_password")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except OSError as err:
        sys.exit(f"secrets: cannot write {err.filename}: {err.strerror}")
