"""Numbers for people: three significant digits, a true minus sign, and a dash for a missing value."""

from __future__ import annotations

import math

MISSING = "–"


def finite(value: object) -> float | None:
    """Return ``value`` as a float; None if it is not finite, or too large to be a measurement."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e200 else None


def number(value: object, digits: int | None = None, sign: bool = False) -> str:
    """Return ``value`` with ``digits`` decimals, by default with three significant digits."""
    known = finite(value)
    if known is None:
        return MISSING
    if digits is None and known != 0 and not 1e-4 <= abs(known) < 1e15:
        return _true_minus(f"{known:{'+' * sign}.2e}")
    return _true_minus(f"{known:{'+' * sign},.{_decimals(value) if digits is None else digits}f}")


def percent(value: object, digits: int = 1, sign: bool = False) -> str:
    """Return a share as a percentage."""
    known = finite(value)
    return MISSING if known is None else f"{number(100 * known, digits, sign)}%"


def points(value: object, digits: int = 1) -> str:
    """Return a difference of shares in percentage points, always with its sign."""
    known = finite(value)
    return MISSING if known is None else f"{number(100 * known, digits, sign=True)} pp"


def size(value: object) -> str:
    """Return a count of bytes in GB, MB or kB (powers of ten)."""
    known = finite(value)
    if known is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(known) >= scale:
            return f"{number(known / scale)} {unit}"
    return f"{number(known, 0)} B"


def _decimals(value: object) -> int:
    if isinstance(value, int) or value == 0:
        return 0
    assert isinstance(value, float)
    return min(6, max(0, 2 - math.floor(math.log10(abs(value)))))


def _true_minus(text: str) -> str:
    # Avoid "-0.0": it means the same as "0.0".
    if not any(char in "123456789" for char in text.split("e", maxsplit=1)[0]):
        return text.lstrip("+-")
    return text.replace("-", "−")
