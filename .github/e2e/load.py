"""Calls a service until a file appears: ``python load.py HOST[:PORT] REQUEST STOP``; 1 if a single request failed.

Half of the callers keep their connection, half make a new one for every request: the first see how a pod drains, the
others how soon a Service stops naming it. Nothing but the standard library, so that the service's image can run it.
"""

import collections
import http.client
import json
import sys
import threading
import time
from pathlib import Path

CALLERS = 4
PAUSE_S = 0.05
TIMEOUT_S = 10.0
MOST_SHOWN = 20


def call(connection: http.client.HTTPConnection, body: bytes) -> str:
    """The status of one answer, or what broke instead of it."""
    try:
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as err:
        connection.close()
        return repr(err)
    return "200" if answer.status == 200 else f"{answer.status} {text[:200]!r}"


def drive(host: str, body: bytes, keep: bool, stop: threading.Event, seen: list[tuple[float, str]]) -> None:
    """One caller: adds the time and outcome of every request to ``seen`` until ``stop``."""
    connection = http.client.HTTPConnection(host, timeout=TIMEOUT_S)
    while not stop.wait(PAUSE_S):
        seen.append((time.time(), call(connection, body)))
        if not keep:
            connection.close()


def main(host: str, request: str, stop_file: str) -> int:
    body, stop, seen = Path(request).read_bytes(), threading.Event(), []
    callers = [threading.Thread(target=drive, args=(host, body, n % 2 == 0, stop, seen)) for n in range(CALLERS)]
    for caller in callers:
        caller.start()
    while not Path(stop_file).exists():
        time.sleep(0.2)
    stop.set()
    for caller in callers:
        caller.join()
    failed = [(when, what) for when, what in seen if what != "200"]
    for when, what in failed[:MOST_SHOWN]:
        print(time.strftime("%H:%M:%S", time.gmtime(when)), what)
    print(json.dumps({"requests": len(seen), "failed": len(failed), "by": collections.Counter(w for _, w in failed)}))
    return 1 if failed or not seen else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
