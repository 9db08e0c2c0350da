"""When a failed request is sent again, and how long a server that is down is waited for."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import StoppedBySignal
from ..signals import StopRequest
from .exchange import Fault

if TYPE_CHECKING:
    import tenacity

ATTEMPTS = 5
BACKOFF, LONGEST_WAIT = 0.5, 15.0
"""Seconds before the second attempt, and the longest wait in seconds.

Each wait is twice the one before, less a random share of up to a half. Without that share, all requests under way
would be sent again at the same moment.
"""


class Presence:
    """The state of the server, shared by all requests under way."""

    def __init__(self) -> None:
        self.answered = self.waiting = False
        self.down_since: float | None = None
        """Time of the first failure since the last answer, in monotonic seconds; None without a failure."""
        self.away = False
        """True if the server was unreachable since the last check. A different server may have come back."""
        self.check: Callable[[], None] | None = None

    def succeeds(self) -> bool:
        """Record an answer, and return True if the server was away before it."""
        self.answered, self.waiting, self.down_since = True, False, None
        was_away, self.away = self.away, False
        return was_away

    def fails(self, fault: Fault) -> None:
        """Record a failure."""
        self.down_since = self.down_since or time.monotonic()
        self.away |= fault.unreachable

    def down_for(self, began: float) -> float:
        """Return the seconds since the first failure, or since ``began`` (monotonic seconds) if that is earlier."""
        return time.monotonic() - min(began, self.down_since or began)


@dataclass(frozen=True)
class Retries:
    """The rules for sending a request to ``url`` again."""

    url: str
    patience: float
    """Seconds to wait for a server that has answered before."""
    presence: Presence = field(default_factory=Presence)

    def retrying(self) -> tenacity.Retrying:
        """Return a caller that repeats a function while it raises ``Fault``, and raises the last one in the end."""
        from tenacity import Retrying, retry_if_exception_type, wait_exponential

        full = wait_exponential(BACKOFF, LONGEST_WAIT)
        return Retrying(
            retry=retry_if_exception_type(Fault),
            after=lambda state: self.presence.fails(_fault(state)),
            wait=lambda state: full(state) * random.uniform(0.5, 1.0),  # noqa: S311
            stop=self._gives_up,
            before_sleep=self._before_sleep,
            reraise=True,
        )

    def _gives_up(self, state: tenacity.RetryCallState) -> bool:
        """Return True after the usual attempts, unless the server is worth waiting for.

        It is if it has answered before, seems to be down now, and has been down for less than ``patience``.
        """
        waits = _fault(state).gone and self.presence.answered
        patient = waits and self.presence.down_for(state.start_time) < self.patience
        return state.attempt_number >= ATTEMPTS and not patient

    def _before_sleep(self, state: tenacity.RetryCallState) -> None:
        """After the usual attempts, print once for all requests that the run is waiting.

        Raises:
            StoppedBySignal: the run was asked to stop. Elsewhere it stops only between two updates.
        """
        if state.attempt_number < ATTEMPTS:
            return
        if StopRequest.asked:
            raise StoppedBySignal(StopRequest.asked)
        self.presence.away = True
        if not self.presence.waiting:
            self.presence.waiting = True
            waiting = f"waiting at most {self.patience:g} s"
            print(f"note: {self.url} does not answer ({_fault(state)}); {waiting}", file=sys.stderr)  # noqa: T201


def _fault(state: tenacity.RetryCallState) -> Fault:
    """Return the failure of the last attempt."""
    fault = state.outcome.exception() if state.outcome else None
    assert isinstance(fault, Fault)
    return fault
