"""Limits on the time and the memory of code that reads what somebody else wrote."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_STATISTICS = Path("/proc/self/statm")


class TimeIsUp(BaseException):
    """The block took too long. It is not an ``Exception``, so libraries do not catch it."""


@contextmanager
def limited_time(seconds: float) -> Iterator[None]:
    """Limit the processor time of the block. The limit holds in the main thread, and not on Windows.

    Python code and regular expressions of ``re`` are interrupted. A library in another language is not.

    Raises:
        TimeIsUp: the block took longer.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise TimeIsUp

    handler = signal.signal(signal.SIGPROF, end)
    # It repeats, because an exception in a finalizer would be lost.
    timer = signal.setitimer(signal.ITIMER_PROF, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, *timer)
        signal.signal(signal.SIGPROF, handler)


@contextmanager
def limited_memory(most: int) -> Iterator[None]:
    """Limit the memory that the block adds, in bytes. The limit holds on Linux.

    An allocation beyond it fails, in Python with a ``MemoryError``.
    """
    try:
        import resource

        in_use = int(_STATISTICS.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        yield
        return
    before, highest = resource.getrlimit(resource.RLIMIT_AS)
    limit = min(each for each in (in_use + most, before, highest) if each != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, highest))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, highest))


def size_of(value: object) -> int:
    """Return roughly how many characters of memory a parsed value takes, at any depth."""
    size, left = 0, [value]
    while left:
        each = left.pop()
        size += len(each) if isinstance(each, str | bytes) else 64
        if isinstance(each, dict):
            left += [*each, *each.values()]
        elif isinstance(each, list):
            left += each
    return size
