"""Limits for a chat template, which is a program that comes with a model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import ScriptError
from ..limits import TimeIsUp, limited_memory, limited_time

SECONDS = 10.0
"""Processor time of one conversation. A real template takes milliseconds."""
BYTES = 1 << 30
"""Memory that one conversation may add."""
ALL_SECONDS, EACH_SECONDS = 60.0, 0.1
"""Limit on the processor time of all conversations of this process: the first plus the second for each of them."""
CHARACTERS = 1_000_000
"""Characters that a template may add to a conversation, plus ten for each character of the conversation."""


@dataclass
class Total:
    """Processor time of all chat templates of this process."""

    seconds: float = 0.0
    conversations: int = 0

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Add the time of the block."""
        start = time.thread_time()
        try:
            yield
        finally:
            self.seconds += time.thread_time() - start
            self.conversations += 1

    @property
    def is_over(self) -> bool:
        """Return True if it is more than the limit."""
        return self.seconds > ALL_SECONDS + EACH_SECONDS * self.conversations


total = Total()


class TemplateOverLimit(ScriptError):  # noqa: N818 -- named for what it is
    """A chat template took too much time or memory, or wrote too much. It stops the run and is not a bad row."""

    exit_code = 2


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
        with total.adding(), limited_time(SECONDS), limited_memory(BYTES):
            yield
    except TimeIsUp:
        reason = f"takes more than {SECONDS:g} s"
    except MemoryError:
        reason = f"takes more than {BYTES >> 30} GiB of memory"
    else:
        if not total.is_over:
            return
        raise TemplateOverLimit(
            f"the chat templates have taken {total.seconds:.0f} s for {total.conversations:,} conversations, and "
            f"real ones take milliseconds for each; the last was {template}; use another model, or correct it"
        )
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
