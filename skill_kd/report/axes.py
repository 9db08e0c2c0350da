"""Axes: their ranges, ticks and tick labels. A range encloses all plotted data."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from skill_kd.report.numbers import number

Position = float | datetime
"""A position on an axis: a number or a moment."""

_HOUR = 3600.0
_TIME_STEPS = [_HOUR * hours for hours in (1, 2, 3, 6, 12, 24, 48, 168, 336, 672, 2016, 8760, 43800, 87600)]


@dataclass(frozen=True)
class Scale:
    """A range of numbers mapped to the pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]

    def __call__(self, value: Position) -> float:
        """Return the pixel of ``value``; outside the range, the nearest end."""
        share = (seconds(value) - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * min(1.0, max(0.0, share)), 2)

    def outside(self, value: Position) -> int:
        """Return -1 below the range, 1 above it, else 0."""
        return (seconds(value) > self.high) - (seconds(value) < self.low)


def seconds(value: Position) -> float:
    """Return a moment as seconds since 1970 (UTC if it names no zone); a number stays unchanged."""
    if not isinstance(value, datetime):
        return float(value)
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()


def scale(values: Iterable[Position], start: float, end: float, ticks: int = 5, tight: bool = False) -> Scale:
    """Return a scale whose outer ticks enclose all ``values``. ``tight`` scales and moments enclose only the values."""
    found = list(values)
    known = [seconds(value) for value in found]
    low, high = min(known, default=0.0), max(known, default=1.0)
    if any(isinstance(value, datetime) for value in found):
        return _time_scale(low, high, start, end, ticks)
    if low == high:
        half = max(abs(low), 1e-290) / 2 if low else 0.5  # half of the smallest floats is 0
        low, high = low - half, high + half
    step = nice_step(max((high - low) / ticks, 1e-12 * max(abs(low), abs(high)), 1e-290))
    around = (math.ceil, math.floor) if tight else (math.floor, math.ceil)
    first, last = around[0](low / step), around[1](high / step)
    marks = tuple((index * step, _tick(index * step, step)) for index in range(first, last + 1))
    return Scale(low, high, start, end, marks) if tight else Scale(marks[0][0], marks[-1][0], start, end, marks)


def _tick(value: float, step: float) -> str:
    if not 1e-4 <= step < 1e6:
        return f"{value:.3g}"
    return number(value, max(0, -math.floor(math.log10(step) + 1e-9)))


def nice_step(rough: float) -> float:
    """Return the smallest of 1, 2, 5 × a power of ten that is at least ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))


def _time_scale(low: float, high: float, start: float, end: float, ticks: int) -> Scale:
    if low == high:
        low, high = low - _HOUR, high + _HOUR
    step = next((step for step in _TIME_STEPS if (high - low) / step <= ticks), (high - low) / ticks)
    marks = (index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1))
    form = "%Y-%m-%d" if step >= 24 * _HOUR else "%m-%d %H:%M"
    return Scale(
        low, high, start, end, tuple((mark, datetime.fromtimestamp(mark, UTC).strftime(form)) for mark in marks)
    )


def shown_position(value: Position) -> object:
    """Return a position in the form of a data table."""
    return (
        value
        if not isinstance(value, datetime)
        else value.isoformat(sep=" ", timespec="minutes").removesuffix(" 00:00")
    )


def fitting(text: str, width: float, size: float = 13) -> str:
    """Return ``text``, shortened with an ellipsis to fit ``width`` pixels in a sans-serif font of ``size``."""
    taken, kept = 0.0, 0
    for kept, char in enumerate(text):
        taken += size * _em(char)
        if taken > width - size:
            return text[:kept].rstrip() + "…"
    return text


def _em(char: str) -> float:
    if unicodedata.east_asian_width(char) in "WF":
        return 1.0
    return 0.72 if char.isupper() or char in "mwMW@%—" else 0.56
