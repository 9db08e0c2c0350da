"""Limits for a chat template, which is a program that comes with a model."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from ..errors import ScriptError

SECONDS = 10.0
"""Processor time of one conversation. A real template takes milliseconds."""
BYTES = 1 << 30
"""Memory that one conversation may add."""
CHARACTERS = 1_000_000
"""Characters that a template may add to a conversation, besides ten for each character of the conversation."""

_STATISTICS = Path("/proc/self/statm")


class TemplateOverLimit(ScriptError):  # noqa: N818 -- named for what it is
    """A chat template took too much time or memory, or wrote too much. It stops the run and is not a bad row."""

    exit_code = 2


class _TimeIsUp(BaseException):
    """Nothing inside Jinja catches it, unlike an ``Exception``."""


@contextmanager
def template_limits(template: str) -> Iterator[None]:
    """Render one conversation in the block, within the limits.

    The limit on time holds in the main thread, and not on Windows; the limit on memory holds on Linux.

    Args:
        template: its name in messages.

    Raises:
        TemplateOverLimit: a limit was reached.
    """
    try:
        with _limited_time(), _limited_memory():
            yield
    except _TimeIsUp:
        reason = f"takes more than {SECONDS:g} s"
    except MemoryError:
        reason = f"takes more than {BYTES >> 30} GiB of memory"
    else:
        return
    raise TemplateOverLimit(over_limit(template, reason))


def check_length(template: str, text: str, written: int) -> None:
    """Check the length of a rendered conversation, of which ``written`` characters are the contents of its turns.

    Raises:
        TemplateOverLimit: the text is too long.
    """
    if len(text) > CHARACTERS + 10 * written:
        raise TemplateOverLimit(over_limit(template, f"writes {len(text):,} characters"))


def over_limit(template: str, reason: str) -> str:
    """Return the message for a template that goes over a limit."""
    return f"{template} {reason} for one conversation, more than any real template; use another model, or correct it"


@contextmanager
def _limited_time() -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _TimeIsUp

    handler = signal.signal(signal.SIGPROF, end)
    # It repeats, because an exception in a finalizer would be lost.
    timer = signal.setitimer(signal.ITIMER_PROF, SECONDS, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, *timer)
        signal.signal(signal.SIGPROF, handler)


@contextmanager
def _limited_memory() -> Iterator[None]:
    """Lower the limit of the address space to what is in use and ``BYTES`` more."""
    try:
        import resource

        in_use = int(_STATISTICS.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (ImportError, OSError):
        yield
        return
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = min(each for each in (in_use + BYTES, before, most) if each != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))
