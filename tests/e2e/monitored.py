"""A real Prometheus beside a service: scrapes and evaluates the rules every second."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from harness import ROOT, call, free_port, wait_for

JOB = "mlflow-live"

needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


class Monitored:
    """Prometheus with ml_rules.yml, its data under ``folder``; it scrapes itself too, as the job ``prometheus``."""

    def __init__(self, folder: Path, ports: Sequence[int]) -> None:
        """``ports`` of the loopback are scraped as the job `JOB`."""
        self.port = free_port()
        self._folder = folder
        self._ports = ports
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Monitored:
        """Run until every target was scraped once."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write()
        command = ["prometheus", f"--config.file={self._folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"]
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        wait_for(self._all_up, 30, "Prometheus has not scraped every target")
        return self

    def query(self, promql: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now: labels and value of each series; a scalar is a series without labels."""
        answer = call(self.port, f"/api/v1/query?{urllib.parse.urlencode({'query': promql})}")
        content = json.loads(answer.text)
        assert content["status"] == "success", f"{promql}: {content}"
        result = content["data"]["result"]
        if content["data"]["resultType"] == "scalar":
            return [({}, float(result[1]))]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def stop(self) -> None:
        """End it; its data stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def _write(self) -> None:
        rules = (ROOT / "ml_rules.yml").read_text(encoding="utf-8")
        # Groups with an interval of their own would keep a test waiting.
        (self._folder / "ml_rules.yml").write_text(re.sub(r"^    interval: .*\n", "", rules, flags=re.MULTILINE))
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["ml_rules.yml"],
            "scrape_configs": [_job(JOB, self._ports), _job("prometheus", [self.port])],
        }
        (self._folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def _all_up(self) -> bool:
        if call(self.port, "/-/ready").status != 200:
            return False
        up = [value for _, value in self.query("up")]
        return up == [1.0] * (len(self._ports) + 1)


def _job(name: str, ports: Sequence[int]) -> dict[str, object]:
    return {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
