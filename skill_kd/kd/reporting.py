"""The output and the end of a trainer script: an exit code, and after a failure one ``error:`` line."""

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

from .errors import GO_ON, LESS_MEMORY, OUT_OF_MEMORY, RefusedPath, ScriptError
from .signals import Stopped, stoppable
from .terminal import wrap_output

UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""The disk or the quota is full, the file is too large, or the folder is read-only."""
UNUSABLE = frozenset({errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})
"""The rights or the path are wrong, for reading or for writing."""
MISPLACED = frozenset({errno.EISDIR, errno.ENOTDIR, errno.EEXIST})
"""A folder is in the place of a file, or a file in the place of a folder."""


class _End:
    code: ClassVar[int | None] = None
    """The exit code, once it is certain."""


@contextmanager
def reporting() -> Iterator[None]:
    """Turn an error of the block into one ``error:`` line and its exit code. Unexpected errors keep their traceback.

    From here to the end of the process, control characters in the output appear as escapes.
    """
    wrap_output()
    _quiet_libraries()
    # Handlers run last in, first out, so what the run registers later, such as its trackers, runs before this one.
    atexit.register(_leave)
    try:
        with stoppable():
            yield
        _End.code = 0
    except ScriptError as error:
        _end(str(error), error.exit_code)
    except KeyboardInterrupt:
        _end("interrupted before the first checkpoint", 130)
    except Stopped as signal:
        _end(f"stopped by {signal}", Stopped.exit_code)
    except Exception as error:
        if is_out_of_memory(error):
            _end(f"{OUT_OF_MEMORY}{_words(error)}; {LESS_MEMORY}", 6)
        if isinstance(error, RefusedPath):
            _end(f"'{error.filename}' {error.strerror}", 2)
        if isinstance(error, OSError) and error.errno in MISPLACED:
            _end(f"cannot use '{error.filename2 or error.filename}': {error.strerror}; move it away, and resume", 2)
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            _end(f"cannot write {error.filename or 'into the run folder'}: {error.strerror}; {GO_ON}", 6)
        if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename:
            _end(f"cannot use '{error.filename}': {error.strerror}; {GO_ON}", 6)
        traceback.print_exc()
        _end(f"{type(error).__name__}: {_words(error)}", 1)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out. On a CPU torch raises a plain RuntimeError."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and (type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error))
    )


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or "no details"


def _quiet_libraries() -> None:
    """Keep other libraries' bars and messages off the terminal."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # It warns at every checkpoint that tied weights are saved once.
    logging.getLogger("accelerate.utils.other").setLevel(logging.ERROR)


def _end(reason: str, code: int) -> None:
    print(f"error: {reason}", file=sys.stderr, flush=True)  # noqa: T201
    _End.code = code
    sys.exit(code)


def _leave() -> None:
    """End one process of several before its interpreter shuts down.

    A thread of gloo frees a tensor some time after the exchange, even after the group is destroyed. If the interpreter
    is gone by then, the thread aborts the process, and the launcher reports a successful run as failed.
    """
    if _End.code is not None and "RANK" in os.environ:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_End.code)
