"""The parts of ``evaluation.json`` that do not affect the verdict: speed, curves, a judge, imported results.

The keys are frozen. None means not measured.
"""

# No `from __future__ import annotations`: Python 3.11 does not find NotRequired in string annotations.

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Better = Literal["high", "low"]
Side = Literal["teacher", "student"]
SIDES: tuple[Side, ...] = ("teacher", "student")
SideOrBaseline = Literal["teacher", "student", "baseline"]
SIDES_AND_BASELINE: tuple[SideOrBaseline, ...] = ("teacher", "student", "baseline")


class SecondsQuantiles(TypedDict):
    """Quantiles of the seconds per response, with two-sided 95% bounds of the median."""

    p50_s: float
    p50_low_s: float | None
    p50_high_s: float | None
    p95_s: float


class ModelSpeed(SecondsQuantiles):
    """The speed of one model."""

    tokens_per_s: float
    tokens: float
    """Mean tokens per response."""
    memory_bytes: int
    seconds: list[float]
    """Seconds of every response."""


class Cost(TypedDict):
    """The cost of 1000 requests."""

    teacher: float
    student: float
    currency: str


class Latency(TypedDict):
    """The speed of both models, and the device."""

    load: float | None
    """Load average of the machine before the evaluation added to it."""
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
    """Forward KL by position, on the teacher's and on the student's own prefixes, with bounds for the student's."""

    positions: list[int]
    teacher_prefixes: list[float]
    student_prefixes: list[float]
    low: list[float]
    high: list[float]
    unit: str


class CalibrationCurve(TypedDict):
    """Accuracy of the likeliest token, by its probability."""

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
    """The plotted curves."""

    exposure: ExposureCurve | None
    calibration: CalibrationCurve | None
    temperature: list[TemperaturePoint]


class JudgeCounts(TypedDict):
    """A pairwise judge's answers on the student, as numbers of prompts.

    ``inconsistent`` answers changed with the order. ``unusable`` ones had no text or no verdict.
    """

    model: str
    wins: int
    losses: int
    ties: int
    inconsistent: int
    unusable: NotRequired[int]
    """Missing in documents that are older than this key."""


class HarnessModel(TypedDict):
    """The results file of one model."""

    model: str
    file: str
    sha256: str


class HarnessRow(TypedDict):
    """A metric that is in both files; ``low`` and ``high`` are the bounds of ``retention``."""

    task: str
    metric: str
    filter: str
    better: Better | None
    samples: object
    """Number of questions, from the student's file."""
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
    """Both models' files, metric by metric."""

    teacher: HarnessModel
    student: HarnessModel
    rows: list[HarnessRow]
    left_out: list[str]
    """Tasks that are in only one of the two files."""
