"""The gate's policy: the metrics that may block a student, and their margins. Frozen, overridable, hashed.

A margin is the worst accepted value: a student passes if its bound is on the good side.
The presets' margins are derived from measurements: see `benchmarks/evaluate_honesty.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationError

from skill_kd.errors import UsageError
from skill_kd.report.evaluation_document import Role
from skill_kd.spec import Section

Preset = Literal["assistant", "strict-extraction", "creative", "text-only"]


class Rule(Section):
    """The requirement on one metric."""

    role: Role = "advisory"
    """A blocking metric decides; an advisory one is only shown."""
    margin: float | None = None
    """Worst accepted value of the metric (a difference, a ratio or a retention)."""


def _blocking(margin: float) -> Rule:
    return Rule(role="blocking", margin=margin)


def _advisory(margin: float | None = None) -> Rule:
    return Rule(role="advisory", margin=margin)


class Rules(Section):
    """One rule per metric."""

    quality: Rule = _blocking(-0.03)
    """Score against references, 0 to 1; student − teacher."""
    retention: Rule = _blocking(0.75)
    """Diversity retained: 1 is like the teacher, 0 is like the narrow half of the teacher's own responses."""
    recall: Rule = _blocking(0.90)
    """Share of the teacher's responses that are near a student response, ÷ the same share for the teacher itself."""
    precision: Rule = _blocking(0.90)
    """Share of the student's responses that are near a teacher response, ÷ the same share for the teacher itself."""
    coverage: Rule = _blocking(-0.03)
    """Teacher probability inside the student's deployed nucleus, − teacher probability inside its own."""
    loops: Rule = _blocking(0.02)
    """Share of responses that loop or are empty, student − teacher."""
    refusals: Rule = _blocking(0.015)
    """Share of refusals, student − teacher."""
    near_duplicates: Rule = _blocking(0.02)
    """Share of responses that nearly equal a response to another prompt, student − teacher."""
    stock_openings: Rule = _blocking(0.05)
    """Share of responses that begin like a response to another prompt, student − teacher."""
    distinct_retention: Rule = _advisory(0.75)
    """Like ``retention``, measured by expectation-adjusted distinct words."""
    diversity: Rule = _advisory()
    """Vendi score of the student's responses, 1 to K. Set a minimum if the teacher itself may be narrow."""
    usable_diversity: Rule = _advisory()
    """Vendi score of the responses that neither loop nor refuse, student ÷ teacher."""
    compression: Rule = _advisory()
    """Compressed ÷ raw size, student ÷ teacher."""
    distinct_4: Rule = _advisory()
    """Reported for comparison with papers. Near its ceiling it does not detect lost modes."""
    self_bleu: Rule = _advisory()
    """Reported for comparison with papers."""
    length: Rule = _advisory()
    """Number of words, student ÷ teacher; 0.8 to 1.25 is usual."""
    forward_kl: Rule = _advisory()
    """KL(teacher ‖ student) on teacher samples, nats per token."""
    reverse_kl: Rule = _advisory()
    """KL(student ‖ teacher) on student samples, nats per token."""
    kl_ratio: Rule = _advisory(2.0)
    """forward_kl ÷ reverse_kl; above 2, the student has lost modes."""
    entropy: Rule = _advisory()
    """Student entropy on its own samples ÷ teacher entropy on its own; below 1, the student is sharper."""
    nucleus_precision: Rule = _advisory()
    """Student probability inside the teacher's nucleus, − teacher probability inside its own."""
    exposure: Rule = _advisory()
    """forward_kl on the student's own prefixes ÷ on the teacher's; 1 means no excess error (arXiv 2204.01171)."""
    calibration: Rule = _advisory()
    """Confidence − accuracy of the likeliest next token on the teacher's samples, student − teacher."""
    judge: Rule = _advisory()
    """Share of comparisons in which the judge prefers the student to the teacher; a tie counts half."""


class GatePolicy(Section):
    """All settings that the verdict depends on, in addition to the data."""

    name: str = "assistant"
    """The preset that the policy starts from."""
    samples: Annotated[int, Field(ge=2, le=64)] = 8
    """Student responses per prompt, K; the teacher gives 2K."""
    least_samples: Annotated[int, Field(ge=2)] = 4
    """Smallest K for a verdict."""
    least_prompts: Annotated[int, Field(ge=2)] = 50
    """Smallest number of prompts for a verdict."""
    few_prompts: int = 100
    """Fewer prompts than this give a warning."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence of each one-sided bound."""
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 2000
    """Bootstrap resamples over prompts."""
    word_budget: Annotated[int, Field(ge=8, le=1024)] = 24
    """Words of each response that diversity is measured on, the same for both sides."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus that the student will be served with."""
    control_temperature: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Temperature of the collapsed teacher. Every coverage metric must detect its collapse."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seed of samples and resamples."""
    rules: Rules = Rules()

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON. Reports with the same hash used the same policy."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def blocking(self) -> tuple[str, ...]:
        """Names of the blocking metrics."""
        return tuple(name for name in Rules.model_fields if getattr(self.rules, name).role == "blocking")


def _with(**rules: Rule) -> Rules:
    return Rules(**rules)


PRESETS: dict[str, GatePolicy] = {
    "assistant": GatePolicy(name="assistant"),
    "strict-extraction": GatePolicy(
        name="strict-extraction",
        rules=_with(retention=_advisory(), recall=_advisory(), stock_openings=_advisory(), near_duplicates=_advisory()),
    ),
    "creative": GatePolicy(name="creative", rules=_with(quality=_advisory(-0.03), recall=_blocking(0.92))),
    "text-only": GatePolicy(name="text-only", rules=_with(quality=_advisory(-0.03), coverage=_advisory(-0.03))),
}
assert set(PRESETS) == set(get_args(Preset))


def make_policy(preset: str = "assistant", changes: Mapping[str, object] | None = None) -> GatePolicy:
    """Return a preset with changes applied. Keys are dotted: ``{"rules.recall.margin": 0.85, "samples": 4}``.

    Raises:
        UsageError: the preset is unknown, or a change has an unknown key or an invalid value.
    """
    if preset not in PRESETS:
        raise UsageError(f"policy '{preset}' is unknown; known: {', '.join(PRESETS)}")
    values = PRESETS[preset].model_dump()
    for dotted, value in (changes or {}).items():
        _set(values, dotted, value)
    try:
        return GatePolicy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"policy: {'.'.join(map(str, first['loc'])) or 'key'}: {first['msg']}") from error


def _set(values: dict[str, object], dotted: str, value: object) -> None:
    keys = dotted.split(".")
    if keys[0] in Rules.model_fields:
        keys = ["rules", *keys]
    place: object = values
    for key in keys[:-1]:
        if not isinstance(place, dict) or not isinstance(place.get(key), dict):
            raise UsageError(f"policy: '{dotted}' is not a setting; metrics: {', '.join(Rules.model_fields)}")
        place = place[key]
    if keys == ["rules"] or not isinstance(place, dict):
        raise UsageError(f"policy: '{dotted}' is not a single setting; write, for example, recall.margin=0.85")
    place[keys[-1]] = value
