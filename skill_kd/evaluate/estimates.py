"""Estimates with one-sided bounds over prompts: a BCa bootstrap, clustered if prompts have clusters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from skill_kd.errors import MissingRequirementError
from skill_kd.report.evaluation_document import Form

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    Array = NDArray[float64]

NULL: dict[Form, float | None] = {"difference": 0.0, "ratio": 1.0, "retention": 1.0, "value": None}
"""The value of a perfect student."""

ONE_SIDED = 1.645
"""Standard normal quantile of a one-sided 95% bound."""
POWER = ONE_SIDED + 0.842
"""Standard normal quantiles of a one-sided 5% test and of 80% power: N = (2.487 σ / δ)²."""


@dataclass(frozen=True)
class Columns:
    """One metric's values per prompt, [N] each."""

    student: Array
    teacher: Array
    control: Array | None = None
    """The same metric for the positive control."""
    narrow: Array | None = None
    """The metric for the narrow half, which is 0 on the retention scale."""
    baseline: Array | None = None
    known: Array | None = None
    """bool: False for prompts without a value, which do not count; None if all have one."""

    def counted(self) -> Columns:
        """Return the columns of the prompts that have a value."""
        if self.known is None or self.known.all():
            return replace(self, known=None)
        sides = (self.student, self.teacher, self.control, self.narrow, self.baseline)
        return Columns(*(None if side is None else side[self.known] for side in sides))  # type: ignore[arg-type]

    def of(self, side: Array) -> Columns:
        """Return the columns with another side as the student."""
        return replace(self, student=side)


@dataclass(frozen=True)
class Estimate:
    """An estimate with its one-sided bounds, each at the policy's confidence."""

    value: float
    low: float
    high: float
    error: float
    """Standard error, from the bootstrap."""

    def detectable(self) -> float:
        """Return the smallest effect that is detected with 80% power at a one-sided 5%."""
        return POWER * self.error


def require_scipy() -> None:
    """Raise MissingRequirementError with the fix if scipy is not installed."""
    try:
        import scipy.stats  # noqa: F401
    except ImportError as error:
        raise MissingRequirementError("evaluate needs scipy: pip install scipy") from error


def estimate(
    columns: Columns,
    form: Form,
    *,
    confidence: float,
    resamples: int,
    seed: int,
    rows: int,
    clusters: Sequence[str | None],
) -> Estimate | None:
    """Return the estimate, or None if it is not finite or there are fewer than two clusters.

    The bounds are BCa (Efron 1987). If all prompts agree, there is no spread to resample. The bounds then follow the
    rule of three: value ± 3 / (N · rows), the 95% upper limit on the rate of events never seen in that many rows.

    Args:
        rows: responses behind each prompt's value.
        clusters: the label of each prompt; a prompt with None is its own cluster.
    """
    import numpy as np
    from scipy import stats

    data = _sums(columns, form, clusters)
    if not np.isfinite(data).all():
        return None
    value = float(_statistic(form)(*data, axis=-1))
    if not math.isfinite(value) or data.shape[1] < 2:
        return None
    spread = _spread(data, form)
    if spread < 1e-12:
        unseen = 3 / (len(columns.student) * rows)
        return Estimate(value, value - unseen, value + unseen, unseen / 2)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # a bound is then NaN, and there is no estimate
        result = stats.bootstrap(
            tuple(data),
            _statistic(form),
            paired=True,
            vectorized=True,
            method="BCa",
            confidence_level=2 * confidence - 1,
            n_resamples=resamples,
            batch=max(1, 4_000_000 // data.shape[1]),
            rng=np.random.default_rng(seed),
        )
    low, high = map(float, result.confidence_interval)
    error = float(result.standard_error)
    if not all(map(math.isfinite, (low, high, error))):
        return None
    return Estimate(value, low, high, error)


def _sums(columns: Columns, form: Form, clusters: Sequence[str | None]) -> Array:
    """Return [columns, clusters]: each cluster's contribution to the sums of the statistic, with its weight last."""
    import numpy as np

    sides = [columns.student, columns.teacher]
    if form == "retention":
        assert columns.narrow is not None
        sides.append(columns.narrow)
    stacked = np.stack([*sides, np.ones(len(columns.student))])
    labels = [label if label is not None else index for index, label in enumerate(clusters)]
    _, group = np.unique(np.array([repr(label) for label in labels]), return_inverse=True)
    return np.stack([np.bincount(group, weights=row) for row in stacked])


def _statistic(form: Form):  # type: ignore[no-untyped-def]
    import numpy as np

    def statistic(student, teacher, *rest, axis):  # type: ignore[no-untyped-def]
        weight = rest[-1].sum(axis)
        s, t = student.sum(axis), teacher.sum(axis)
        with np.errstate(divide="ignore", invalid="ignore"):
            if form == "difference":
                return (s - t) / weight
            if form == "value":
                return s / weight
            if form == "ratio":
                return s / t
            n = rest[0].sum(axis)
            return (s - n) / (t - n)

    return statistic


def _spread(data: Array, form: Form) -> float:
    """Return the standard deviation over prompts of the estimate's linearization around its value."""
    import numpy as np

    student, teacher, weight = data[0], data[1], data[-1]
    if form == "difference":
        return float(np.std((student - teacher) / weight))
    if form == "value":
        return float(np.std(student / weight))
    zero = data[2] if form == "retention" else np.zeros_like(student)
    value = (student - zero).sum() / (teacher - zero).sum()
    return float(np.std(((student - zero) - value * (teacher - zero)) / weight))


def prompts_needed(found: Estimate, target: float, margin: float, prompts: int) -> int | None:
    """Return the number of prompts at which a student at ``target`` passes ``margin`` with 80% power; None if never."""
    gap = abs(target - margin)
    if gap == 0:
        return None
    return max(2, math.ceil(prompts * (POWER * found.error / gap) ** 2))


def ratio_bounds(top: float, top_error: float, bottom: float, bottom_error: float) -> tuple[float, float] | None:
    """Return one-sided 95% bounds of top ÷ bottom from two independent estimates with their standard errors.

    The bounds are Fieller's (1954): the ratios r at which top − r · bottom is within its error of 0. The result is None
    if the bottom is not clearly different from 0, because then every ratio is possible.
    """
    a = bottom**2 - (ONE_SIDED * bottom_error) ** 2
    if a <= 0:
        return None
    c = top**2 - (ONE_SIDED * top_error) ** 2
    middle, reach = top * bottom, math.sqrt(max(0.0, (top * bottom) ** 2 - a * c))
    return (middle - reach) / a, (middle + reach) / a
