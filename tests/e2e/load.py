"""Load on a running service: kept-alive connections in a process of their own, every answer on record.

``python load.py PORT CONNECTIONS PAUSE_S BODY`` writes one line for each request to standard output:
``start_s end_s status version``; status 0 is a broken connection. It ends with a line on standard input.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

LONGEST_S = 180.0
IRIS_ROW = '{"features":[5.1,3.5,1.4,0.2]}'


@dataclass(frozen=True)
class Record:
    """One request: times are of the monotonic clock that all processes share."""

    start_s: float
    end_s: float
    status: int
    version: str

    @property
    def latency_s(self) -> float:
        return self.end_s - self.start_s


class Load:
    """Load that runs until `stop`."""

    def __init__(self, port: int, connections: int, pause_s: float = 0.0, body: str = IRIS_ROW) -> None:
        """``pause_s``: what each connection waits between two requests."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(port), str(connections), str(pause_s), body],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> list[Record]:
        """End the load after the requests under way; what it saw."""
        output, _ = self._process.communicate("\n", timeout=60)
        fields = (line.split(" ") for line in output.splitlines())
        return [Record(float(start), float(end), int(status), version) for start, end, status, version in fields]


def percentile(values: list[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _drive(port: int, body: str, pause_s: float, stop: threading.Event, records: list[str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    while not stop.wait(pause_s):
        start = time.monotonic()
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            status, version = answer.status, answer.headers.get("X-Model-Version", "-")
        except (OSError, http.client.HTTPException):
            connection.close()
            status, version = 0, "-"
            time.sleep(0.01)
        records.append(f"{start} {time.monotonic()} {status} {version}")


def main() -> None:
    port, connections, pause_s, body = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    stop = threading.Event()
    longest = threading.Timer(LONGEST_S, stop.set)
    longest.daemon = True
    longest.start()
    records: list[list[str]] = [[] for _ in range(connections)]
    threads = [threading.Thread(target=_drive, args=(port, body, pause_s, stop, own), daemon=True) for own in records]
    for thread in threads:
        thread.start()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    for thread in threads:
        thread.join()
    print("\n".join(line for own in records for line in own))


if __name__ == "__main__":
    main()
