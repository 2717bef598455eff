"""Ends with 0 when the service predicts what it should: ``python smoke.py http://mlflow-live http://mlflow-live:9100``.

The requests lie beside this file. Nothing but the standard library, so that the service's own image can run it.
"""

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
PATIENCE_S = 60


def call(url: str, request: str = "") -> tuple[int, str]:
    """Status and text of the answer; ``request`` names a file to post. Raises OSError when there is no answer."""
    body = (HERE / request).read_bytes() if request else None
    asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with OPENER.open(asked, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as err:
        return err.code, err.read().decode(errors="replace")


def wait_until_ready(url: str, patience_s: float) -> None:
    """Raises SystemExit when /readyz does not say yes in time."""
    end = time.monotonic() + patience_s
    while True:
        try:
            status, text = call(f"{url}/readyz")
        except OSError as err:
            status, text = 0, str(err)
        if status == 200:
            return
        if time.monotonic() > end:
            sys.exit(f"smoke: {url}/readyz: {status or ''} {text}")
        time.sleep(1)


def check(what: str, url: str, request: str, status: int, expected: list[str]) -> None:
    """Raises SystemExit unless the answer has this status and contains every one of ``expected``."""
    got, text = call(url, request)
    missing = [words for words in expected if words not in text]
    if got != status or missing:
        sys.exit(f"smoke: {what}: {url} answers {got} {text[:500]}; expected {status} {' '.join(missing)}")
    print(f"smoke: {what}: ok")


def main(url: str, metrics: str, patience_s: float = PATIENCE_S) -> None:
    wait_until_ready(url, patience_s)
    check("what is live", f"{url}/model/info", "", 200, ['"version":', '"digest":'])
    golden = [line for line in (HERE / "golden.expected").read_text(encoding="utf-8").splitlines() if line]
    check("a known prediction", f"{url}/predict", "golden.request.json", 200, golden)
    check("a bad request", f"{url}/predict", "bad.request.json", 400, ['"error"'])
    check("metrics", f"{metrics}/metrics", "", 200, ["ml_model_info{"])


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except OSError as err:
        sys.exit(f"smoke: {err}")
