"""The gate's policy: which metrics may stop a student, and by what margin. Frozen, overridable, hashed.

A margin is the worst value that is still accepted: a student passes where its bound is on the good side.
The margins of the presets are derived, not guessed: see `benchmarks/evaluate_honesty.py`.
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
    """What one metric is asked for."""

    role: Role = "advisory"
    """A blocking metric decides; an advisory one is shown."""
    margin: float | None = None
    """Worst accepted value: of a difference, a ratio or a retention, as the metric reads."""


def _blocking(margin: float) -> Rule:
    return Rule(role="blocking", margin=margin)


def _advisory(margin: float | None = None) -> Rule:
    return Rule(role="advisory", margin=margin)


class Rules(Section):
    """One rule for each metric."""

    quality: Rule = _blocking(-0.03)
    """Score against references, student − teacher, 0 to 1."""
    retention: Rule = _blocking(0.75)
    """Diversity kept: 1 like the teacher, 0 as narrow as the narrower half of the teacher's own responses."""
    recall: Rule = _blocking(0.90)
    """Share of the teacher's responses that student samples come near, ÷ what the teacher's own samples reach."""
    precision: Rule = _blocking(0.90)
    """Share of the student's responses that teacher samples come near, ÷ what the teacher's own reach."""
    coverage: Rule = _blocking(-0.03)
    """The teacher's probability inside the student's deployed nucleus, − inside its own."""
    loops: Rule = _blocking(0.02)
    """Share of responses that loop or are empty, student − teacher."""
    refusals: Rule = _blocking(0.015)
    """Share of refusals, student − teacher."""
    near_duplicates: Rule = _blocking(0.02)
    """Share of responses nearly equal to one given to another prompt, student − teacher."""
    stock_openings: Rule = _blocking(0.05)
    """Share of responses that begin like one given to another prompt, student − teacher."""
    distinct_retention: Rule = _advisory(0.75)
    """As ``retention``, by expectation-adjusted distinct words."""
    diversity: Rule = _advisory()
    """Vendi score of the student's responses, 1 to K: set a floor where the teacher itself may be narrow."""
    usable_diversity: Rule = _advisory()
    """Vendi score of the responses that neither loop nor refuse, student ÷ teacher."""
    compression: Rule = _advisory()
    """Compressed ÷ raw size, student ÷ teacher."""
    distinct_4: Rule = _advisory()
    """Shown for parity with papers: at its ceiling, it misses lost modes."""
    self_bleu: Rule = _advisory()
    """Shown for parity with papers."""
    length: Rule = _advisory()
    """Words, student ÷ teacher; 0.8 to 1.25 is usual."""
    forward_kl: Rule = _advisory()
    """KL(teacher ‖ student) on teacher samples, nats a token."""
    reverse_kl: Rule = _advisory()
    """KL(student ‖ teacher) on student samples, nats a token."""
    kl_ratio: Rule = _advisory(2.0)
    """forward_kl ÷ reverse_kl: above 2, the student has lost modes."""
    entropy: Rule = _advisory()
    """Entropy of the student on its own samples ÷ the teacher's on its own; below 1 the student is sharpened."""
    nucleus_precision: Rule = _advisory()
    """The student's probability inside the teacher's nucleus, − the teacher's own."""
    exposure: Rule = _advisory()
    """forward_kl on the student's own prefixes ÷ on the teacher's: excess error 0% at 1 (arXiv 2204.01171)."""
    calibration: Rule = _advisory()
    """Confidence − accuracy of the likeliest next token on the teacher's samples, student − teacher."""
    judge: Rule = _advisory()
    """Share of comparisons with the teacher that a judge gives to the student; a tie counts half."""


class GatePolicy(Section):
    """Everything the verdict depends on besides the data."""

    name: str = "assistant"
    """The preset it began from."""
    samples: Annotated[int, Field(ge=2, le=64)] = 8
    """K, responses of the student for each prompt; the teacher gives 2K."""
    least_samples: Annotated[int, Field(ge=2)] = 4
    """Below this K there is no verdict."""
    least_prompts: Annotated[int, Field(ge=2)] = 50
    """Below this number of prompts there is no verdict."""
    few_prompts: int = 100
    """Below this number of prompts there is a warning."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of each one-sided bound."""
    resamples: Annotated[int, Field(ge=200, le=100_000)] = 2000
    """Of the bootstrap over prompts."""
    word_budget: Annotated[int, Field(ge=8, le=1024)] = 24
    """Words of each response that diversity is measured on: the same on both sides."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """The nucleus the student will be served with."""
    control_temperature: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Of the collapsed teacher that every coverage metric must tell from the teacher."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seeds samples and resamples."""
    rules: Rules = Rules()

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON: two reports with one hash were judged alike."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def blocking(self) -> tuple[str, ...]:
        """Names of the metrics that decide."""
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
    """Return a preset with changes laid over it, keys dotted: ``{"rules.recall.margin": 0.85, "samples": 4}``.

    Raises:
        UsageError: the preset is unknown, or a change is not a key of a policy or not a value it takes.
    """
    if preset not in PRESETS:
        raise UsageError(f"policy '{preset}' is unknown; known: {', '.join(PRESETS)}")
    values = PRESETS[preset].model_dump()
    for dotted, value in (changes or {}).items():
        _lay(values, dotted, value)
    try:
        return GatePolicy.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"policy: {'.'.join(map(str, first['loc'])) or 'key'}: {first['msg']}") from error


def _lay(values: dict[str, object], dotted: str, value: object) -> None:
    keys = dotted.split(".")
    if keys[0] in Rules.model_fields:
        keys = ["rules", *keys]
    place: object = values
    for key in keys[:-1]:
        if not isinstance(place, dict) or not isinstance(place.get(key), dict):
            raise UsageError(f"policy: '{dotted}' names no setting; metrics: {', '.join(Rules.model_fields)}")
        place = place[key]
    if keys == ["rules"] or not isinstance(place, dict):
        raise UsageError(f"policy: '{dotted}' names no single setting; write for example recall.margin=0.85")
    place[keys[-1]] = value
