"""Two models' probabilities on each other's responses, as the gate's columns and as curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from skill_kd.evaluate.estimates import Columns
from skill_kd.evaluate.measurements import ModelMeasurements, ShownMeasurements
from skill_kd.evaluate.opened_models import BINS, bucket
from skill_kd.evaluate.samples_folder import ModelsRecord, PromptWork
from skill_kd.report.shown_document import CalibrationCurve, ExposureCurve

if TYPE_CHECKING:
    from skill_kd.evaluate.estimates import Array


def measured(done: Sequence[PromptWork], record: ModelsRecord) -> ModelMeasurements:
    """Return the columns and curves of the token probabilities, or the reason if there are none."""
    shown, facts, warnings = ShownMeasurements(latency=record["latency"]), record["about"], tuple(_reasoning(done))
    if record["unread"] is not None:
        return ModelMeasurements({}, dict.fromkeys(_COLUMNS, record["unread"]), shown, facts, warnings)
    # False without a baseline, or if its tokenizer differs.
    has_baseline = all(line.get("read_baseline") for line in done)
    columns = {
        name: Columns(
            _column(done, *ours),
            _column(done, *theirs),
            baseline=_column(done, *ours, reading="read_baseline") if has_baseline else None,
        )
        for name, (ours, theirs) in _COLUMNS.items()
    }
    columns["calibration"] = Columns(*(_overconfidence(done, who) for who in ("student", "teacher")))
    assert facts["decoding"] is not None
    exposure = _exposure(done, facts["decoding"]["max_new_tokens"])
    shown = replace(shown, exposure=exposure, calibration=_calibration(done))
    return ModelMeasurements(columns, {}, shown, facts, warnings)


def _reasoning(done: Sequence[PromptWork]) -> Iterator[str]:
    """Yield a warning for each model whose responses have reasoning."""
    for who in ("teacher", "student"):
        reasoned, cut = (sum(line[name][who] for line in done) for name in ("reasoned", "cut"))
        total = sum(len(line["texts"][who]) for line in done)
        if reasoned:
            yield f"{reasoned} of {total} responses of the {who} have reasoning; only their final part is judged"
        if cut:
            yield (
                f"{cut} of {total} responses of the {who} were cut while reasoning and count as empty: raise "
                "--max-new-tokens, or turn reasoning off, for example with --template-option enable_thinking=false"
            )


_COLUMNS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "coverage": (("teacher", "coverage"), ("teacher", "coverage_own")),
    "nucleus_precision": (("student", "precision"), ("student", "precision_own")),
    "forward_kl": (("teacher", "forward_kl"), ("teacher", "")),
    "reverse_kl": (("student", "reverse_kl"), ("student", "")),
    "kl_ratio": (("teacher", "forward_kl"), ("student", "reverse_kl")),
    "entropy": (("student", "student_entropy"), ("teacher", "teacher_entropy")),
    "exposure": (("student", "forward_kl"), ("teacher", "forward_kl")),
}
"""(samples, metric) of the student's and of the teacher's column. An empty name means 0: a model's KL with itself."""


def _column(
    done: Sequence[PromptWork], samples: str, metric: str, reading: Literal["read", "read_baseline"] = "read"
) -> Array:
    import numpy as np

    return np.array([line[reading][samples]["means"].get(metric, 0.0) for line in done])


def _overconfidence(done: Sequence[PromptWork], who: str) -> Array:
    return _column(done, "teacher", f"{who}_confidence") - _column(done, "teacher", f"{who}_right")


def _exposure(done: Sequence[PromptWork], longest: int) -> ExposureCurve:
    """Return forward KL by position on the teacher's and on the student's prefixes, with bounds for the student's."""
    import numpy as np

    curves = {who: np.array([line["read"][who]["curve"] for line in done]) for who in ("teacher", "student")}
    sums = {who: each.sum(0) for who, each in curves.items()}
    reached = np.minimum(sums["teacher"][:, 1], sums["student"][:, 1]) > 0
    means = {who: (each[:, 0] / np.maximum(each[:, 1], 1))[reached] for who, each in sums.items()}
    error = _ratio_error(curves["student"])[reached]
    return {
        "positions": (np.flatnonzero(reached) * bucket(longest)).tolist(),
        "teacher_prefixes": means["teacher"].tolist(),
        "student_prefixes": means["student"].tolist(),
        "low": (means["student"] - 1.645 * error).tolist(),
        "high": (means["student"] + 1.645 * error).tolist(),
        "unit": "nats/token",
    }


def _ratio_error(curve_NPC: Array) -> Array:
    """Return the standard error of Σ sums / Σ counts over prompts, by linearization."""
    import numpy as np

    sums, counts = curve_NPC[..., 0], curve_NPC[..., 1]
    mean = sums.sum(0) / np.maximum(counts.sum(0), 1)
    error: Array = np.sqrt(((sums - mean * counts) ** 2).sum(0)) / np.maximum(counts.sum(0), 1)
    return error


def _calibration(done: Sequence[PromptWork]) -> CalibrationCurve:
    import numpy as np

    tables = {
        who: np.array([line["read"]["teacher"]["bins"][who] for line in done]).sum(0) for who in ("student", "teacher")
    }
    table = tables["student"][tables["student"][:, 2] > 0]

    def error(bins: Array) -> float:
        return float(np.abs(bins[:, 0] - bins[:, 1]).sum() / bins[:, 2].sum())

    return {
        "confidence": (table[:, 0] / table[:, 2]).tolist(),
        "accuracy": (table[:, 1] / table[:, 2]).tolist(),
        "tokens": table[:, 2].astype(int).tolist(),
        "bins": BINS,
        "ece": error(tables["student"]),
        "teacher_ece": error(tables["teacher"]),
    }
