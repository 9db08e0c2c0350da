"""The table of detectors. Each returns one value for each sampled answer.

A *share* is yes or no for each answer. A *match* is the probability that another answer in the same window, to another
prompt, is the same; it does not depend on the size of the sample. A *mean* is a number for each answer.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from skill_kd.diagnose.changes.change_statistics import SIDE, Stratum, StratumSums
from skill_kd.diagnose.changes.measures import MeasuredAnswer, WindowSample
from skill_kd.diagnose.changes.windows import SETTINGS

Kind = Literal["share", "match", "mean"]
Direction = Literal["up", "down", "both"]


@dataclass(frozen=True)
class Detector:
    """One thing that can go wrong."""

    key: str
    label: str
    kind: Kind
    value: Callable[[MeasuredAnswer], float | None]
    """The value of one answer; for a match, its group (0 if it has none). None skips the answer."""
    margin: float
    """Smallest change that matters. For a match, of the square root, which is the share of one repeated answer."""
    direction: Direction
    finding: str
    """Key of the finding in ``skill_kd.guidance``."""
    least_variance: float
    """Lower bound of the variance of one answer in the test for a change."""


DETECTORS = (
    Detector("exact", "same answer", "match", lambda m: m.row.output_hash, 0.05, "up", "sameness", 1e-5),
    Detector("near", "nearly the same answer", "match", lambda m: m.near, 0.06, "up", "sameness", 1e-5),
    Detector("opening", "same first five words", "match", lambda m: m.opening, 0.07, "up", "sameness", 1e-4),
    Detector("repeated", "repeated answers", "share", lambda m: m.repeated, 0.03, "up", "sameness", 0.01),
    Detector("reopened", "repeated openings", "share", lambda m: m.repeated_opening, 0.05, "up", "sameness", 0.01),
    Detector("refusals", "refusals", "share", lambda m: m.refusal, 0.02, "up", "refusals", 0.01),
    Detector("hedges", "hedges", "share", lambda m: m.hedge, 0.05, "up", "refusals", 0.01),
    Detector("loops", "loops", "share", lambda m: m.loop, 0.01, "up", "loops", 0.005),
    Detector("compression", "compressibility", "mean", lambda m: m.compression, 0.02, "down", "loops", 1e-4),
    Detector("cut", "cut by the length limit", "share", lambda m: m.cut, 0.03, "up", "length", 0.01),
    Detector("length", "length", "mean", lambda m: m.log_length, 0.20, "both", "length", 0.01),
)  # fmt: skip
BY_KEY = {each.key: each for each in DETECTORS}

Strata = Callable[[MeasuredAnswer], Hashable]


def alike(_: MeasuredAnswer) -> Hashable:
    """Return one stratum for all answers."""
    return 0


def prompt_kind(measured: MeasuredAnswer) -> Hashable:
    """Return the kind of prompt: topic and length."""
    return measured.kind


def setting(measured: MeasuredAnswer) -> Hashable:
    """Return the settings of the answer, without the model version: a diagnosis must find the effect of a version."""
    return measured.row.setting[1:]


def version(measured: MeasuredAnswer) -> str:
    """Return the model version of the answer."""
    return measured.setting[0]


FACTORS: dict[str, tuple[Strata, Strata]] = {
    "prompt mix": (alike, prompt_kind),
    **{name: ((lambda m, place=place: m.setting[place]), alike) for place, name in enumerate(SETTINGS)},  # type: ignore[misc]
}
"""Factors that a log shows next to the answers. Each has the strata and the mix for ``cells``."""
VERSION = SETTINGS[0]
"""The factor that never excuses a change: a worse version is a finding."""

Mix = Mapping[Hashable, float]


def cells(
    detector: Detector, windows: Sequence[WindowSample], strata: Strata = setting, mix: Strata = prompt_kind
) -> list[dict[Stratum, StratumSums]]:
    """Return sums of the detector's values by window and stratum.

    Answers of different ``strata`` are never compared. For shares and means, the same holds for ``mix``. A match is a
    property of two answers, so every window is weighted to the same mix instead; then pairs of two kinds also count.
    """
    if detector.kind != "match":
        return [_cells(detector, window.measured, strata, mix) for window in windows]
    reference = _common_mix(windows, mix)
    found = []
    for window in windows:
        groups: dict[Stratum, list[MeasuredAnswer]] = defaultdict(list)
        for each in window.measured:
            groups[strata(each)].append(each)
        weighted = ((key, _match_cell(detector, members, mix, reference)) for key, members in groups.items())
        found.append({key: cell for key, cell in weighted if cell.n > 1})
    return found


def _cells(
    detector: Detector, measured: Iterable[MeasuredAnswer], strata: Strata, mix: Strata
) -> dict[Stratum, StratumSums]:
    found: dict[Stratum, list[float]] = defaultdict(list)
    value_of = detector.value
    for each in measured:
        value = value_of(each)
        if value is not None:
            found[strata(each), mix(each)].append(value)
    return {
        key: StratumSums(float(len(values)), float(sum(values)), float(sum(value * value for value in values)))
        for key, values in found.items()
    }


# --- matches ----------------------------------------------------------------------------------------------------------


def _common_mix(windows: Sequence[WindowSample], mix: Strata) -> Mix:
    """Return the largest share of each kind that every beginning and every end of the log has.

    A kind that appeared or disappeared is skipped, because it changes the mix and not the model.
    """
    counts = [Counter(map(mix, window.measured)) for window in windows]
    common: dict[Hashable, float] = {}
    for side in (counts, counts[::-1]):
        total: Counter[Hashable] = Counter()
        for place, each in enumerate(side, 1):
            total += each
            if SIDE <= place <= len(side) - SIDE or len(side) < 2 * SIDE:
                shares = {key: count / total.total() for key, count in total.items()}
                common = {key: min(common[key], shares.get(key, 0.0)) for key in common} if common else shares
    return {key: share for key, share in common.items() if share}


def _match_cell(detector: Detector, members: Sequence[MeasuredAnswer], mix: Strata, reference: Mix) -> StratumSums:
    """Return the mean of all matches under the reference mix, with the effective number of answers as its weight.

    Each pair counts for both of its answers, so the deviations from the mean are doubled to give its variance.
    """
    kinds = [mix(each) for each in members]
    sizes = Counter(kinds)
    whole = math.fsum(reference.get(kind, 0.0) for kind in sizes)
    if not whole:
        return StratumSums()
    values = matches(detector, members, {kind: reference.get(kind, 0.0) / whole for kind in sizes}, kinds)
    weights = [reference.get(kind, 0.0) / whole / sizes[kind] for kind in kinds]
    mean = math.fsum(weight * value for weight, value in zip(weights, values, strict=True))
    worth = 1 / math.fsum(weight * weight for weight in weights)
    doubled = [mean + 2 * (value - mean) for value in values]
    total = math.fsum(weight * value for weight, value in zip(weights, doubled, strict=True))
    squares = math.fsum(weight * value * value for weight, value in zip(weights, doubled, strict=True))
    return StratumSums(worth * math.fsum(weights), worth * total, worth * squares)


def matches(
    detector: Detector, members: Sequence[MeasuredAnswer], mix: Mix | None = None, kinds: Sequence[Hashable] = ()
) -> list[float]:
    """Return, for each answer, the probability that another answer, to another prompt, matches it.

    The kind of the other answer is drawn by its share in ``mix``, then the answer uniformly. Without a mix, the answer
    is drawn uniformly from all.
    """
    if mix is None:
        mix, kinds = {0: 1.0}, [0] * len(members)
    pairs = [(detector.value(each), each.row.prompt_hash) for each in members]
    totals = Counter(group for group, _ in pairs)
    alone = {group for group, count in totals.items() if count == 1 or not group}
    if len(alone) == len(totals):
        return [0.0] * len(pairs)
    sizes = Counter(kinds)
    groups: dict[object, Counter[Hashable]] = defaultdict(Counter)
    for (group, _), kind in zip(pairs, kinds, strict=True):
        if group not in alone:
            groups[group][kind] += 1
    prompts, both = (
        Counter(zip(kinds, (prompt for _, prompt in pairs), strict=True)),
        Counter(zip(kinds, pairs, strict=True)),
    )
    values: list[float] = []
    for (group, prompt), kind in zip(pairs, kinds, strict=True):
        if group in alone:
            values.append(0.0)
            continue
        # Answers to the same prompt are of the same kind, so they are subtracted only there.
        same, matching = (prompts[kind, prompt], both[kind, (group, prompt)]) if prompt else (1, 1)
        own = sizes[kind] - same
        chance = 0.0
        if len(groups[group]) > 1:
            others = (mix[other] * count / sizes[other] for other, count in groups[group].items() if other != kind)
            chance = math.fsum(others)
        if own:
            chance += mix[kind] * (groups[group][kind] - matching) / own
        rest = 1.0 if own else 1.0 - mix[kind]
        values.append(chance / rest if rest > 1e-9 else 0.0)
    return values


def level(detector: Detector, windows: Iterable[WindowSample]) -> tuple[float, int]:
    """Return the detector's mean over the sampled answers of these windows, and their number."""
    total, n = 0.0, 0
    for window in windows:
        values = (
            matches(detector, window.measured) if detector.kind == "match" else map(detector.value, window.measured)
        )
        known = [float(value) for value in values if value is not None]
        total += math.fsum(known)
        n += len(known)
    return (total / n if n else math.nan), n


def effect(detector: Detector, before: float, difference: float) -> float:
    """Return the size of a change in margins. It matters above 1; below 0 it is harmless."""
    if detector.kind == "match":
        size = math.sqrt(max(0.0, before + difference)) - math.sqrt(max(0.0, before))
    else:
        size = difference
    size = {"up": size, "down": -size, "both": abs(size)}[detector.direction]
    return size / detector.margin
