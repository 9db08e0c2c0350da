"""On PYTHONPATH: each process tells what its heap has given out, in a file of its own below $SKILL_KD_HEAP.

Resident memory also counts what glibc keeps of what was given back to it, between blocks still in use; a program that
leaks is told from a heap with gaps only by what is in use. A line has the monotonic clock's seconds and the
fewest bytes in use since the line before. Python reads this file by its name as it starts; it does nothing elsewhere
than on glibc.
"""

import ctypes
import os
import threading
import time

NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
LINES, PROBES = 0.2, 0.05
"""Seconds between two of each."""


class MallInfo2(ctypes.Structure):
    """What glibc 2.33 and later say of all arenas (man 3 mallinfo2)."""

    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def tell(path: str, mallinfo2: object) -> None:
    """Write the least that was in use, again and again, until the process ends."""
    seen, told = [], 0.0
    with open(path, "w", buffering=1, encoding="ascii") as file:
        while True:
            found = mallinfo2()
            seen.append(found.uordblks + found.hblkhd)
            if (now := time.monotonic()) - told >= LINES:
                file.write(f"{now:.3f} {min(seen)}\n")
                seen, told = [], now
            time.sleep(PROBES)


if folder := os.environ.get("SKILL_KD_HEAP"):
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        ask = None
    if ask is not None:
        ask.restype = MallInfo2
        threading.Thread(target=tell, args=(os.path.join(folder, str(os.getpid())), ask), daemon=True).start()
