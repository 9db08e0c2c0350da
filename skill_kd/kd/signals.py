"""Signals that stop a process: raised as an exception, or remembered until the training loop can stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar


class Stopped(BaseException):
    """SIGTERM or SIGHUP arrived. It unwinds the stack as KeyboardInterrupt does, so temporary files are removed."""

    exit_code = 128 + signal.SIGTERM
    """For both signals, as ``skill-kd run`` passes SIGHUP on as SIGTERM."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise ``Stopped`` in the block when SIGTERM or SIGHUP arrives. A second one ends the process at once.

    A signal that is ignored, as by nohup, stays ignored. Only the main thread can do this; elsewhere nothing changes.
    """

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in changed:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(signal.Signals(number).name)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    main = threading.current_thread() is threading.main_thread()
    changed = [number for number in numbers if main and signal.getsignal(number) is signal.SIG_DFL]
    for number in changed:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in changed:
            if signal.getsignal(number) is stop:
                signal.signal(number, signal.SIG_DFL)


class StopRequest:
    """Remembers SIGINT and SIGTERM, so that the loop stops between two updates. A second signal stops at once."""

    asked: ClassVar[int] = 0
    """Number of the signal that reached this process, 0 if none. Code that waits inside an update reads it."""

    def __init__(self) -> None:
        self.number = StopRequest.asked = 0
        self.agreed = 0
        """Number of the signal that had reached any process at the last ``agree``, 0 if none."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._remember)

    def agree(self) -> None:
        """Agree on a signal over all processes, which call this together: it reaches them at different moments."""
        from accelerate.utils import gather_object

        self.agreed = max(gather_object([self.number]))

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.number:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.number = StopRequest.asked = number
        print("stopping after a checkpoint; a second signal stops at once", file=sys.stderr)  # noqa: T201
