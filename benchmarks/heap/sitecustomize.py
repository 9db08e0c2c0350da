"""Record the heap of each process: put this folder on PYTHONPATH. Each process writes a file below $SKILL_KD_HEAP.

Resident memory also counts freed blocks that glibc keeps between blocks in use. Only the bytes in use show if a program
leaks. A line has the seconds of the monotonic clock and the fewest bytes in use since the previous line. Python loads
this file by its name at start-up. Without glibc it does nothing.
"""

import ctypes
import os
import threading
import time

NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
LINES, PROBES = 0.2, 0.05
"""Seconds between two lines, and between two probes."""


class MallInfo2(ctypes.Structure):
    """The counters of all arenas in glibc 2.33 and later (man 3 mallinfo2)."""

    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def record(path: str, mallinfo2: object) -> None:
    """Write the fewest bytes in use, again and again, until the process ends."""
    seen, written = [], 0.0
    with open(path, "w", buffering=1, encoding="ascii") as file:
        while True:
            found = mallinfo2()
            seen.append(found.uordblks + found.hblkhd)
            if (now := time.monotonic()) - written >= LINES:
                file.write(f"{now:.3f} {min(seen)}\n")
                seen, written = [], now
            time.sleep(PROBES)


if folder := os.environ.get("SKILL_KD_HEAP"):
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        ask = None
    if ask is not None:
        ask.restype = MallInfo2
        threading.Thread(target=record, args=(os.path.join(folder, str(os.getpid())), ask), daemon=True).start()
