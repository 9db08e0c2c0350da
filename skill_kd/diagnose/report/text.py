"""A diagnosis as text for a terminal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from skill_kd.diagnose.changes.change_signs import Deployment, Sign
from skill_kd.diagnose.changes.detectors import DETECTORS, Detector
from skill_kd.diagnose.report.log_findings import LogFinding
from skill_kd.diagnose.report.pilot import PROMPTS, SAMPLES
from skill_kd.errors import command
from skill_kd.guidance import BY_KEY

if TYPE_CHECKING:
    from skill_kd.diagnose.report.diagnosis_result import Diagnosis

REPLAY = (
    f"let student and teacher answer {PROMPTS} prompts of the log {SAMPLES} times each, with the same settings; only "
    "repeated prompts can distinguish lost modes from sharpening"
)
_FACTOR = {
    "prompt mix": "the prompts changed",
    "temperature": "the serving temperature changed",
    "max_tokens": "the length limit changed",
    "system prompt": "the system prompt changed",
    "model version": "another model version was served at the same time; compare both versions with equal settings",
    "several settings together": "several settings changed together; compare them one by one",
}


def shown(detector: Detector, value: float) -> str:
    """Return a detector's value as text."""
    if math.isnan(value):
        return "-"
    if detector.kind == "share":
        return f"{value:.1%}"
    if detector.kind == "match":
        return f"{value:.2%} of pairs"
    return f"{math.expm1(value):.0f} characters" if detector.key == "length" else f"{value:.3f}"


def gap(detector: Detector, value: float) -> str:
    """Return the difference of two values of a detector as text."""
    if not math.isfinite(value):
        return "-"
    if detector.kind == "share":
        return f"{100 * value:+.1f} points"
    if detector.kind == "match":
        return f"{100 * value:+.1f} points of pairs"
    return f"{math.expm1(value):+.0%}" if detector.key == "length" else f"{value:+.3f}"


def causes(found: Diagnosis) -> list[str]:
    """Return one sentence for each deployment that is the likely cause of findings."""
    grouped: dict[Deployment, list[Sign]] = {}
    for finding in found.findings:
        if finding.deployment is not None:
            grouped.setdefault(finding.deployment, []).extend(finding.signs)
    return [cause(found, deployment, signs) for deployment, signs in grouped.items()]


def cause(found: Diagnosis, deployment: Deployment, signs: Sequence[Sign]) -> str:
    """Return what changed with a deployment, and what to compare. Pairs are named only if nothing else changed."""
    changed = [sign for sign in signs if sign.deployment is not None]
    changed = [sign for sign in changed if sign.detector.kind != "match"] or changed
    changes = ", ".join(f"{sign.detector.label} {gap(sign.detector, sign.difference)}" for sign in changed)
    new, old = deployment.version, deployment.instead_of
    return f"since version {new}, deployed {found.when(deployment.at)}: {changes}; compare {new} with {old}"


def terminal(found: Diagnosis) -> str:
    """Return the whole diagnosis as text."""
    return "\n".join(_lines(found))


def _lines(found: Diagnosis) -> Iterator[str]:
    yield from _input(found)
    yield ""
    yield _headline(found)
    yield from (f"likely cause: {sentence}" for sentence in causes(found))
    for number, finding in enumerate(found.findings, 1):
        yield ""
        yield from _finding(found, number, finding)
    if found.explained:
        yield ""
        yield "changes that something else explains (not findings)"
        for sign in found.explained:
            yield f"  {_change(found, sign)}"
            yield f"    {explained_in_words(sign)}"
    if found.notes:
        yield ""
        yield from (f"note: {note}" for note in found.notes)
    if found.findings:
        yield ""
        yield from _next(found)


