"""Signs from measured windows: what changed, when, by how much, and if something else explains it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from skill_kd.diagnose.changes.change_statistics import (
    FEWEST_WINDOWS,
    SIDE,
    Cells,
    Step,
    change_point,
    row_variance,
    step_at,
    t_quantile,
    wilson,
)
from skill_kd.diagnose.changes.detectors import (
    DETECTORS,
    FACTORS,
    VERSION,
    Detector,
    Strata,
    alike,
    cells,
    effect,
    level,
    prompt_kind,
    version,
)
from skill_kd.diagnose.changes.measures import WindowSample
from skill_kd.diagnose.changes.windows import NOT_LOGGED

ALPHA = 0.05
"""Probability of any false alarm in a whole log. The detectors share it (Bonferroni)."""
EXPLAINED = 0.5
"""A factor explains a change that becomes smaller than this share within the strata of the factor."""
SEPARABLE = 0.1
"""A factor also explains a change if the strata on both sides have less than this share of the weight."""
DEPLOYED = 0.1
"""A model version is deployed from the first window in which it gives this share of the answers."""
LOOPS = 0.03
"""A share of loops above this is a finding even without a change."""

Verdict = Literal["change", "explained", "teacher", "level"]


@dataclass(frozen=True)
class Deployment:
    """A model version that replaced another one."""

    version: str
    instead_of: str
    at: int
    """First window with a tenth of its answers from the new version."""


@dataclass(frozen=True)
class Sign:
    """The result of one detector."""

    detector: Detector
    verdict: Verdict
    """``change`` in time, a change ``explained`` by a factor, worse than the ``teacher``, or a ``level`` too high."""
    at: int | None
    """First window of the change."""
    before: float
    after: float
    difference: float
    """Difference within strata; for an explained change, the difference of all answers."""
    low: float
    high: float
    effect: float
    """Size of the change, in margins of the detector."""
    p: float
    """p value, corrected for the number of places and detectors tried."""
    answers: tuple[int, int]
    """Number of sampled answers before and after."""
    explained_by: tuple[str, ...] = ()
    deployment: Deployment | None = None
    """The likely cause, if the change disappears within each model version."""


def signs_over_time(windows: Sequence[WindowSample]) -> list[Sign]:
    """Return the signs of a change in time, at most one per detector."""
    if len(windows) < FEWEST_WINDOWS:
        return []
    signs = [_changed(detector, windows) for detector in DETECTORS]
    return [sign for sign in signs if sign is not None]


def _changed(detector: Detector, windows: Sequence[WindowSample]) -> Sign | None:
    like, all_alike = cells(detector, windows), cells(detector, windows, alike, alike)
    within, plain = _significant(detector, like), _significant(detector, all_alike)
    if within is not None:
        if plain is not None and abs(plain.at - within.at) <= SIDE:  # whole windows date it better than small strata
            dated = step_at(like, plain.at, max(detector.least_variance, row_variance(like)))
            within = replace(dated, p=within.p) if dated.weight else within
        return replace(_sign(detector, "change", windows, within), deployment=_deployment(detector, windows, within))
    if plain is None:
        return None
    explanations = _explanations(detector, windows, plain)
    if explanations == (VERSION,):
        return replace(_sign(detector, "change", windows, plain), deployment=_deployment(detector, windows, plain))
    return _sign(detector, "explained", windows, plain, explanations)


def _significant(detector: Detector, values: Cells) -> Step | None:
    step = change_point(values, detector.least_variance)
    if step is None or step.p * len(DETECTORS) >= ALPHA or effect(detector, step.before, step.difference) < 1:
        return None
    return step


def _explanations(detector: Detector, windows: Sequence[WindowSample], plain: Step) -> tuple[str, ...]:
    found = [name for name, by in FACTORS.items() if _explains(detector, windows, plain, *by)]
    found.sort(key=VERSION.__eq__)  # last: it excuses nothing
    return tuple(found) or ("several settings together",)


def _explains(detector: Detector, windows: Sequence[WindowSample], plain: Step, strata: Strata, mix: Strata) -> bool:
    values = cells(detector, windows, strata, mix)
    step = step_at(values, plain.at, max(detector.least_variance, row_variance(values)))
    if step.weight < SEPARABLE * plain.weight:
        return True
    return step.difference * plain.difference < EXPLAINED * plain.difference**2


def _deployment(detector: Detector, windows: Sequence[WindowSample], step: Step) -> Deployment | None:
    """Return the deployment that explains a step: another version answers more, and no version changed by itself."""
    before, after = (_versions(part) for part in (windows[: step.at], windows[step.at :]))
    gained = {name: share - before.get(name, 0.0) for name, share in after.items()}
    new = max(gained, key=lambda name: (gained[name], name))
    old = max((name for name in before if name != new), key=lambda name: (before[name], name), default=NOT_LOGGED)
    if gained[new] < DEPLOYED or NOT_LOGGED in (new, old):
        return None
    if not _explains(detector, windows, step, version, prompt_kind):
        return None
    return Deployment(
        new, old, next(at for at, each in enumerate(windows) if _versions([each]).get(new, 0.0) >= DEPLOYED)
    )


def _versions(windows: Sequence[WindowSample]) -> dict[str, float]:
    """Return the share of each model version."""
    counts = Counter(version(each) for window in windows for each in window.measured)
    return {name: count / counts.total() for name, count in counts.items()}


def _sign(
    detector: Detector, verdict: Verdict, windows: Sequence[WindowSample], step: Step, explained: tuple[str, ...] = ()
) -> Sign:
    (before, n_before), (after, n_after) = level(detector, windows[: step.at]), level(detector, windows[step.at :])
    return Sign(
        detector,
        verdict,
        step.at,
        before,
        after,
        step.difference,
        *step.interval(),
        effect(detector, step.before, step.difference),
        min(1.0, step.p * len(DETECTORS)),
        (n_before, n_after),
        explained,
    )


# --- without a change in time -----------------------------------------------------------------------------------------


def against_teacher(student: Sequence[WindowSample], teacher: Sequence[WindowSample]) -> tuple[list[Sign], list[str]]:
    """Compare a student's windows with its teacher's, within prompt kinds and settings.

    Returns:
        The signs that the student is worse, and the keys of the sameness detectors that find the teacher as bad.
    """
    signs, as_bad = [], []
    windows = [*teacher, *student]
    for detector in DETECTORS:
        values = cells(detector, windows)
        step = step_at(values, len(teacher), max(detector.least_variance, row_variance(values)))
        if not step.weight:
            continue
        size, p = effect(detector, step.before, step.difference), step.p * len(DETECTORS)
        if p < ALPHA and size >= 1:
            signs.append(_sign(detector, "teacher", windows, step))
        elif size < EXPLAINED and detector.finding == "sameness":
            as_bad.append(detector.key)
    return signs, as_bad


def too_high(windows: Sequence[WindowSample]) -> list[Sign]:
    """Return a sign if loops were frequent in the whole log. Other levels can be judged only against a teacher."""
    detector = next(each for each in DETECTORS if each.key == "loops")
    share, n = level(detector, windows)
    low, high = wilson(share * n, n) if n else (0.0, 1.0)
    if low <= LOOPS:
        return []
    return [Sign(detector, "level", None, math.nan, share, share, low, high, share / detector.margin, 0.0, (0, n))]


def would_be_seen(detector: Detector, windows: Sequence[WindowSample]) -> float | None:
    """Return the smallest step in the middle of the log that would be called a change; None if no step would be.

    In the detector's own unit; for a match, the share of one repeated answer.
    """
    values = cells(detector, windows)
    if len(windows) < FEWEST_WINDOWS:
        return None
    step = step_at(values, len(windows) // 2, max(detector.least_variance, row_variance(values)))
    if not step.weight:
        return None
    needed = step.error * t_quantile(1 - ALPHA / (2 * len(DETECTORS) * (len(windows) - 3)), step.degrees)
    if detector.kind == "match":
        needed = math.sqrt(max(0.0, step.before) + needed) - math.sqrt(max(0.0, step.before))
    return max(needed, detector.margin)
