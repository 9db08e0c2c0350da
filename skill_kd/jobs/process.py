"""Run the trainer as a child process: show and log its output, and pass signals on so that it stops cleanly."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from skill_kd.errors import MissingRequirementError
from skill_kd.files import open_unlinked, parse_json
from skill_kd.kd.errors import OUT_OF_MEMORY
from skill_kd.kd.terminal import VisibleStream, visible

Event = dict[str, object]
"""One line of ``metrics.jsonl``."""

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_POLL_SECONDS = 0.1
_DRAIN_SECONDS = 5.0
"""Longest wait for output after the trainer ended. A process it left behind may keep the pipe open forever."""
_DRAIN_AFTER_SIGNAL_SECONDS = 120.0
"""The same after a signal: a launcher may die at once while its workers still write a checkpoint."""
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET)$|PASSWORD", re.IGNORECASE)
_MOVES = re.compile(rb"\A(?:\x1b\[A)+")
_SHORTEST_SECRET = 8
"""Minimum length of a secret to redact; a shorter value may occur in a log by chance."""


@dataclass(frozen=True)
class Ending:
    """The end of a trainer process."""

    returncode: int
    """As in ``subprocess``: negative for a signal."""
    stopped_by: int | None
    """The signal that was passed on, SIGINT or SIGTERM; None if there was none."""
    last_words: str
    """Its last ``error: `` line without the prefix, else its last line, else an empty string."""
    printed: bool
    """True if ``last_words`` come from an ``error: `` line, which was already printed on stderr."""

    @property
    def out_of_memory(self) -> bool:
        """True if the trainer reported that it ran out of memory. Its exit code is that of any failed training."""
        return self.printed and self.last_words.startswith(OUT_OF_MEMORY)


def supervise(
    command: Sequence[str],
    *,
    log: Path,
    metrics: Path,
    descriptor: int,
    on_start: Callable[[int], None],
    on_event: Callable[[Event], None] | None = None,
) -> Ending:
    """Run ``command`` to its end. Copy its output to stderr at once and, without redrawn lines, to ``log``.

    SIGINT and SIGTERM are passed on once; a second SIGINT kills. The child inherits ``descriptor``. ``on_start``
    receives the process id, and ``on_event`` each line that the trainer adds to ``metrics``.

    Raises:
        MissingRequirementError: the command cannot be started.
    """
    with open_unlinked(log, "ab", buffering=0) as file, _Signals() as signals:
        transcript, events = Transcript(file), _Events(metrics, on_event)
        process = _start(command, descriptor)
        try:
            signals.attach(process)
            on_start(process.pid)
            pump = threading.Thread(target=_pump, args=(process, transcript), daemon=True)
            pump.start()
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                events.poll()
            pump.join(_DRAIN_AFTER_SIGNAL_SECONDS if signals.received else _DRAIN_SECONDS)
            events.poll()
        finally:
            if process.poll() is None:
                _kill(process)
                process.wait()
        transcript.close()
    return Ending(process.returncode, signals.received, transcript.last_words, bool(transcript.last_error))


def _start(command: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    """Start the command in its own process group; else it would receive a terminal's Ctrl-C twice."""
    windows = sys.platform == "win32"
    try:
        return subprocess.Popen(  # noqa: S603 -- the backend's own command, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            pass_fds=() if windows else (descriptor,),
            process_group=None if windows else 0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
    except OSError as error:
        raise MissingRequirementError(f"cannot start '{command[0]}': {error.strerror}") from error


def _environment() -> dict[str, str]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("TQDM_MININTERVAL", "1")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _pump(process: subprocess.Popen[bytes], transcript: Transcript) -> None:
    assert process.stdout is not None
    screen = VisibleStream(sys.stderr)
    # It keeps the bytes of a character together, and CR with LF, if a chunk ends between them.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")("backslashreplace"), translate=False)
    with process.stdout as source:
        while chunk := os.read(source.fileno(), 65536):
            # A closed terminal must not stop a run or leave its pipe full.
            with contextlib.suppress(OSError, ValueError):
                screen.write_output(decoder.decode(chunk))
                screen.flush()
            transcript.feed(chunk)
        with contextlib.suppress(OSError, ValueError):
            screen.write_output(decoder.decode(b"", final=True))


class Transcript:
    """Log of the output, with control characters as escapes. Of a redrawn line it keeps only the last state.

    Secrets from the environment are redacted, because a library may print a header. ``file`` is unbuffered, so closing
    it cannot fail and a crash of this process loses nothing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._secrets = _secrets()
        self._pending = b""
        self.last_error = ""
        self._last_line = ""

    @property
    def last_words(self) -> str:
        """The last ``error: `` line without the prefix, else the last non-empty line."""
        return self.last_error or self._last_line

    def feed(self, chunk: bytes) -> None:
        """Add a chunk of output, cut at any byte."""
        *lines, rest = (self._pending + chunk).split(b"\n")
        self._pending = _last_state(rest)
        for line in lines:
            self._keep(line)

    def close(self) -> None:
        """Write the last line if it has no newline."""
        if self._pending:
            self._keep(self._pending)
            self._pending = b""

    def _keep(self, line: bytes) -> None:
        line = _last_state(line).strip(b"\r")
        for value, name in self._secrets:
            line = line.replace(value, name)
        text = visible(line.decode(errors="backslashreplace"))
        self._last_line = text.strip() or self._last_line
        # Launchers of several processes put the rank in brackets before each line.
        if match := re.match(r"(?:\[[^\]]*\]:?\s*)?error: (.*\S)", text):
            self.last_error = match[1]
        # The trainer reports a full disk. The last words above are kept even then.
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text.encode() + b"\n")


def _last_state(line: bytes) -> bytes:
    """Return the line without what was overwritten, and without moves from other bars.

    Only a line that starts with a carriage return is redrawn. A trailing one overwrites nothing yet.
    """
    line = _MOVES.sub(b"", line)
    if not line.startswith(b"\r"):
        return line
    shown = line.rstrip(b"\r")
    return b"\r" + _MOVES.sub(b"", shown[shown.rfind(b"\r") + 1 :]) + line[len(shown) :][:1]


def _secrets() -> list[tuple[bytes, bytes]]:
    """Return pairs of secret value and replacement, found by the names of environment variables.

    Each line of a value counts as a secret. The longest come first, because one may contain another.
    """
    found = {
        os.fsencode(line): f"<{name}>".encode()
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name)
        for line in value.splitlines()
        if len(line) >= _SHORTEST_SECRET
    }
    return sorted(found.items(), key=lambda secret: len(secret[0]), reverse=True)


class _Events:
    """Reader of the lines that are added to a JSON Lines file."""

    def __init__(self, path: Path, on_event: Callable[[Event], None] | None) -> None:
        self._path, self._on_event = path, on_event
        self._offset = path.stat().st_size if path.exists() else 0

    def poll(self) -> None:
        if self._on_event is None or not self._path.exists():
            return
        with open_unlinked(self._path, "rb") as file:
            # A resumed trainer truncates the lines after its checkpoint.
            self._offset = min(self._offset, file.seek(0, os.SEEK_END))
            file.seek(self._offset)
            whole, _, _ = file.read().rpartition(b"\n")
        if whole:
            self._offset += len(whole) + 1
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                if isinstance(event := parse_json(line), dict):
                    self._on_event(event)


class _Signals:
    """Handler that passes the first signal on to the trainer's process group. A SIGINT after that kills."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in _SIGNALS if hasattr(signal, name)):
                # An ignored signal was ignored on purpose, for example by nohup.
                if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def attach(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        if self.received is not None:
            _send(process, self.received)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            if self._process is not None:
                _send(self._process, self.received)
        elif number == signal.SIGINT and self._process is not None:
            _kill(self._process)


def _send(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(OSError):
        if sys.platform == "win32":
            process.send_signal(signal.CTRL_BREAK_EVENT)
        else:
            os.killpg(process.pid, number)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if sys.platform == "win32":
        process.kill()
    else:
        _send(process, signal.SIGKILL)
