"""An evaluation's result, as data and as text for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skill_kd.evaluate.estimates import NULL
from skill_kd.evaluate.gate import Decision, Metric
from skill_kd.evaluate.inspection import Inspection
from skill_kd.evaluate.measurements import ShownMeasurements
from skill_kd.files import write_atomically
from skill_kd.report.evaluation_document import EvaluationDocument, MetricRow, Reproduction
from skill_kd.report.shown_document import HarnessComparison

FORMAT = 1
HARNESS_ROWS = 20
"""Largest number of harness rows that a terminal shows."""
NOT_COVERED = (
    "facts, safety, bias and tool use: no metric checks what a response claims",
    "other kinds of prompts, other languages, and conversations of several turns",
    "refusals are found by phrases, mostly English ones; other wordings are missed on both sides",
    "responses are compared by their words, so a paraphrase counts as a different response",
)


@dataclass(frozen=True)
class EvaluationResult:
    """A verdict and everything behind it."""

    decision: Decision
    metrics: list[Metric]
    warnings: list[str]
    inspection: Inspection
    shown: ShownMeasurements
    reproduction: Reproduction

    def to_json(self) -> EvaluationDocument:
        """Return JSON-ready values; a missing number is None."""
        return {
            "format": FORMAT,
            "kind": "evaluation",
            "verdict": self.decision.verdict,
            "exit_code": int(self.decision.exit_code),
            "sentence": self.decision.sentence,
            "reason_code": self.decision.reason_code,
            "binding_metric": self.decision.binding,
            "prompts_needed": self.decision.needed,
            "warnings": self.warnings,
            "metrics": [_row(metric, self.reproduction["prompts"]) for metric in self.metrics],
            "slices": self.inspection.slices,
            "lost_modes": self.inspection.lost_modes,
            "examples": self.inspection.examples,
            "lengths": self.inspection.lengths,
            "latency": self.shown.latency,
            "judge": self.shown.judge,
            "harness": self.shown.harness,
            "curves": {"exposure": self.shown.exposure, "calibration": self.shown.calibration, "temperature": []},
            "known_not_covered": list(NOT_COVERED),
            "reproduction": self.reproduction,
        }

    def write(self, path: Path) -> None:
        """Write the JSON atomically."""
        write_atomically(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")

    def table(self) -> str:
        """Return the verdict and the metrics for a terminal."""
        return "\n".join(_lines(self))


def _row(metric: Metric, prompts: int) -> MetricRow:
    found, (teacher, student, baseline) = metric.found, metric.means or (None, None, None)
    return {
        "name": metric.name,
        "title": metric.kind.title,
        "unit": metric.kind.unit,
        "role": metric.role,
        "form": metric.kind.form,
        "better": metric.kind.better,
        "estimate": _finite(found.value if found else None),
        "low": _finite(found.low if found else None),
        "high": _finite(found.high if found else None),
        "margin": metric.margin,
        "null": NULL[metric.kind.form],
        "control": _finite(metric.control),
        "teacher": _finite(teacher),
        "student": _finite(student),
        "baseline": _finite(baseline),
        "outcome": metric.outcome,
        "reason": metric.reason,
        "prompts": prompts,
        "detectable": _finite(found.detectable() if found else None),
        "prompts_needed": metric.needed,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _lines(evaluation: EvaluationResult) -> Iterator[str]:
    yield evaluation.decision.sentence
    yield ""
    baseline = any(metric.means and metric.means[2] is not None for metric in evaluation.metrics)
    heading = f"{'metric':<20}{'estimate':>10}  {'bounds':<20}{'margin':>8}{'teacher':>9}{'student':>9}"
    yield heading + f"{'baseline':>10}" * baseline + "  outcome"
    for role in ("blocking", "advisory"):
        rows = [m for m in evaluation.metrics if m.role == role and (m.found or role == "blocking")]
        if rows:
            yield f"{role}:"
            yield from (_line(metric, baseline) for metric in rows)
    yield from _harness_lines(evaluation.shown.harness)
    yield ""
    yield from (f"warning: {each}" for each in evaluation.warnings)
    about = evaluation.reproduction
    yield (
        f"{about['prompts']} prompts, {about['samples']} responses each, {about['word_budget']} words compared; "
        f"policy {about['policy_name']} {about['policy_hash'][:12]}"
    )


def _line(metric: Metric, with_baseline: bool) -> str:
    name = f"  {metric.name:<18}"
    if metric.found is None:
        return f"{name}{'–':>10}  {metric.outcome.replace('_', ' ')}: {metric.reason}"
    bounds = f"{metric.found.low:.3f} … {metric.found.high:.3f}"
    margin = "–" if metric.margin is None else f"{metric.margin:.3f}"
    teacher, student, baseline = metric.means or (math.nan, math.nan, None)
    values = f"{metric.found.value:>10.3f}  {bounds:<20}{margin:>8}{teacher:>9.3f}{student:>9.3f}"
    return name + values + _number(baseline, 10) * with_baseline + f"  {metric.outcome}"


def _harness_lines(harness: HarnessComparison | None) -> Iterator[str]:
    if harness is None:
        return
    yield "harness (retention of the teacher's score; does not affect the verdict):"
    for row in harness["rows"][:HARNESS_ROWS]:
        bounds = "" if row["low"] is None else f"{row['low']:.3f} … {row['high']:.3f}"
        name = "  " + " ".join(f"{row['task']} {row['metric']}".split())
        sides = _number(row["teacher"], 17) + _number(row["student"], 9)
        yield f"{name:<20}{_number(row['retention'], 10)}  {bounds:<20}{sides}  {row['reason'] or ''}".rstrip()
    if rest := harness["rows"][HARNESS_ROWS:]:
        yield f"  {len(rest)} more in the report"


def _number(value: float | None, width: int) -> str:
    return f"{'–':>{width}}" if value is None else f"{value:>{width}.3f}"
