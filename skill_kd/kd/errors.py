"""How a trainer script ends: one plain line and an exit code that says whose turn it is."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import ClassVar

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""A disk or a quota is full, a file too large, a folder read-only."""
GO_ON = "mend that and go on with --resume"
OUT_OF_MEMORY = "out of memory: "
"""Begins the ``error:`` line of a script that lacks memory; the process that started it reads this word for word."""
LESS_MEMORY = (
    "raise training.accumulate, set training.gradient_checkpointing: true, or lower rollout.max_new_tokens; "
    "`skill-kd plan` tells what takes how much"
)


class ScriptError(Exception):
    """Base of what a trainer script stops for; ``exit_code`` is its exit status."""

    exit_code = 1


class BadInput(ScriptError):  # noqa: N818 -- named for what it is
    """The data or the configuration cannot be used."""

    exit_code = 2


class Missing(ScriptError):  # noqa: N818 -- named for what it is
    """A model, a package, a server or the network is not there."""

    exit_code = 5


class TrainingStopped(ScriptError):  # noqa: N818 -- named for what it is
    """Training cannot go on, for example after a loss that is not a number."""

    exit_code = 6


class StoppedBySignal(ScriptError):  # noqa: N818 -- named for what it is
    """Asked to stop; the checkpoint is written."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after a checkpoint; go on with --resume")
        self.exit_code = 128 + number


class StopRequest:
    """Remembers SIGINT and SIGTERM, so that the loop stops between two updates; the second one stops at once."""

    asked: ClassVar[int] = 0
    """The signal that came to this process, for what waits in the middle of an update."""

    def __init__(self) -> None:
        self.number = StopRequest.asked = 0
        self.agreed = 0
        """The signal that reached any process when ``agree`` was last called."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def agree(self) -> None:
        """Ask all processes, which call this together: a signal reaches them at different moments."""
        from accelerate.utils import gather_object

        self.agreed = max(gather_object([self.number]))

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = StopRequest.asked = number
        print("stopping after a checkpoint; once more stops at once", file=sys.stderr)  # noqa: T201


@contextmanager
def writing(what: str, partial: Path) -> Iterator[None]:
    """Remove the folder ``partial`` if it cannot be finished, and say why in one line.

    Raises:
        TrainingStopped: whatever it was that failed.
    """
    try:
        yield
    except Exception as error:
        # torch tells of a full disk in riddles; look before the room is given back.
        standing = next(folder for folder in partial.parents if folder.exists())
        full = shutil.disk_usage(standing).free < 1 << 20
        shutil.rmtree(partial, ignore_errors=True)
        reason = "no space left on the disk" if full else " ".join(str(error).split())[:300]
        raise TrainingStopped(f"cannot write {what}: {reason}; {GO_ON}") from error


class _End:
    code: ClassVar[int | None] = None
    """The exit code, once it is certain."""


@contextmanager
def reporting() -> Iterator[None]:
    """End the process with one ``error:`` line and the right exit code; unexpected errors keep their traceback."""
    _quiet_libraries()
    # Handlers run last in, first out: whatever the run registers, its trackers for example, still has its turn before.
    atexit.register(_leave)
    try:
        yield
        _End.code = 0
    except ScriptError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted before the first checkpoint", 130)
    except Exception as error:
        if _is_out_of_memory(error):
            _end(f"{OUT_OF_MEMORY}{_words(error)}; {LESS_MEMORY}", 6)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            _end(f"cannot write {error.filename or 'into the run folder'}: {error.strerror}; {GO_ON}", 6)
        traceback.print_exc()
        _end(f"{type(error).__name__}: {_words(error)}", 1)


def _is_out_of_memory(error: Exception) -> bool:
    """On a CPU torch says it in a plain RuntimeError."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or "no more is known"


def _quiet_libraries() -> None:
    """Leave the terminal to this run's own bar and notes."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # Says at every checkpoint that tied weights are saved once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def _end(reason: str, code: int) -> None:
    print(f"error: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    _End.code = code
    sys.exit(code)


def _leave() -> None:
    """End one process of several before its interpreter is taken down.

    A thread of gloo lets go of a tensor some time after the exchange, even after the group is destroyed. If it finds no
    interpreter then, it aborts the process, and the launcher takes a run that ended well for one that failed.
    """
    if _End.code is not None and "RANK" in os.environ:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_End.code)