def _input(found: Diagnosis) -> Iterator[str]:
    scan = found.scan
    formats = Counter(scan.formats.values())
    yield f"read      {scan.rows} answers from {scan.lines} lines as {', '.join(formats)} (--format overrides it)"
    if scan.drops:
        yield f"skipped   {', '.join(f'{count} {reason}' for reason, count in scan.drops.most_common())}"
    unit = "day" if found.by_day else "line"
    span = scan.windows.width
    first, last = found.when(0), found.when(len(found.points) - 1)
    yield f"windows   {len(found.points)} of {span} {unit}{'s' * (span > 1)}, {first} to {last}"
    sampled = sum(point.sampled for point in found.points)
    yield f"sample    {sampled} answers; hashes, lengths and finish reasons are counted on all answers"


def _headline(found: Diagnosis) -> str:
    if found.findings:
        return f"{len(found.findings)} finding{'s' * (len(found.findings) > 1)}, strongest first"
    if found.status == "too little data":
        return "too little data: at least 6 windows and 200 answers are needed; --baseline compares without dates"
    return f"nothing found. Smallest detectable change in the middle of the log: {', '.join(_seen(found))}"


def _seen(found: Diagnosis) -> Iterator[str]:
    for detector in DETECTORS:
        step = found.seen.get(detector.key)
        if step is not None:
            size = gap(detector, step).removesuffix(" of pairs").lstrip("+")
            yield f"{detector.label} {size}{' of the answers' * (detector.kind == 'match')}"


def _finding(found: Diagnosis, number: int, finding: LogFinding) -> Iterator[str]:
    entry = BY_KEY[finding.key]
    since = f" since {found.when(finding.at)}" if finding.at is not None else ""
    yield f"{number}. {finding.key}{since}: {entry.means}"
    if finding.deployment is not None:
        yield f"   cause    model version {finding.deployment.version}, deployed {found.when(finding.deployment.at)}"
    yield from (f"   sign     {_change(found, sign)}" for sign in finding.signs)
    for title, phrases in (("opening", finding.openings), ("cluster", finding.clusters)):
        for phrase in phrases[:3]:
            text = f"  {' '.join(phrase.text.split())}" if phrase.text is not None else ""
            yield f"   {title}  {phrase.id}: {phrase.before:.1%} → {phrase.after:.1%} of answers{text}"
    yield from (f"   example  {' '.join(each.split())}" for each in finding.examples[:3])
    yield from (f"   do {place}     {each.do} [{each.evidence}]" for place, each in enumerate(entry.remedies, 1))
    yield f"   against  {entry.against}"
    yield f"   could be {'; '.join(finding.could_be)}"


def _change(found: Diagnosis, sign: Sign) -> str:
    label, answers = sign.detector.label, f"{sign.answers[0]} and {sign.answers[1]} sampled answers"
    if sign.verdict == "level":
        share = shown(sign.detector, sign.after)
        return f"{label}: {share} in the whole log, at least {sign.low:.1%} ({sign.answers[1]} sampled answers)"
    sides = f"{shown(sign.detector, sign.before)} → {shown(sign.detector, sign.after)}"
    difference, low, high = (gap(sign.detector, each) for each in (sign.difference, sign.low, sign.high))
    compared = "all answers" if sign.verdict == "explained" else "like for like"
    like = f"{compared} {difference}, 95% interval {low} to {high}"
    who = "teacher → student" if sign.verdict == "teacher" else f"since {found.when(sign.at or 0)}"
    return f"{label} {who}: {sides}; {like} ({answers})"


def _next(found: Diagnosis) -> Iterator[str]:
    yield "next"
    yield f"  {REPLAY}{f': {found.replay}' if found.replay else ' (--replay FILE writes the prompts)'}"
    if found.pilot is None:
        yield "  --spec SPEC writes a pilot: two specs that differ in one setting"
    else:
        one, two = found.pilot.files
        pilot = found.pilot
        yield f"  pilot against '{pilot.finding}': {pilot.path}: {pilot.before} → {pilot.after}"
        yield f"    {command('skill-kd', 'run', one)} && {command('skill-kd', 'run', two)}"
        yield "    then evaluate both; they differ in nothing else"


def explained_in_words(sign: Sign) -> str:
    """Return why a change is not a finding."""
    return "; ".join(f"{each}: {_FACTOR[each]}" for each in sign.explained_by)
