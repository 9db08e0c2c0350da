"""Findings: ranked groups of related signs, with their evidence and other possible explanations."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from skill_kd.diagnose.changes.change_signs import Deployment, Sign
from skill_kd.diagnose.changes.measures import OPENING, MeasuredAnswer, WindowSample
from skill_kd.diagnose.changes.windows import NOT_LOGGED, text_hash
from skill_kd.diagnose.report.redact import redact
from skill_kd.textstats import opening, words

SHOWN = 8
"""Openings, clusters and examples shown."""


@dataclass(frozen=True)
class Phrase:
    """An opening of answers, or a cluster of nearly identical answers."""

    id: str
    before: float
    after: float
    """Share of the sampled answers, before and after the change."""
    topics: int
    """Number of topics whose prompts it answers."""
    text: str | None
    """Redacted text; None unless examples were requested."""


@dataclass(frozen=True)
class LogFinding:
    """Signs with the same meaning. ``key`` is a key of ``skill_kd.guidance``."""

    key: str
    signs: tuple[Sign, ...]
    """Strongest first."""
    could_be: tuple[str, ...]
    """Other possible explanations."""
    openings: tuple[Phrase, ...] = ()
    clusters: tuple[Phrase, ...] = ()
    examples: tuple[str, ...] = ()
    """Redacted answers; empty unless requested."""
    deployment: Deployment | None = None
    """The likely cause, by the strongest sign. A name with unusual characters is replaced by an id."""

    @property
    def at(self) -> int | None:
        """First window of the change, by the strongest sign."""
        return self.signs[0].at


def strength(sign: Sign) -> float:
    """Return effect times confidence, which orders findings and their signs."""
    confidence = min(1.0, -math.log10(max(sign.p, 1e-12)) / 6)
    return min(sign.effect, 10.0) * confidence


def group(
    signs: Iterable[Sign], windows: Sequence[WindowSample], name: Callable[[int], str], examples: bool
) -> list[LogFinding]:
    """Return one finding for each kind of sign, strongest first.

    Args:
        signs: signs that are not explained.
        windows: windows of the signs.
        name: function from a hash to its id in this report.
        examples: include redacted text.
    """
    kinds: dict[str, list[Sign]] = defaultdict(list)
    for sign in sorted(signs, key=strength, reverse=True):
        kinds[sign.detector.finding].append(sign)
    return [_finding(key, kind, windows, name, examples) for key, kind in kinds.items()]


def _finding(
    key: str, signs: Sequence[Sign], windows: Sequence[WindowSample], name: Callable[[int], str], examples: bool
) -> LogFinding:
    at = signs[0].at or 0
    before, after = (_rows(part) for part in (windows[:at], windows[at:]))
    shown = name if key in ("sameness", "refusals") else None
    return LogFinding(
        key,
        tuple(signs),
        _could_be(signs, windows),
        _openings(before, after, shown, examples) if shown else (),
        _clusters(before, after, shown, examples) if key == "sameness" and shown else (),
        _examples(after, signs[0]) if examples else (),
        _named(signs[0].deployment, name),
    )


def _named(deployment: Deployment | None, name: Callable[[int], str]) -> Deployment | None:
    if deployment is None:
        return None

    def plain(version: str) -> str:
        short = re.fullmatch(r"[A-Za-z0-9][\w.:/@+-]{0,63}", version, re.ASCII) and redact(version) == version
        return version if short or version == NOT_LOGGED else f"id {name(text_hash(version))}"

    return replace(deployment, version=plain(deployment.version), instead_of=plain(deployment.instead_of))


def _rows(windows: Iterable[WindowSample]) -> list[MeasuredAnswer]:
    return [each for window in windows for each in window.measured]


def _could_be(signs: Sequence[Sign], windows: Sequence[WindowSample]) -> tuple[str, ...]:
    """Return fixed sentences, without text of the log."""
    rows = _rows(windows)
    found = []
    if not any(each.row.prompt for each in rows):
        found.append("the log has no prompts, so a change of the prompts would look the same")
    for place, what in ((1, "temperature"), (2, "max_tokens")):
        if all(each.setting[place] == NOT_LOGGED for each in rows):
            found.append(f"the log does not have the {what}, so a change of it would look the same")
    if all(each.setting[0] == NOT_LOGGED for each in rows):
        found.append("the log does not have the model version, so a new version cannot be named as the cause")
    if any(sign.verdict == "teacher" for sign in signs):
        found.append("the teacher's log may have other prompts of the same kinds")
    if signs[0].at is not None and len(windows) - signs[0].at <= 2:
        found.append("only the last two windows differ, so an event on these days would look the same")
    found.append("the prompts changed in a way that their words and length do not show")
    return tuple(found)


def _openings(
    before: Sequence[MeasuredAnswer], after: Sequence[MeasuredAnswer], name: Callable[[int], str], examples: bool
) -> tuple[Phrase, ...]:
    texts = {each.opening: each for each in reversed(after)}

    def text(key: int) -> str:
        # Words are in lower case, without signs: no secret would still have its format.
        return " ".join(opening(words(redact(texts[key].row.output)), OPENING))

    return _phrases(before, after, lambda each: each.opening, name, text if examples else None)


def _clusters(
    before: Sequence[MeasuredAnswer], after: Sequence[MeasuredAnswer], name: Callable[[int], str], examples: bool
) -> tuple[Phrase, ...]:
    """Return clusters. Their key is a hash of the answer, because a cluster's number is valid only in its window."""
    texts = {each.row.output_hash: each for each in after}

    def key(each: MeasuredAnswer) -> int:
        return each.row.output_hash if each.near else 0

    return _phrases(
        before, after, key, name, (lambda hashed: redact(texts[hashed].row.output, 160)) if examples else None
    )


def _phrases(
    before: Sequence[MeasuredAnswer],
    after: Sequence[MeasuredAnswer],
    key: Callable[[MeasuredAnswer], int],
    name: Callable[[int], str],
    text: Callable[[int], str] | None,
) -> tuple[Phrase, ...]:
    """Return the phrases that grew most, by the difference of their shares."""
    counts = [Counter(filter(None, map(key, side))) for side in (before, after)]
    shares = [
        {each: count / len(side) for each, count in counter.items()}
        for counter, side in zip(counts, (before, after), strict=True)
    ]
    topics: dict[int, set[int]] = defaultdict(set)
    for each in after:
        topics[key(each)].add(each.topic)
    repeated = [each for each, count in counts[1].items() if count > 1]
    top = sorted(repeated, key=lambda each: (shares[0].get(each, 0.0) - shares[1][each], each))[:SHOWN]
    return tuple(
        Phrase(name(each), shares[0].get(each, 0.0), shares[1][each], len(topics[each]), text(each) if text else None)
        for each in top
    )


def _examples(after: Sequence[MeasuredAnswer], sign: Sign) -> tuple[str, ...]:
    """Return answers that the strongest detector found, each text once."""
    detector = sign.detector
    if detector.kind == "mean":
        rows = sorted(
            (each for each in after if detector.value(each) is not None), key=lambda each: detector.value(each) or 0.0
        )
        if sign.difference > 0:
            rows.reverse()
    else:
        counts = Counter(detector.value(each) for each in after)
        rows = [each for each in after if detector.value(each)]
        if detector.kind == "match":
            rows.sort(key=lambda each: -counts[detector.value(each)])
    unique = {each.row.output_hash: each for each in reversed(rows)}
    return tuple(redact(each.row.output) for each in list(reversed(unique.values()))[:SHOWN])
