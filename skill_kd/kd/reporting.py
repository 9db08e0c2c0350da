"""How a trainer script ends: one `error:` line and an exit code."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from .errors import GO_ON, LESS_MEMORY, OUT_OF_MEMORY, ScriptError

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""A disk or a quota is full, a file too large, a folder read-only."""


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
