"""A diagnosis as one HTML file, in the style of the evaluation report."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from skill_kd.diagnose.changes.detectors import BY_KEY, DETECTORS, Detector
from skill_kd.diagnose.report.diagnosis_result import Diagnosis
from skill_kd.diagnose.report.log_findings import LogFinding, Phrase
from skill_kd.diagnose.report.text import REPLAY, cause, causes, explained_in_words, gap, shown
from skill_kd.files import write_or_refuse
from skill_kd.guidance import BY_KEY as GUIDANCE
from skill_kd.report.markup import Markup, join, tag
from skill_kd.report.page import PageSection, bullets, folded, page, pairs, paragraph, sample, verdict
from skill_kd.report.plots import Line, Mark, line_plot
from skill_kd.report.tables import Column, table

_TONES = {"findings": "fail", "nothing found": "plain", "too little data": "uncertain"}


def write_page(found: Diagnosis, path: Path) -> None:
    """Write the page, readable only by its owner.

    Raises:
        UsageError: it cannot be written.
    """
    write_or_refuse(path, html(found), private=True)


def html(found: Diagnosis) -> str:
    """Return the page. Text of the log is in it only on request; it is redacted before and escaped here."""
    sections = [*(_finding(found, each) for each in found.findings), *_explained(found), _series(found), _input(found)]
    count = len(found.findings)
    sentence = (
        "; ".join(
            (f"{count} finding{'s' * (count > 1)}: {', '.join(each.key for each in found.findings)}", *causes(found))
        )
        if count
        else "no change that the detectors can see; see below for the smallest change that they would have detected"
    )
    head = join(
        [tag("h1", "Diagnosis of production logs"), verdict(found.status.upper(), _TONES[found.status], sentence)]
    )
    foot = paragraph("These are proposals; nothing was changed. Redacted text is not anonymous.")
    return page("Diagnosis", head, sections, data=found.to_json(), foot=foot)


def _finding(found: Diagnosis, finding: LogFinding) -> PageSection:
    entry = GUIDANCE[finding.key]
    since = f" since {found.when(finding.at)}" if finding.at is not None else ""
    rows = [
        (
            sign.detector.label,
            found.when(sign.at) if sign.at is not None else "whole log",
            shown(sign.detector, sign.before),
            shown(sign.detector, sign.after),
            gap(sign.detector, sign.difference),
            f"{gap(sign.detector, sign.low)} to {gap(sign.detector, sign.high)}",
            sum(sign.answers),
        )
        for sign in finding.signs
    ]
    columns = ("Sign", "Since", "Before", "After", "Like for like", "95 % interval", Column("Answers", numeric=True))
    likely = finding.deployment and cause(found, finding.deployment, finding.signs)
    content = [
        paragraph(entry.means[:1].upper() + entry.means[1:], "."),
        *([paragraph("Likely cause: ", likely, ".")] if likely else []),
        table("Measured on sampled answers", columns, rows),
        *_plots(found, [sign.detector for sign in finding.signs], _marks(found, finding)),
        *_phrases("Openings that became frequent", finding.openings),
        *_phrases("Answers that are nearly identical", finding.clusters),
        tag("h3", "What to try, cheapest first"),
        bullets([f"{each.do} ({each.cost}; {each.evidence})" for each in entry.remedies]),
        paragraph("Against it: ", entry.against),
        tag("h3", "What else it could be"),
        bullets(list(finding.could_be)),
    ]
    if finding.examples:
        answers = [sample(each, f"Answer {number}") for number, each in enumerate(finding.examples, 1)]
        content.append(folded("Examples, redacted", *answers))
    return PageSection(f"finding-{finding.key}", f"{finding.key}{since}", content, finding.key)


def _phrases(title: str, phrases: Sequence[Phrase]) -> list[Markup]:
    if not phrases:
        return []
    texts = any(each.text is not None for each in phrases)
    columns: list[Column | str] = [
        "Id",
        Column("Before, %", True, 1),
        Column("After, %", True, 1),
        Column("Kinds of prompts", True),
    ]
    rows = [
        [each.id, 100 * each.before, 100 * each.after, each.topics, *([each.text or ""] if texts else [])]
        for each in phrases
    ]
    return [table(title, [*columns, *(["Text, redacted"] if texts else [])], rows)]


def _explained(found: Diagnosis) -> list[PageSection]:
    if not found.explained:
        return []
    rows = [
        (
            sign.detector.label,
            found.when(sign.at or 0),
            f"{shown(sign.detector, sign.before)} → {shown(sign.detector, sign.after)}",
            explained_in_words(sign),
        )
        for sign in found.explained
    ]
    content = [
        table("Changes that disappear in a like-for-like comparison", ("Sign", "Since", "Change", "Explained by"), rows)
    ]
    return [PageSection("explained", "Changes that something else explains", content, "explained")]


def _series(found: Diagnosis) -> PageSection:
    rest = [
        each for each in DETECTORS if each.key not in {sign.detector.key for f in found.findings for sign in f.signs}
    ]
    lines = [
        Line(name, _times(found), [each.lengths[name] for each in found.points]) for name in found.points[0].lengths
    ]
    deployed = list(dict.fromkeys(mark for each in found.findings for mark in _deployed(found, each)))
    lengths = line_plot(
        "Length of all answers", "Quantiles of all answers.", lines, x=_axis(found), y="characters", changes=deployed
    )
    return PageSection("series", "All detectors over time", [*_plots(found, rest, deployed), lengths], "over time")


def _marks(found: Diagnosis, finding: LogFinding) -> list[Mark]:
    """Return the mark of a finding's change. A deployment in the same window is marked instead of it."""
    deployed = _deployed(found, finding)
    changed = [Mark(_times(found)[finding.at], "change")] if finding.at is not None else []
    return deployed + [mark for mark in changed if mark.at not in [each.at for each in deployed]]


