"""The gate: an outcome for each metric and one verdict. It fails closed: an unknown outcome never passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from skill_kd.errors import ExitCode
from skill_kd.evaluate.estimates import NULL, Columns, Estimate, estimate, prompts_needed
from skill_kd.evaluate.metrics import KINDS, Kind
from skill_kd.evaluate.policy import GatePolicy, Rules
from skill_kd.report.evaluation_document import Outcome, Reason, Role, Verdict

if TYPE_CHECKING:
    from skill_kd.evaluate.estimates import Array

EXIT_CODES: dict[Verdict, ExitCode] = {
    "GO": ExitCode.OK,
    "NO-GO": ExitCode.NO_GO,
    "INCONCLUSIVE": ExitCode.INCONCLUSIVE,
}

UNIT = 4
"""Fewest standard errors between teacher and narrow half. The unit of retention then has an error of at most 25%."""


@dataclass(frozen=True)
class Metric:
    """One metric, measured and judged."""

    name: str
    kind: Kind
    role: Role
    margin: float | None
    outcome: Outcome
    found: Estimate | None = None
    control: float | None = None
    """The positive control's value."""
    means: tuple[float, float, float | None] | None = None
    """Means of teacher, student and undistilled student behind the estimate."""
    reason: str | None = None
    """The reason if there is no outcome."""
    needed: int | None = None
    """Prompts with which a perfect student passes with 80% power."""

    @property
    def slack(self) -> float:
        """Distance of the deciding bound inside the margin, in standard errors; negative if outside."""
        if self.found is None or self.margin is None:
            return float("-inf")
        inside = self.found.low - self.margin if self.kind.better == "high" else self.margin - self.found.high
        return inside / max(self.found.error, 1e-12)


@dataclass(frozen=True)
class Decision:
    """The verdict, its reason, and the metric that decided it."""

    verdict: Verdict
    reason_code: Reason
    sentence: str
    binding: str | None
    needed: int | None = None

    @property
    def exit_code(self) -> ExitCode:
        """Exit code 0, 3 or 4."""
        return EXIT_CODES[self.verdict]


def judge(
    columns: Mapping[str, Columns],
    absent: Mapping[str, str],
    clusters: Sequence[str | None],
    rows: int,
    policy: GatePolicy,
) -> list[Metric]:
    """Return every metric of the policy, blocking ones first.

    Args:
        columns: values per prompt, by metric.
        absent: the reason why a metric has no values, by metric.
        rows: responses per side and prompt, K.
    """
    metrics = [
        _judged(name, columns.get(name), absent.get(name), clusters, rows, policy) for name in Rules.model_fields
    ]
    return sorted(metrics, key=lambda metric: metric.role != "blocking")


def _judged(
    name: str, columns: Columns | None, why: str | None, clusters: Sequence[str | None], rows: int, policy: GatePolicy
) -> Metric:
    rule, kind = getattr(policy.rules, name), KINDS[name]
    if columns is None:
        return Metric(name, kind, rule.role, rule.margin, "not_measured", reason=why or "it needs both models")
    if columns.known is not None:
        clusters = [cluster for cluster, known in zip(clusters, columns.known, strict=True) if known]
    columns = columns.counted()
    bounds = partial(
        estimate,
        confidence=policy.confidence,
        resamples=policy.resamples,
        seed=policy.seed,
        rows=rows,
        clusters=clusters,
    )
    means = (
        _mean(columns.teacher),
        _mean(columns.student),
        None if columns.baseline is None else _mean(columns.baseline),
    )
    found = bounds(columns, kind.form)
    if found is None:
        return Metric(name, kind, rule.role, rule.margin, "not_measured", means=means, reason=_undefined(columns))
    control = bounds(columns.of(columns.control), kind.form) if columns.control is not None else None
    unit = bounds(Columns(columns.teacher, columns.narrow), "difference") if columns.narrow is not None else None
    blind = rule.margin is not None and _insensitive(kind, rule.margin, control, unit)
    outcome: Outcome = (
        "shown" if rule.margin is None else "insensitive" if blind else _outcome(found, kind, rule.margin)
    )
    target = NULL[kind.form]
    needed = None
    if rule.margin is not None and target is not None and not blind:
        needed = prompts_needed(found, target, rule.margin, len(columns.student))
    return Metric(
        name,
        kind,
        rule.role,
        rule.margin,
        outcome,
        found,
        control.value if control else 0.0 if kind.form == "retention" else None,
        means,
        "it cannot distinguish the teacher from a collapsed teacher (its positive control)" if blind else None,
        needed,
    )


