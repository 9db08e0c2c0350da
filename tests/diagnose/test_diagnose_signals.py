"""The workers of ``diagnose --jobs`` end with it, on every signal that ends it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")

ROWS = (json.dumps({"time": "2026-01-01T10:00:00Z", "prompt": "p", "output": "word " * 200}) + "\n").encode() * 1000
READ = [sys.executable, "-m", "skill_kd", "diagnose", "-", "--jobs", "2"]
MEASURE = """
from types import SimpleNamespace
from skill_kd.diagnose.changes.measures import measure_all
from skill_kd.diagnose.changes.windows import Sampled
row = Sampled("word " * 200, None, 1, 0, "stop", ("m", None, None, 0), 1000)
measure_all([(day, SimpleNamespace(rows=2000, sample=[row] * 2000)) for day in range(1000)], 2)
"""
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 143, signal.SIGKILL: -signal.SIGKILL}


@pytest.mark.parametrize(
    ("send", "number"),
    [*((os.kill, number) for number in CODES), (os.killpg, signal.SIGINT)],
    ids=["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "Ctrl-C"],
)
def test_workers_that_read_end_with_diagnose_on_every_signal(send: Callable[[int, int], None], number: int) -> None:
    """The log never ends, so its queue is full. A terminal's Ctrl-C reaches the workers too."""
    with started(READ) as process:
        threading.Thread(target=endless, args=(process,), daemon=True).start()
        wait_for_workers(process)
        send(process.pid, number)
        said = words_of(process)
    assert process.returncode == CODES[signal.Signals(number)]
    if number != signal.SIGKILL:
        assert said.strip() in {"error: interrupted", f"error: stopped by {signal.Signals(number).name}"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_workers_that_measure_end_with_their_parent(number: int) -> None:
    with started([sys.executable, "-c", MEASURE]) as process:
        wait_for_workers(process)
        process.send_signal(number)
        words_of(process)
    assert process.returncode != 0


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def endless(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):
        while process.poll() is None:
            process.stdin.write(ROWS)


def wait_for_workers(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while sum("spawn_main" in " ".join(each.cmdline()) for each in psutil.Process(process.pid).children()) < 2:
        assert time.monotonic() < deadline, "no workers"
        time.sleep(0.02)


def words_of(process: subprocess.Popen[bytes]) -> str:
    """Return what was written to stderr, once no process holds it any more."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    found, deadline = b"", time.monotonic() + 20
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(process.stderr.fileno(), 65536)
            found += chunk
            if not chunk:
                process.wait(20)
                return found.decode()
        time.sleep(0.02)
    raise AssertionError("a worker outlived its parent")
