"""Read single JSON values of unknown type: numbers, times, names, and JSON inside strings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

Row = Mapping[str, Any]
"""A parsed JSON object."""


def parsed(value: object) -> object:
    """Return ``value``; if it is a string that holds a JSON object or list, return that object or list."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def mapping(value: object) -> Row:
    """Return ``value`` if it is a mapping or a string that holds one, else an empty mapping."""
    found = parsed(value)
    return found if isinstance(found, dict) else {}


def objects(value: object) -> list[Row]:
    """Return the objects in a list; an empty list for anything else."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def first(row: Row, keys: Iterable[str]) -> Any:
    """Return the first value that is present and not null."""
    for key in keys:
        value = row.get(key)
        if value is not None:
            return value
    return None


def number(value: object) -> float | None:
    """Return a finite number, also if it is text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def word(value: object) -> str | None:
    """Return short text, such as a finish reason, in lower case."""
    return value.lower()[:40] if isinstance(value, str) and value else None


def name(value: object) -> str | None:
    """Return short text, such as a model's name or an id, unchanged."""
    return value[:120] if isinstance(value, str) and value else None


def flag(value: object) -> bool:
    """Return True for true, and for its spellings as text (in CSV)."""
    return value is True or (isinstance(value, str) and value.lower() == "true")


FIRST_DAY, LAST_DAY = 10957, 47482  # 2000-01-01 and 2100-01-01, in days since 1970


def seconds(value: object) -> float | None:
    """Return a time as seconds since 1970, UTC; None if it cannot be read.

    Reads ISO 8601, US dates (``11/30/2026 4:05 PM``), numbers in s, ms, µs or ns, and OpenTelemetry's pairs of s and
    ns. A time without a zone is UTC.
    """
    if isinstance(value, str) and len(value) >= 8 and not value.isdigit():
        return _iso(value)
    if isinstance(value, list) and len(value) == 2:
        value = value[0]
    found = number(value)
    if found is None:
        return None
    for scale in (1e9, 1e6, 1e3):
        if abs(found) >= 1e8 * scale:
            found /= scale
            break
    return found if FIRST_DAY * 86400 <= found < LAST_DAY * 86400 else None


def _iso(text: str) -> float | None:
    # Consecutive rows usually have the same day in UTC, so its date is parsed once and cached.
    try:
        midnight, zone = _midnight(text[:10]), text[19:]
        if zone[-1:] == "Z" or zone[-6:] == "+00:00" or not ("+" in zone or "-" in zone):
            return midnight + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text.strip())
        return seconds((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return _american(text) or seconds(number(text))


@lru_cache(4096)
def _midnight(date: str) -> float:
    found = datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    if not FIRST_DAY * 86400 <= found < LAST_DAY * 86400:
        raise ValueError(date)
    return found


_AMERICAN = re.compile(
    r"\s*(?P<month>\d\d?)/(?P<day>\d\d?)/(?P<year>\d{4})"
    r"(?:,?\s+(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.\d+)?)?\s*(?P<half>[AP]M)?)?\s*(?:Z|UTC)?\s*",
    re.IGNORECASE | re.ASCII,
)


def _american(text: str) -> float | None:
    found = _AMERICAN.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (
        int(found[part] or 0) for part in ("year", "month", "day", "hour", "minute", "second")
    )
    if found["half"]:
        hour = hour % 12 + 12 * (found["half"].upper() == "PM")
    try:
        return seconds(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError:  # for example a date with the day first
        return None
