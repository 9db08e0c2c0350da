"""Judge saved generations: read, pair, measure, decide."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from skill_kd.evaluate import gate, metrics, sides
from skill_kd.evaluate.estimates import Columns, require_scipy
from skill_kd.evaluate.evaluation_result import EvaluationResult
from skill_kd.evaluate.generations import Generations, read_generations, read_prompts, refuse_overlap
from skill_kd.evaluate.inspection import Inspection, inspect
from skill_kd.evaluate.measurements import NOTHING_MEASURED, ModelMeasurements
from skill_kd.evaluate.pairwise_judge import Judge, compare
from skill_kd.evaluate.policy import GatePolicy
from skill_kd.evaluate.reproduction import reproduction
from skill_kd.evaluate.samples import Samples, pair, with_references

FEW_WORDS = 5
"""Word budget below which a warning is given: 5 words have at most 9 features (words and word pairs)."""


@dataclass(frozen=True)
class Files:
    """The generation files, and the files that belong to them."""

    teacher: Path
    student: Path
    baseline: Path | None = None
    """Generations of the undistilled student."""
    control: Path | None = None
    """Generations of the collapsed teacher."""
    prompts: Path | None = None
    """Prompts with ``reference``, ``category`` and ``cluster``, if the generations do not carry them."""
    training: Path | None = None
    """Training data. Its prompts must not be among the evaluated ones."""


def evaluate_generations(
    files: Files,
    policy: GatePolicy,
    *,
    scorer: metrics.Scorer = metrics.rouge_l,
    judge: Judge | None = None,
    measured: ModelMeasurements = NOTHING_MEASURED,
) -> EvaluationResult:
    """Judge saved generations.

    Args:
        scorer: (prompt, response, references) -> 0 … 1; ROUGE-L by default.
        judge: the judge that compares two responses; None for no judge.
        measured: the measurements that needed the models.

    Raises:
        UsageError: a file cannot be used, a side lacks prompts, or prompts are also in the training data.
        MissingRequirementError: scipy is not installed.
    """
    require_scipy()
    started = time.monotonic()
    read = {
        role: read_generations(path, 2 * policy.samples)
        for role in ("teacher", "student", "baseline", "control")
        if (path := getattr(files, role)) is not None
    }
    if files.training is not None:
        refuse_overlap(read["teacher"].prompts, files.training)
    samples = pair(read["teacher"], read["student"], read.get("baseline"), read.get("control"), samples=policy.samples)
    if files.prompts is not None:
        samples = with_references(samples, list(read["teacher"].prompts), read_prompts(files.prompts))
    if judge is not None and samples.count:
        measured = _judged(measured, judge, samples)
    return _evaluated(samples, read, policy, scorer, measured, started)


def without_prompts(policy: GatePolicy) -> EvaluationResult:
    """Return an evaluation without prompts, for results that do not affect a verdict."""
    nobody = Samples([], [], [], None, None, ())
    return _evaluated(nobody, {}, policy, metrics.rouge_l, NOTHING_MEASURED, time.monotonic())


def _judged(measured: ModelMeasurements, judge: Judge, samples: Samples) -> ModelMeasurements:
    """Add what the judge said. Unusable answers give a warning; with too many, the metric is not measured."""
    comparison = compare(judge, samples)
    columns, problem = comparison.columns, comparison.problem
    return replace(
        measured,
        columns={**measured.columns, **({} if columns is None else {"judge": columns})},
        absent={**measured.absent, **({"judge": problem} if columns is None and problem else {})},
        shown=replace(measured.shown, judge=comparison.counts),
        warnings=(*measured.warnings, *([problem] if problem else [])),
    )


def _evaluated(
    samples: Samples,
    read: Mapping[str, Generations],
    policy: GatePolicy,
    scorer: metrics.Scorer,
    measured: ModelMeasurements,
    started: float,
) -> EvaluationResult:
    enough = len(samples.prompts) >= 2 and samples.count >= 2
    compared = _compare(samples, policy) if enough else None
    columns: dict[str, Columns] = dict(measured.columns)
    absent = {"judge": "no judge was given", **measured.absent}
    if compared is None:
        columns, absent = {}, dict.fromkeys(metrics.KINDS, "it needs two prompts with two responses each")
    else:
        columns |= {**metrics.deciding_columns(compared), **metrics.shown_columns(compared)}
        _add_quality(columns, absent, samples, scorer)
    columns = _with_baseline(columns, samples, policy) if compared else columns
    clusters = [prompt.cluster for prompt in samples.prompts]
    judged = gate.judge(columns, absent, clusters, samples.count, policy)
    independent = len({cluster if cluster is not None else index for index, cluster in enumerate(clusters)})
    decision = gate.decide(judged, independent, samples.count, policy)
    return EvaluationResult(
        decision,
        judged,
        _warnings(samples, policy, independent, measured, compared),
        inspect(compared, samples, columns, decision.binding) if compared else Inspection(),
        measured.shown,
        reproduction(samples, read, policy, compared, measured, started),
    )


def _compare(samples: Samples, policy: GatePolicy) -> sides.Compared:
    count = samples.count
    return sides.compare(
        sides.read_side([row[:count] for row in samples.teacher]),
        sides.read_side([row[count:] for row in samples.teacher]),
        sides.read_side(samples.student),
        sides.read_side(samples.control) if samples.control else None,
        policy.word_budget,
    )


def _add_quality(columns: dict[str, Columns], absent: dict[str, str], samples: Samples, scorer: metrics.Scorer) -> None:
    referenced = sum(bool(prompt.references) for prompt in samples.prompts)
    if referenced == len(samples.prompts) or scorer is not metrics.rouge_l:
        columns["quality"] = metrics.quality(samples, scorer)
    elif referenced:
        absent["quality"] = f"only {referenced} of {len(samples.prompts)} prompts have a 'reference'"
    else:
        absent["quality"] = "no prompt has a 'reference', and no scorer was given"


def _with_baseline(columns: Mapping[str, Columns], samples: Samples, policy: GatePolicy) -> dict[str, Columns]:
    """Measure the undistilled student in the same way as the student, for comparison."""
    if samples.baseline is None:
        return dict(columns)
    other = _compare(Samples(samples.prompts, samples.teacher, samples.baseline, None, None, ()), policy)
    theirs = {**metrics.deciding_columns(other), **metrics.shown_columns(other)}
    return {
        name: replace(each, baseline=theirs[name].student) if name in theirs else each for name, each in columns.items()
    }


def _warnings(
    samples: Samples, policy: GatePolicy, independent: int, measured: ModelMeasurements, compared: sides.Compared | None
) -> list[str]:
    found = list(samples.notes)
    if compared is not None and compared.words < FEW_WORDS:
        found.append(
            f"only {compared.words} words of each response are compared, because many responses are that short: "
            "metrics from words (retention, recall, precision) detect almost nothing; coverage and the KLs are not "
            "affected"
        )
    if policy.least_prompts <= independent < policy.few_prompts:
        found.append(
            f"there are only {independent} independent prompts: near a margin, more than 1 in 20 verdicts are wrong"
        )
    return found + list(measured.warnings)
