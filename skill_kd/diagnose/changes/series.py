"""The values of each window for the report: counts over all answers, and detectors on the sample, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from skill_kd.diagnose.changes.change_statistics import mean_interval, wilson
from skill_kd.diagnose.changes.detectors import DETECTORS, Detector, matches
from skill_kd.diagnose.changes.measures import WindowSample
from skill_kd.diagnose.changes.windows import Window, bin_length
from skill_kd.textstats import entropy


@dataclass(frozen=True)
class Value:
    """An estimate with its 95 % interval and the number of answers behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Point:
    """The values of one window."""

    start: int
    rows: int
    sampled: int
    repeated: Value
    """Share of all answers that also answer another prompt, with digits folded."""
    lengths: dict[str, float]
    """Quantiles of the length of all answers, in characters."""
    finishes: dict[str, int]
    """Number of answers by finish reason."""
    opening_entropy: float
    """Entropy of the openings in the sample, in nats."""
    top_opening: float
    """Share of the most frequent opening in the sample."""
    values: dict[str, Value]
    """Values by detector, from the sample."""

    def to_json(self) -> dict[str, object]:
        """Return values for JSON, without the start."""
        return {key: value for key, value in asdict(self).items() if key != "start"}


def point(window: Window, sample: WindowSample) -> Point:
    """Return the values of a window."""
    hits, n = window.repeated()
    openings: dict[int, int] = {}
    for each in sample.measured:
        openings[each.opening] = openings.get(each.opening, 0) + 1
    openings.pop(0, None)
    return Point(
        sample.start,
        window.rows,
        len(sample.measured),
        Value(hits / n if n else None, *wilson(hits, n), n),
        {f"p{share:.0%}"[:-1]: _quantile(window, share) for share in (0.1, 0.5, 0.9)},
        dict(window.finishes.most_common()),
        entropy(openings.values()),
        max(openings.values(), default=0) / max(1, len(sample.measured)),
        {detector.key: _value(detector, sample) for detector in DETECTORS},
    )


def _value(detector: Detector, sample: WindowSample) -> Value:
    if detector.kind == "match":
        values = matches(detector, sample.measured) if len(sample.measured) > 1 else []
        mean, low, _ = mean_interval(values)
        # Each pair counts for both of its answers, so the real error of the mean is twice that of these values.
        half = 2 * (mean - low)
        return _finite(mean, max(0.0, mean - half), min(1.0, mean + half), len(values))
    found = [float(value) for each in sample.measured if (value := detector.value(each)) is not None]
    if detector.kind == "share":
        hits = math.fsum(found)
        return _finite(hits / len(found) if found else math.nan, *wilson(hits, len(found)), len(found))
    return _finite(*mean_interval(found), len(found))


def _finite(value: float, low: float, high: float, n: int) -> Value:
    kept = [each if math.isfinite(each) else None for each in (value, low, high)]
    return Value(kept[0], kept[1], kept[2], n)


def _quantile(window: Window, share: float) -> float:
    left = share * window.rows
    for index in sorted(window.lengths):
        left -= window.lengths[index]
        if left <= 0:
            return bin_length(index)
    return 0.0


def points(windows: Sequence[tuple[Window, WindowSample]]) -> tuple[Point, ...]:
    """Return the values of all windows."""
    return tuple(point(window, sample) for window, sample in windows)
