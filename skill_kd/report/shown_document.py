"""The parts of ``evaluation.json`` that are shown and decide nothing: speed, curves, a judge, imported results.

Its keys are frozen. None stands for what was not measured.
"""

from __future__ import annotations

from typing import Literal, TypedDict

Better = Literal["high", "low"]
Side = Literal["teacher", "student"]
SIDES: tuple[Side, ...] = ("teacher", "student")
SideOrBaseline = Literal["teacher", "student", "baseline"]
SIDES_AND_BASELINE: tuple[SideOrBaseline, ...] = ("teacher", "student", "baseline")


class SecondsQuantiles(TypedDict):
    """Of the time of one response; the bounds of the median are two-sided 95%."""

    p50_s: float
    p50_low_s: float | None
    p50_high_s: float | None
    p95_s: float


class ModelSpeed(SecondsQuantiles):
    """How fast one model answered."""

    tokens_per_s: float
    tokens: float
    """Mean of a response."""
    memory_bytes: int
    seconds: list[float]
    """Of every response."""


class Cost(TypedDict):
    """Of 1000 requests."""

    teacher: float
    student: float
    currency: str


class Latency(TypedDict):
    """How fast both models answered, and on what."""

    load: float | None
    """Of the machine, before the evaluation added to it."""
    hardware: str
    batch: int
    concurrency: int
    responses: int
    memory: Literal["peak", "weights"]
    dtypes: dict[Side, str]
    teacher: ModelSpeed
    student: ModelSpeed
    cost_per_1k: Cost | None


class ExposureCurve(TypedDict):
    """Forward KL by position, on the teacher's and on the student's own prefixes; bounds of the latter."""

    positions: list[int]
    teacher_prefixes: list[float]
    student_prefixes: list[float]
    low: list[float]
    high: list[float]
    unit: str


class CalibrationCurve(TypedDict):
    """How often the likeliest token is right, by its probability."""

    confidence: list[float]
    accuracy: list[float]
    tokens: list[int]
    bins: int
    ece: float
    teacher_ece: float


class TemperaturePoint(TypedDict):
    """Quality and coverage of one model at one sampling temperature."""

    who: Side
    temperature: float
    quality: float
    coverage: float


class Curves(TypedDict):
    """What is drawn."""

    exposure: ExposureCurve | None
    calibration: CalibrationCurve | None
    temperature: list[TemperaturePoint]


class JudgeCounts(TypedDict):
    """What a pairwise judge said of the student; ``inconsistent`` answers changed with the order."""

    model: str
    wins: int
    losses: int
    ties: int
    inconsistent: int


class HarnessModel(TypedDict):
    """One model's file of results."""

    model: str
    file: str
    sha256: str


class HarnessRow(TypedDict):
    """One figure that both files have; ``low`` and ``high`` are the bounds of ``retention``."""

    task: str
    metric: str
    filter: str
    better: Better | None
    samples: object
    """Number of questions, as the student's file gives it."""
    teacher: float | None
    teacher_error: float | None
    student: float | None
    student_error: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    retention: float | None
    low: float | None
    high: float | None
    reason: str | None


class HarnessComparison(TypedDict):
    """Both models' files, figure by figure."""

    teacher: HarnessModel
    student: HarnessModel
    rows: list[HarnessRow]
    left_out: list[str]
    """Tasks that one of the two files lacks."""
