"""The measurements of an evaluation that need more than the text of the responses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skill_kd.evaluate.estimates import Columns
from skill_kd.report.evaluation_document import ModelFacts
from skill_kd.report.shown_document import CalibrationCurve, ExposureCurve, HarnessComparison, JudgeCounts, Latency


@dataclass(frozen=True)
class ShownMeasurements:
    """Measurements that are shown but do not affect the verdict; None if not measured."""

    latency: Latency | None = None
    exposure: ExposureCurve | None = None
    calibration: CalibrationCurve | None = None
    judge: JudgeCounts | None = None
    harness: HarnessComparison | None = None


NO_MODELS: ModelFacts = {
    "teacher": None,
    "student": None,
    "baseline": None,
    "tokenizer": "not compared",
    "decoding": None,
}
NOTHING_SHOWN = ShownMeasurements()


@dataclass(frozen=True)
class ModelMeasurements:
    """Measurements that need the models. The gate judges them together with the text."""

    columns: Mapping[str, Columns]
    """By metric, one value for each prompt of the teacher's file, in its order."""
    absent: Mapping[str, str]
    """By metric, the reason why it was not measured."""
    shown: ShownMeasurements = NOTHING_SHOWN
    facts: ModelFacts | None = None
    """Models, tokenizer and decoding, for the reproduction block."""
    warnings: tuple[str, ...] = ()


NOTHING_MEASURED = ModelMeasurements({}, {})
