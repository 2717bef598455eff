"""Trains a family unless the registry has a version of it: ``python docker/first_version.py FAMILY``."""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request


def registered(server: str, name: str) -> bool:
    """Whether the tracking server knows a version of ``name``. Raises OSError when it does not answer."""
    query = urllib.parse.urlencode({"filter": f"name='{name}'", "max_results": 1})
    with urllib.request.urlopen(f"{server}/api/2.0/mlflow/model-versions/search?{query}", timeout=30) as answer:
        return bool(json.load(answer).get("model_versions"))


def main(family: str) -> None:
    try:
        there = registered(os.environ["MLFLOW_TRACKING_URI"], family)
    except OSError as err:
        sys.exit(f"train: MLflow does not answer: {err}")
    if there:
        print(f"train: {family} has a version already")
    else:
        os.execv(sys.executable, [sys.executable, "train_model.py", family])


if __name__ == "__main__":
    main(sys.argv[1])
