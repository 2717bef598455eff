"""The prepare child, as the agent sees it: started, bounded in time, and asked what came of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving import bundle as bundles
from serving import notes
from serving.bundle import Bundle, BundleUnreadable
from serving.errors import PrepareFailed, RegistryUnreachable, VersionRefused
from serving.prepare import Job
from serving.registry import Version

LAST_WORDS_BYTES = 2000  # of a crashed child's output that are kept


def prepare_in_child(
    version: Version, tracking_uri: str, into: Path, timeout_s: float, stop: threading.Event | None = None
) -> Bundle:
    """Run `prepare` in a child process and return its bundle, read back from ``into``.

    Raises `VersionRefused` (also when the child crashes or is not done after ``timeout_s``), `RegistryUnreachable` or
    `PrepareFailed`. The child and all that it started are gone when this returns.
    """
    try:
        into.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".prepare-", dir=into.parent))
        try:
            notes.write(work / "job.json", asdict(Job(version, tracking_uri, str(work), str(into))))
            code, last_words = _run(work, timeout_s, stop)
            return _result(version, work, into, code, last_words)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as err:
        raise PrepareFailed(f"cannot prepare {version.name} {version.version}: {err.strerror or err}") from err


def _run(work: Path, timeout_s: float, stop: threading.Event | None) -> tuple[int, str]:
    """The child's exit code and last words.

    Raises `VersionRefused` after ``timeout_s`` and `PrepareFailed` when told to stop.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "serving.prepare", str(work / "job.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    output = _Output(child.stdout)
    try:
        deadline = time.monotonic() + timeout_s
        while child.poll() is None:
            if time.monotonic() > deadline:
                raise VersionRefused(f"it was not ready after {timeout_s:g} s", reason="prepare_timeout")
            if stop is not None and stop.is_set():
                raise PrepareFailed("the service is stopping")
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if child.stdin:
            child.stdin.close()
    return child.returncode, output.last_words()


class _Output:
    """What a child says, of which only the end is kept: it may say more than the memory or the disk holds."""

    def __init__(self, pipe: Any) -> None:
        self._kept = b""
        self._thread = threading.Thread(target=self._read, args=(pipe,), name="prepare-output", daemon=True)
        self._thread.start()

    def _read(self, pipe: Any) -> None:
        with pipe:
            while piece := pipe.read1(1 << 16):
                self._kept = (self._kept + piece)[-LAST_WORDS_BYTES:]

    def last_words(self) -> str:
        """The end of it, once the child has ended."""
        self._thread.join(timeout=1.0)  # something that it started may still hold the pipe
        return self._kept.decode(errors="replace").strip()


def _result(version: Version, work: Path, into: Path, code: int, words: str) -> Bundle:
    if code == os.EX_IOERR:
        raise PrepareFailed(f"what came of {version.name} {version.version} cannot be written: {words[-300:]}")
    result = notes.read(work / "result.json")
    if result is None:
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last_line = words.splitlines()[-1][:300] if words else "it said nothing"
        raise VersionRefused(f"the process that loaded it {ended}: {last_line}", reason="load_crashed")
    if "refused" in result:
        raise VersionRefused(result["refused"], reason=result["reason"])
    if "unreachable" in result:
        raise RegistryUnreachable(result["unreachable"])
    if "failed" in result:
        raise PrepareFailed(f"cannot prepare {version.name} {version.version}: {result['failed']}")
    try:
        return bundles.read(into)
    except BundleUnreadable as err:
        raise VersionRefused(f"the process that loaded it left no bundle: {err}", reason="load_crashed") from err
