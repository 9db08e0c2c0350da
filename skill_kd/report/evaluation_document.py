"""The document of ``evaluation.json`` and of ``evaluate --json``, format 1. Its keys are frozen.

`evaluate` writes it; the decision page and the model card read it. The types are here because evaluate/ imports
report/, never the reverse. None means not measured.
"""

# No `from __future__ import annotations`: Python 3.11 does not find NotRequired in string annotations.

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from skill_kd.report.shown_document import Better, Curves, HarnessComparison, JudgeCounts, Latency

Verdict = Literal["GO", "NO-GO", "INCONCLUSIVE"]
Outcome = Literal["pass", "fail", "uncertain", "insensitive", "not_measured", "shown"]
Reason = Literal[
    "all_passed",
    "below_margin",
    "too_few_prompts",
    "too_few_samples",
    "metric_insensitive",
    "not_measured",
    "uncertain",
]
Role = Literal["blocking", "advisory"]
Form = Literal["difference", "ratio", "retention", "value"]
"""The formula that combines student, teacher and control, each a mean over prompts.

difference: student − teacher. ratio: student / teacher. value: student.
retention: (student − control) / (teacher − control); 1 is like the teacher, 0 like the collapsed teacher.
"""


class MetricRow(TypedDict):
    """One metric of the policy, measured and judged."""

    name: str
    title: str
    unit: str
    role: Role
    form: Form
    better: Better
    estimate: float | None
    low: float | None
    high: float | None
    margin: float | None
    null: float | None
    control: float | None
    teacher: float | None
    student: float | None
    baseline: float | None
    outcome: Outcome
    reason: str | None
    prompts: int
    detectable: float | None
    prompts_needed: int | None


# --- examples for people ----------------------------------------------------------------------------------------------


class SliceRow(TypedDict):
    """The metrics on a subset of the prompts."""

    name: str
    prompts: int
    figures: dict[str, float | None]


class LostMode(TypedDict):
    """A prompt with teacher responses that no student response is near."""

    prompt: str
    teacher: list[str]
    student: list[str]
    recall: float


class FlaggedExample(TypedDict):
    """A flagged student response, next to the teacher's."""

    prompt: str
    teacher: list[str]
    student: list[str]
    flags: list[str]


class LengthQuantiles(TypedDict):
    """Quantiles of the number of words in a response."""

    p10: float
    p50: float
    p90: float
    mean: float


class Lengths(TypedDict):
    """Response lengths of each model."""

    teacher: LengthQuantiles
    student: LengthQuantiles
    baseline: LengthQuantiles | None
    unit: str


# --- reproduction -----------------------------------------------------------------------------------------------------


class FileRead(TypedDict):
    """One file of generations."""

    role: str
    name: str
    sha256: str
    rows: int


class DecodingSettings(TypedDict):
    """The decoding settings of the responses."""

    temperature: float
    top_p: float
    max_new_tokens: int
    control_temperature: float


class ModelFacts(TypedDict):
    """The sampled models; names are None for saved generations."""

    teacher: str | None
    student: str | None
    baseline: str | None
    tokenizer: Literal["same", "different", "not compared"]
    decoding: DecodingSettings | None
    device: NotRequired[str]


class Reproduction(ModelFacts):
    """All facts that determine the result, and the time of the evaluation."""

    policy: dict[str, object]
    """The full policy, as a dump of its model."""
    policy_name: str
    policy_hash: str
    files: list[FileRead]
    prompts: int
    samples: int
    seed: int
    resamples: int
    word_budget: int
    features: str
    versions: dict[str, str | None]
    time: str
    """UTC, ISO 8601."""
    seconds: float


class EvaluationDocument(TypedDict):
    """A verdict and everything behind it."""

    format: int
    kind: Literal["evaluation"]
    verdict: Verdict
    exit_code: int
    sentence: str
    reason_code: Reason
    binding_metric: str | None
    prompts_needed: int | None
    warnings: list[str]
    metrics: list[MetricRow]
    slices: list[SliceRow]
    lost_modes: list[LostMode]
    examples: list[FlaggedExample]
    lengths: Lengths | None
    latency: Latency | None
    judge: JudgeCounts | None
    harness: HarnessComparison | None
    curves: Curves
    known_not_covered: list[str]
    reproduction: Reproduction