def _deployed(found: Diagnosis, finding: LogFinding) -> list[Mark]:
    if finding.deployment is None:
        return []
    return [Mark(_times(found)[finding.deployment.at], f"{finding.deployment.version} deployed")]


def _plots(found: Diagnosis, detectors: Sequence[Detector], changes: Sequence[Mark]) -> list[Markup]:
    plots = []
    for detector in detectors:
        scale = 100.0 if detector.kind != "mean" else 1.0
        values = [each.values[detector.key] for each in found.points]
        series = [
            [None if v is None else scale * v for v in each]
            for each in zip(*((v.value, v.low, v.high) for v in values), strict=True)
        ]
        unit = {"share": "% of answers", "match": "% of pairs", "mean": detector.label}[detector.kind]
        line = Line(detector.label, _times(found), series[0], series[1], series[2])
        note = "Sampled answers of each window, with 95 % intervals."
        plots.append(line_plot(BY_KEY[detector.key].label, note, [line], x=_axis(found), y=unit, changes=changes))
    return plots


def _times(found: Diagnosis) -> list[datetime] | list[float]:
    if found.by_day:
        return [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=each.start) for each in found.points]
    return [float(each.start + 1) for each in found.points]


def _axis(found: Diagnosis) -> str:
    return "day (UTC)" if found.by_day else "line"


def _input(found: Diagnosis) -> PageSection:
    scan = found.scan
    facts = [
        ("Answers", scan.rows),
        ("Lines", scan.lines),
        ("Skipped", ", ".join(f"{count} {reason}" for reason, count in scan.drops.most_common()) or "none"),
        ("Formats", ", ".join(sorted(set(scan.formats.values())))),
        ("Windows", len(found.points)),
        ("Sampled", sum(each.sampled for each in found.points)),
    ]
    columns = (
        "Window",
        Column("Answers", True),
        Column("Sampled", True),
        Column("Repeated answers, %", True, 1),
        Column("Top opening, %", True, 1),
        Column("Entropy of openings, nats", True, 2),
        "Finish reasons",
    )
    rows = [
        (
            found.when(number),
            each.rows,
            each.sampled,
            None if each.repeated.value is None else 100 * each.repeated.value,
            100 * each.top_opening,
            each.opening_entropy,
            ", ".join(f"{reason} {count / each.rows:.1%}" for reason, count in each.finishes.items()),
        )
        for number, each in enumerate(found.points)
    ]
    content = [pairs(facts), table("Windows", columns, rows, filtered=True), bullets([*found.notes, REPLAY])]
    return PageSection("input", "What was read", content, "input")
