"""wrk: load over kept-alive connections, every answer looked at."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "RESULT "
TIMEOUT_S = 30

# Every answer must hold one of the fragments, which were taken from answers that are known to be right.
SCRIPT = """
local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end
local accepted = { %(accepted)s }
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = read(%(body)s)

local threads = {}
wrong = 0
function setup(thread) table.insert(threads, thread) end
function response(status, headers, body)
  for _, fragment in ipairs(accepted) do
    if string.find(body, fragment, 1, true) then return end
  end
  wrong = wrong + 1
end
function done(summary, latency)
  local wrongs = 0
  for _, thread in ipairs(threads) do wrongs = wrongs + thread:get("wrong") end
  local errors = summary.errors
  io.write(string.format(
    '%(mark)s{"requests": %%d, "duration_s": %%f, "p50_ms": %%f, "p99_ms": %%f, "max_ms": %%f, ' ..
    '"wrong": %%d, "status": %%d, "socket": %%d, "timeout": %%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency.max / 1e3, wrongs, errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
"""


class Unusable(Exception):
    """wrk is not there, or did not say what it measured."""


@dataclass(frozen=True)
class Measured:
    """What wrk saw in one run. ``fault`` says why the run does not count, if it does not."""

    requests: int
    rate: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    fault: str | None


def check_wrk() -> None:
    """Raises `Unusable` with what to do about it."""
    if shutil.which("wrk") is None:
        raise Unusable("wrk, the load generator, is not installed: apt-get install wrk (or brew install wrk)")
    if shutil.which("taskset") is None:
        raise Unusable("taskset, which pins servers to a core, is not installed: apt-get install util-linux")


def run(
    url: str, body: bytes, accepted: list[bytes], *, connections: int, duration_s: float, cores: str, folder: Path
) -> Measured:
    """Post ``body`` to ``url`` over ``connections`` for ``duration_s``. Raises `Unusable`."""
    script = write_script(folder, body, accepted)
    command = ["taskset", "-c", cores, "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(duration_s))}s"]
    command += ["--timeout", f"{TIMEOUT_S}s", "-s", str(script), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=duration_s + 2 * TIMEOUT_S)
    return parse(done.stdout + done.stderr)


def write_script(folder: Path, body: bytes, accepted: list[bytes]) -> Path:
    """The script and what it reads, as files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "body").write_bytes(body)
    for place, fragment in enumerate(accepted):
        (folder / f"accepted-{place}").write_bytes(fragment)
    reads = ", ".join(f"read({_lua(folder / f'accepted-{place}')})" for place in range(len(accepted)))
    script = folder / "load.lua"
    script.write_text(SCRIPT % {"accepted": reads, "body": _lua(folder / "body"), "mark": MARK})
    return script


def parse(output: str) -> Measured:
    """What the script's last line says. Raises `Unusable` if it is not there."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if not lines:
        raise Unusable(f"wrk measured nothing: {output.strip()[-300:]}")
    said = json.loads(lines[-1].removeprefix(MARK))
    rate = said["requests"] / said["duration_s"] if said["duration_s"] else 0.0
    return Measured(said["requests"], rate, said["p50_ms"], said["p99_ms"], said["max_ms"], _fault(said))


def _fault(said: dict[str, Any]) -> str | None:
    if not said["requests"]:
        return "no answer at all"
    found = {
        "with an error status": said["status"],
        "wrong": said["wrong"] - said["status"],  # an answer with an error status is not the right one either
        "broken connections": said["socket"],
        "too late": said["timeout"],
    }
    faults = [f"{count} {what}" for what, count in found.items() if count > 0]
    return f"{', '.join(faults)} of {said['requests']}" if faults else None


def _lua(path: Path) -> str:
    return json.dumps(str(path))
