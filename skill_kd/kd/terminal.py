"""Safe output: characters that control a terminal, or hide in text, appear as escapes.

It imports only the standard library and runs on Python 3.8, because ``scripts/kd.py`` loads it too.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_CONTROLS = "\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029"
"""C0 and C1 without tab and newline, and other ends of a line."""
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_UNSEEN = (
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180e\u200b\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
"""Characters without a shape: zero-width spaces, fillers, tags and so on, without joiners and selectors."""
_INVALID = "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
"""Surrogates and non-characters. Neither UTF-8 nor HTML may contain them."""
_JOINERS = "\u200c\u200d"
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
# Persian, Indic scripts and emoji need a joiner or a selector after a character. Elsewhere both only hide.
_HIDDEN = re.compile(
    f"[{_CONTROLS}{_BIDI}{_UNSEEN}{_INVALID}]"
    f"|(?<![^\0-\x7f{_JOINERS}])[{_JOINERS}]"
    f'|(?<![^\0-"$-)+-/:-\x7f{_JOINERS}{_SELECTORS}])[{_SELECTORS}]'  # 0-9, # and * start emoji of keys
)
_UP = "\x1b[A"
_PIECE = re.compile(r"\n+|(?:\x1b\[A)+|\r?[^\r\n\x1b]+|.", re.DOTALL)


def visible(text: object) -> str:
    r"""Return ``str(text)`` with hidden characters as escapes such as ``\x1b``; CR LF becomes a newline.

    Tabs, newlines, and the joiners and variation selectors that scripts and emoji need stay.
    """
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text).replace("\r\n", "\n"))


class VisibleStream:
    """A text stream that writes ``visible`` text to ``raw``. Progress bars still work.

    A carriage return at the start of a write passes, and so does a write that only moves the cursor up, as tqdm makes
    them. Both pass only where lines are empty or started with a carriage return, so they never overwrite a message.
    There is no ``buffer``, through which text could pass as it is.
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw
        self._on_bar = True
        """True if the cursor's line is empty or a progress bar."""
        self._bars_above = 0
        """Number of such lines directly above it."""

    def __getattr__(self, name: str) -> Any:
        if name in ("buffer", "detach"):
            raise AttributeError(name)
        return getattr(self.raw, name)

    def write(self, text: str) -> int:
        """Write ``visible(text)``, and return the length of ``text``."""
        ups = text.count(_UP)
        if text and text == _UP * ups and ups <= self._bars_above:
            self._bars_above -= ups
            self._on_bar = True
            self.raw.write(text)
            return len(text)
        redraws = self._on_bar and text[:1] == "\r" and text[:2] != "\r\n"
        shown = visible(text[redraws:])
        self._follow(shown, redraws)
        self.raw.write("\r" * redraws + shown)
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def write_output(self, text: str) -> None:
        """Write the output of a program, in which a redrawn line may start anywhere."""
        for piece in _PIECE.findall(text):
            self.write(piece)

    def _follow(self, shown: str, redraws: bool) -> None:
        """Keep track of the cursor's line."""
        first, *others = shown.split("\n")
        self._on_bar = redraws or (self._on_bar and not first)
        self._bars_above *= self._on_bar
        for line in others:
            self._bars_above = self._bars_above + 1 if self._on_bar else 0
            self._on_bar = not line


def wrap_output() -> None:
    """Make stdout and stderr a ``VisibleStream``, also for the loggers that already write to them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, VisibleStream):
            continue
        setattr(sys, name, VisibleStream(stream))
        for handler in _log_handlers():
            if handler.stream is stream:
                handler.setStream(getattr(sys, name))


def _log_handlers() -> Iterator[logging.StreamHandler[Any]]:
    loggers = (logging.root, *logging.root.manager.loggerDict.values())
    handlers = (handler for logger in loggers for handler in getattr(logger, "handlers", ()))
    return (handler for handler in handlers if isinstance(handler, logging.StreamHandler))


def unwrapped(stream: TextIO) -> TextIO:
    """Return the stream below a ``VisibleStream``, for output without text of others."""
    return stream.raw if isinstance(stream, VisibleStream) else stream


@contextlib.contextmanager
def visible_output() -> Iterator[None]:
    """Call ``wrap_output`` for the block."""
    with contextlib.redirect_stdout(sys.stdout), contextlib.redirect_stderr(sys.stderr):
        wrap_output()
        yield
