"""Brings MLflow's database to the schema of this MLflow: ``python docker/migrate.py URI``.

MLflow alone tries for minutes where a password is wrong, and then ends in a stack trace.
"""

import os
import sys

import psycopg2


def main(uri: str) -> None:
    try:
        psycopg2.connect(uri, connect_timeout=10).close()
    except psycopg2.OperationalError as err:
        sys.exit(f"migrate: {str(err).splitlines()[0]}")
    os.execvp("mlflow", ["mlflow", "db", "upgrade", uri])


if __name__ == "__main__":
    main(sys.argv[1])
