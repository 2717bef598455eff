"""The alias goes to and fro every second: ``python -m benchmarks.flip REGISTRY MODEL PORT``.

Says ``ready``, begins at a line on standard input, ends with it, then prints what every reload answered as JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.client import HTTPException

from benchmarks.models import ALIAS, VERSIONS
from benchmarks.processes import post

PERIOD_S = 1.0


def main() -> None:
    from mlflow import MlflowClient

    uri, name, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.get_model_version_by_alias(name, ALIAS)  # connected before the load begins
    print("ready", flush=True)
    sys.stdin.readline()
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    flips = []
    while not ended.wait(max(0.0, PERIOD_S - (flips[-1]["took_s"] if flips else 0.0))):
        flips.append(_flip(client, name, port, VERSIONS[(len(flips) + 1) % 2]))
    print(json.dumps(flips))


def _flip(client: object, name: str, port: int, version: str) -> dict[str, object]:
    started = time.perf_counter()
    client.set_registered_model_alias(name, ALIAS, version)
    try:
        status, body = post(port, "/model/reload", b"")
        live = json.loads(body).get("model", {}).get("version")
    except (OSError, HTTPException) as err:
        status, live = 0, str(err)
    return {"version": version, "live": live, "status": status, "took_s": time.perf_counter() - started}


if __name__ == "__main__":
    main()
