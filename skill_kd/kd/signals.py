"""SIGINT and SIGTERM, remembered until the loop can stop."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import ClassVar


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
