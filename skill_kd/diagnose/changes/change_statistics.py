"""One change point within strata, and intervals.

The model of a change at window τ: y = level of the stratum + D · [window >= τ] + noise. D compares each stratum with
itself, before and after, weighted by n_before · n_after / (n_before + n_after). A stratum that exists on one side only
has no weight. The noise of single answers is multiplied by the scatter of whole windows around the model (a
quasi-likelihood dispersion, at least 1), so that ordinary variation between days raises no alarm.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

FEWEST_WINDOWS = 6
"""Smallest number of windows in which a change can be dated."""
SIDE = 2
"""Smallest number of windows on each side of a change."""


@dataclass
class StratumSums:
    """Answers of one stratum in one window: count, sum, sum of squares."""

    n: float = 0.0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Count one value."""
        self.n += weight
        self.total += weight * value
        self.squares += weight * value * value


Stratum = Hashable
Cells = Sequence[dict[Stratum, StratumSums]]
"""One mapping per window, in order."""


@dataclass(frozen=True)
class Step:
    """A difference between the windows before ``at`` and those from ``at`` on."""

    at: int
    before: float
    """Level before the step, over the compared strata and with their weights."""
    difference: float
    error: float
    """Standard error, including dispersion."""
    degrees: int
    p: float
    """Two-sided p value, corrected for the choice of ``at`` (Bonferroni)."""
    weight: float
    """Effective number of compared answers; 0 if no stratum exists on both sides."""

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the difference, as if ``at`` were known in advance."""
        half = t_quantile(0.975, self.degrees) * self.error
        return self.difference - half, self.difference + half


def change_point(cells: Cells, least_variance: float) -> Step | None:
    """Return the most significant step, or None if there are too few windows.

    Args:
        cells: values by window and stratum.
        least_variance: lower bound of the variance of one answer, so that a few rare events are not significant.
    """
    if len(cells) < FEWEST_WINDOWS:
        return None
    places = range(SIDE, len(cells) - SIDE + 1)
    scores = dict(_scores(cells))
    at = max(places, key=lambda place: (scores[place], -place))
    return step_at(cells, at, max(least_variance, row_variance(cells)), tries=len(places))


def _scores(cells: Cells) -> Iterator[tuple[int, float]]:
    """Yield each place and its step in standard errors, up to a common factor: the CUSUM statistic within strata."""
    before: dict[Stratum, StratumSums] = {}
    after = _pooled(cells)
    for place, window in enumerate(cells):
        over = weighted = 0.0
        for key, late in after.items():
            early = before.get(key)
            if early is not None and late.n > 0.5:
                weight = early.n * late.n / (early.n + late.n)
                over += weight
                weighted += weight * (late.total / late.n - early.total / early.n)
        yield place, abs(weighted) / math.sqrt(over) if over else 0.0
        for key, cell in window.items():
            for into, sign in ((before.setdefault(key, StratumSums()), 1), (after[key], -1)):
                into.n += sign * cell.n
                into.total += sign * cell.total


def row_variance(cells: Cells) -> float:
    """Return the variance of answers around the mean of their cell."""
    every = [cell for window in cells for cell in window.values() if cell.n > 1]
    free = sum(cell.n - 1 for cell in every)
    return sum(cell.squares - cell.total**2 / cell.n for cell in every) / free if free else 0.0


def step_at(cells: Cells, at: int, spread: float, tries: int = 1) -> Step:
    """Return the step at one place.

    Args:
        cells: values by window and stratum.
        at: the first window after the step.
        spread: variance of one answer.
        tries: number of places that were tried.
    """
    before, after = _pooled(cells[:at]), _pooled(cells[at:])
    shared = [key for key in before if key in after]
    weights = {key: before[key].n * after[key].n / (before[key].n + after[key].n) for key in shared}
    weight, degrees = math.fsum(weights.values()), max(1, len(cells) - 2)
    if weight <= 0:
        return Step(at, math.nan, 0.0, math.inf, degrees, 1.0, 0.0)
    gaps = {key: after[key].total / after[key].n - before[key].total / before[key].n for key in shared}
    difference = math.fsum(weights[key] * gaps[key] for key in shared) / weight
    level = math.fsum(weights[key] * before[key].total / before[key].n for key in shared) / weight
    levels = {
        key: (before[key].total + after[key].total - difference * after[key].n) / (before[key].n + after[key].n)
        for key in shared
    }
    error = math.sqrt(spread * _dispersion(cells, at, levels, difference, spread) / weight)
    score = abs(difference) / error if error else (math.inf if difference else 0.0)
    return Step(at, level, difference, error, degrees, min(1.0, tries * 2 * t_tail(score, degrees)), weight)


def _pooled(windows: Cells) -> dict[Stratum, StratumSums]:
    pooled: dict[Stratum, StratumSums] = {}
    for window in windows:
        for key, cell in window.items():
            into = pooled.setdefault(key, StratumSums())
            into.n += cell.n
            into.total += cell.total
    return pooled


def _dispersion(cells: Cells, at: int, levels: dict[Stratum, float], difference: float, spread: float) -> float:
    """Return the scatter of whole windows around the model, in units of the noise of answers; at least 1."""
    if not spread:
        return 1.0
    squared = used = 0.0
    for place, window in enumerate(cells):
        n = residual = 0.0
        for key, cell in window.items():
            if key in levels:
                n += cell.n
                residual += cell.total - cell.n * (levels[key] + (difference if place >= at else 0.0))
        if n:
            squared += residual**2 / n
            used += 1
    return max(1.0, squared / spread / max(1.0, used - 2))


# --- distributions ----------------------------------------------------------------------------------------------------


def t_tail(t: float, degrees: int) -> float:
    """Return P(T > t) of Student's t, t >= 0, by the regularized incomplete beta function."""
    if math.isinf(t):
        return 0.0
    return 0.5 * _beta_share(degrees / (degrees + t * t), degrees / 2, 0.5)


def t_quantile(share: float, degrees: int) -> float:
    """Return the quantile of Student's t for a share above one half."""
    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) > 1 - share else (low, middle)
    return low


def _beta_share(x: float, a: float, b: float) -> float:
    """Return I_x(a, b) by its continued fraction (Lentz's method; DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 / max(tiny, 1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 300):
        for factor in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + factor * d or tiny)
            c = 1 + factor / c or tiny
            result *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return min(1.0, front * result)


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    if n <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.975)
    share, scale = hits / n, 1 + z * z / n
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mean_interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Return a mean and its 95 % interval by Student's t; the interval is infinite for one value."""
    found = list(values)
    n = len(found)
    mean = math.fsum(found) / n if n else math.nan
    if n < 2:
        return mean, -math.inf, math.inf
    error = math.sqrt(math.fsum((each - mean) ** 2 for each in found) / (n - 1) / n)
    half = t_quantile(0.975, n - 1) * error
    return mean, mean - half, mean + half