def _mean(values: Array) -> float:
    return float(values.mean())


def _undefined(columns: Columns) -> str:
    import numpy as np

    if not np.isfinite(columns.student).all() or not np.isfinite(columns.teacher).all():
        return "its value for at least one prompt is not a finite number"
    return (
        "the teacher's own value allows no comparison: its responses are too short or too similar, or the value is "
        "at the end of its range"
    )


def _outcome(found: Estimate, kind: Kind, margin: float) -> Outcome:
    low, high = (found.low, found.high) if kind.better == "high" else (-found.high, -found.low)
    least = margin if kind.better == "high" else -margin
    return "pass" if low >= least else "fail" if high < least else "uncertain"


def _insensitive(kind: Kind, margin: float, control: Estimate | None, unit: Estimate | None) -> bool:
    """Return True if the metric would not clearly fail the collapsed teacher if it were the student.

    A retention has the unit teacher − narrow half. A ratio's interval is reliable only if its denominator is well away
    from 0.
    """
    if kind.form == "retention" and (unit is None or unit.value < UNIT * unit.error):
        return True
    return control is not None and _outcome(control, kind, margin) != "fail"


def decide(metrics: Sequence[Metric], prompts: int, samples: int, policy: GatePolicy) -> Decision:
    """Return the verdict. NO-GO needs one blocking metric that fails; GO needs all of them to pass."""
    blocking = [metric for metric in metrics if metric.role == "blocking"]
    if prompts < policy.least_prompts:
        return _inconclusive(
            "too_few_prompts",
            f"too few prompts for a verdict: {prompts}; the policy requires at least {policy.least_prompts}, and 200 "
            "are recommended",
            needed=policy.least_prompts,
        )
    if samples < policy.least_samples:
        return _inconclusive(
            "too_few_samples",
            f"too few responses for a verdict: {samples} per prompt, and twice as many from the teacher; the policy "
            f"requires at least {policy.least_samples}, and {policy.samples} are recommended",
        )
    if not blocking:
        return _inconclusive("not_measured", "the policy has no blocking metric, so no student could fail")
    failed = [metric for metric in blocking if metric.outcome == "fail"]
    if failed:
        worst = min(failed, key=lambda metric: metric.slack)
        return Decision("NO-GO", "below_margin", f"NO-GO: {described(worst)}.", worst.name)
    for outcome, reason in _NOT_KNOWN.items():
        unknown = [metric for metric in blocking if metric.outcome == outcome]
        if unknown:
            worst = min(unknown, key=lambda metric: metric.slack)
            return _inconclusive(reason, described(worst), worst.name, worst.needed if outcome == "uncertain" else None)
    closest = min(blocking, key=lambda metric: metric.slack)
    sentence = f"GO: all {len(blocking)} blocking metrics pass. Closest to its margin: {described(closest)}."
    return Decision("GO", "all_passed", sentence, closest.name)


_NOT_KNOWN: dict[Outcome, Reason] = {
    "not_measured": "not_measured",
    "insensitive": "metric_insensitive",
    "uncertain": "uncertain",
}


def _inconclusive(reason: Reason, why: str, binding: str | None = None, needed: int | None = None) -> Decision:
    more = f"; about {needed} prompts would be enough for a student like its teacher" if binding and needed else ""
    return Decision("INCONCLUSIVE", reason, f"INCONCLUSIVE: {why}{more}.", binding, needed)


def described(metric: Metric) -> str:
    """Describe one metric in words: its value, the bound that decides, and the policy's margin."""
    title = f"{metric.name.replace('_', ' ')}"
    if metric.found is None:
        return f"{title} could not be measured: {metric.reason}"
    estimate = f"{title} is {_shown(metric.found.value, metric.kind)}"
    if metric.margin is None:
        return estimate
    if metric.outcome == "insensitive":
        return f"{estimate}, but {metric.reason}"
    low_counts = (metric.kind.better == "high") != (metric.outcome == "fail")
    bound = (
        f"lower bound {_shown(metric.found.low, metric.kind)}"
        if low_counts
        else f"upper bound {_shown(metric.found.high, metric.kind)}"
    )
    required = "requires at least" if metric.kind.better == "high" else "allows at most"
    return f"{estimate} ({bound}), and the policy {required} {_shown(metric.margin, metric.kind)}"


def _shown(value: float, kind: Kind) -> str:
    if kind.form == "difference" and kind.unit == "share":
        return f"{100 * value:+.1f} points"
    return f"{value:+.3f}" if kind.form == "difference" else f"{value:.3f}"
