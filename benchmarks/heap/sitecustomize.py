"""On PYTHONPATH: each process tells what its heap has given out, in a file of its own below $SKILL_KD_HEAP.

Resident memory also counts what glibc keeps of what was given back to it, between blocks still in use; a program that
leaks is told from a heap with gaps only by what is in use. A line each second has the monotonic clock's seconds and the
most bytes in use since the line before. Python reads this file by its name as it starts; without glibc it does nothing.
"""

import ctypes
import os
import threading
import time

NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
EVERY = 0.1


class MallInfo2(ctypes.Structure):
    """What glibc 2.33 and later say of all arenas (man 3 mallinfo2)."""

    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


def tell(path: str, mallinfo2: object) -> None:
    """Write the most that was in use, each second, until the process ends."""
    most, told = 0, time.monotonic()
    with open(path, "w", buffering=1, encoding="ascii") as file:
        while True:
            found = mallinfo2()
            most = max(most, found.uordblks + found.hblkhd)
            if (now := time.monotonic()) - told >= 1:
                file.write(f"{now:.3f} {most}\n")
                most, told = 0, now
            time.sleep(EVERY)


if folder := os.environ.get("SKILL_KD_HEAP"):
    try:
        ask = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        ask = None
    if ask is not None:
        ask.restype = MallInfo2
        threading.Thread(target=tell, args=(os.path.join(folder, str(os.getpid())), ask), daemon=True).start()
