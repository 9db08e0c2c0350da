"""The decision table: findings with their remedies, and needs with their objective.

Frozen data. Numbers such as 2306.08543 are arXiv ids, listed in references/citations.md. "judgement" marks what nobody
measured, "ours" what benchmarks/ measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Matters = Literal["coverage", "precision", "balanced"]
Teacher = Literal["logits", "served", "text"]
Budget = Literal["small", "normal", "large"]

LONG = 512
"""Response length, in tokens, above which whole-response policy gradients are too noisy to start with."""


@dataclass(frozen=True)
class Knob:
    """One change to a spec with an objective of ``kinds``. ``path`` starts at the distill stage or at the top."""

    kinds: tuple[str, ...]
    path: str
    value: object
    """The new value; with ``scale``, a factor for the current value."""
    scale: bool = False


@dataclass(frozen=True)
class Remedy:
    """An action and its evidence."""

    do: str
    cost: Literal["serving", "data", "pilot"]
    """Kind of effort, cheapest first: a serving setting, other data, a training pilot."""
    evidence: str
    knobs: tuple[Knob, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A symptom, its meaning and its remedies."""

    key: str
    seen: str
    means: str
    remedies: tuple[Remedy, ...]
    """Cheapest first."""
    against: str
    """Counter-evidence and other explanations."""


ON_POLICY = ("reverse_kl", "skew_reverse_kl", "entropy_aware", "jsd")
_OFF = ("forward_kl", "skew_kl", "adaptive_kl", "total_variation")
_TEXT = ("sft", "sequence_kd")
_SHARE = (
    "2404.02657 finds neither mode-seeking nor mean-seeking in LLM distillation: both directions share their optimum "
    "after enough epochs, and fit head and tail in a different order before."
)
_DISPUTED = (
    "2510.20817, on KL-regularised RL, not on distillation: coverage follows the regularisation strength and the "
    "rewards more than the direction."
)
_COVERAGE = (
    "2603.07079: Pass@8 +1.4 to +5.1 with Qwen3 Base on six mathematics sets; "
    "2605.16826: more forward KL keeps entropy, in mathematics"
)

_TOWARD_COVERAGE = Remedy(
    "move toward forward KL: where the teacher is undecided (entropy_aware), or β 1 → .5 or 0",
    "pilot",
    _COVERAGE,
    (
        Knob(("minillm",), "objective", {"kind": "entropy_aware"}),
        Knob(("reverse_kl", "skew_reverse_kl"), "objective", {"kind": "jsd", "beta": 0.5, "on_policy": 1.0}),
        Knob(("jsd",), "objective.beta", 0.1),
        Knob(("entropy_aware",), "objective.entropy_threshold", 0.4),
        Knob(("adaptive_kl", "total_variation"), "objective", {"kind": "forward_kl"}),
    ),
)
_TEMPERATURE = Remedy(
    "raise the serving temperature or top-p, and look again",
    "serving",
    "2004.02990: temperature restores form more than content",
)
_MORE_ON_POLICY = Remedy(
    "train on more of the student's own samples",
    "pilot",
    "2204.01171: errors accumulate on prefixes the student never saw in training",
    (
        Knob((*_OFF, "jsd"), "objective.on_policy", 1.0),
        Knob(_TEXT, "objective", {"kind": "reverse_kl"}),
        Knob(("minillm",), "objective.teacher_mix", 0.0),
    ),
)

FINDINGS = (
    Finding(
        "sameness",
        "completions are too narrow: answers became alike (by logs or by eye, nothing measured against the teacher)",
        "the student sharpened, or dropped modes; prompts that never repeat cannot tell which: replay 50 prompts × 8",
        (_TEMPERATURE, _TOWARD_COVERAGE),
        f"The teacher may be as narrow: compare with its logs. {_SHARE} {_DISPUTED}",
    ),
    Finding(
        "sharpened",
        "both KLs alike, student entropy / teacher entropy < 1",
        "sharpened: the modes are there, with too little mass outside the first choice",
        (_TEMPERATURE, _TOWARD_COVERAGE),
        f"A temperature that restores the entropy need not restore the content (2004.02990). {_SHARE}",
    ),
    Finding(
        "lost_modes",
        "forward_kl ≫ reverse_kl, recall lost against the null",
        "modes of the teacher were dropped; no serving setting brings them back",
        (
            _TOWARD_COVERAGE,
            Remedy(
                "with MiniLLM: coverage_weight .5, forward KL on the teacher's samples",
                "pilot",
                "ours: forward KL −.03 nats in 16 updates. Not in 2306.08543, whose L_PT protects other tasks",
                (Knob(("minillm",), "objective.coverage_weight", 0.5),),
            ),
        ),
        f"{_SHARE} {_DISPUTED}",
    ),
    Finding(
        "loops",
        "loops, repetition, answers that compress too well",
        "early degeneration or reward hacking; a falling reverse KL does not exclude it",
        (
            Remedy(
                "check that the end of sequence is trained and served (pad = eos, stop tokens)",
                "serving",
                "trl PR 6357",
            ),
            Remedy(
                "more teacher-mixed sampling, length normalisation; off-policy: more of the student's own samples",
                "pilot",
                "2306.08543: validation Rouge-L 27.4, without mixing 22.3, without normalisation 17.4; "
                "2604.08527: a mixture of rollouts",
                (
                    Knob(("minillm",), "objective.length_normalization", True),
                    Knob(("minillm",), "objective.teacher_mix", 0.4),
                    Knob(("reverse_kl", "skew_reverse_kl", "entropy_aware"), "objective.on_policy", 0.5),
                    Knob((*_OFF, "jsd"), "objective.on_policy", 1.0),
                    Knob(_TEXT, "objective", {"kind": "reverse_kl"}),
                ),
            ),
        ),
        "A stability cure, not a coverage cure: the weights correct the mixture away. Greedy decoding loops by itself.",
    ),
    Finding(
        "length",
        "answers grew, shrank, or are cut by the limit",
        "length inflation or collapse, or an end of sequence that was not learnt",
        (
            Remedy("check the serving limit, the stop tokens and the chat template", "serving", "trl PR 6357"),
            Remedy(
                "on-policy: mix in responses that are not the student's; with MiniLLM keep length normalisation",
                "pilot",
                "2604.08527 stops inflation by a mixture of rollouts and a reference constraint, which we lack; "
                "2306.08543 (Eq 6)",
                (
                    Knob(("minillm",), "objective.length_normalization", True),
                    Knob(ON_POLICY, "objective.on_policy", 0.5),
                ),
            ),
            Remedy(
                "let rollouts end by themselves: a larger max_new_tokens",
                "pilot",
                "judgement",
                (Knob(("minillm", *ON_POLICY, *_OFF, *_TEXT), "rollout.max_new_tokens", 2, scale=True),),
            ),
        ),
        "Length follows the prompts: a mix of longer questions looks the same.",
    ),
    Finding(
        "refusals",
        "refusals or hedges, more than the teacher's",
        "the prompts or the data, before the objective",
        (
            Remedy("compare the prompt mix and the system prompt with those trained on", "serving", "judgement"),
            Remedy("take out refusals from the training responses where the teacher answers", "data", "judgement"),
        ),
        "The teacher refuses them too, or policy changed on purpose. Patterns miss refusals in other words.",
    ),
    Finding(
        "imprecise",
        "low precision, odd tokens, student entropy / teacher entropy > 1",
        "over-smoothed: the student puts mass where the teacher has little",
        (
            Remedy("lower the serving temperature or top-p", "serving", "judgement"),
            Remedy(
                "toward reverse or skew KL, on the student's own samples",
                "pilot",
                "2306.08543, 2402.03898",
                (
                    Knob(("minillm",), "objective.coverage_weight", 0.0),
                    Knob((*_OFF, *_TEXT), "objective", {"kind": "reverse_kl"}),
                    Knob(("jsd",), "objective.beta", 0.9),
                    Knob(("entropy_aware",), "objective.entropy_threshold", 1.6),
                ),
            ),
        ),
        _SHARE,
    ),
    Finding(
        "exposure",
        "ExAccErr rises along the answer, forward_kl on teacher prefixes is fine",
        "exposure bias: good on the teacher's prefixes, lost on its own",
        (_MORE_ON_POLICY,),
        "The published code for ExAccErr shows one index only: look at the whole curve with its interval.",
    ),
    Finding(
        "teacher_narrow",
        "the teacher's answers are as alike",
        "the objective is not the cause",
        (
            Remedy(
                "change the teacher, the prompts or the data",
                "data",
                "2504.05228: within a family, larger models are often less diverse",
            ),
        ),
        "Different temperatures or prompts on the two sides look the same.",
    ),
)
BY_KEY = {finding.key: finding for finding in FINDINGS}


# --- which objective --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A need, the objective to start with, and why. None matches anything; the first match wins."""

    matters: tuple[Matters, ...] | None
    teacher: tuple[Teacher, ...] | None
    budget: tuple[Budget, ...] | None
    long: bool | None
    objective: Mapping[str, object]
    why: str
    unless: str
    """Conditions that would change this choice."""
    beside: Mapping[str, object] | None
    """The objective to compare with, on the same budget; None if the teacher gives only text."""

    def fits(self, matters: str, teacher: str, budget: str, long: bool) -> bool:
        """Return True if this row matches the need."""
        asked = ((self.matters, matters), (self.teacher, teacher), (self.budget, budget))
        return all(each is None or value in each for each, value in asked) and self.long in (None, long)


CHOICES = (
    Choice(None, ("text",), None, None, {"kind": "sequence_kd"},
           "a teacher that gives text only can be imitated, not compared with",
           "log-probabilities: on-policy objectives compare the student with the teacher at every token",
           None),
    Choice(("coverage",), ("served",), None, None, {"kind": "forward_kl", "responses": "teacher"},
           "covers the teacher; top-k targets alone are biased (2503.16870), one class for the rest is our answer",
           "the teacher's weights here: entropy_aware reads the whole distribution",
           {"kind": "reverse_kl"}),
    Choice(None, ("served",), None, None, {"kind": "reverse_kl"},
           "one scoring call for each sample of the student; teacher mixing would need one for each token",
           "the teacher's weights here: minillm adds what a token does to later ones",
           {"kind": "forward_kl", "responses": "teacher"}),
    Choice(("coverage",), None, ("small",), None, {"kind": "forward_kl", "responses": "teacher"},
           "no sampling by the student; that it keeps modes most cheaply is our judgement",
           "a larger budget: entropy_aware corrects the student's own prefixes too",
           {"kind": "adaptive_kl"}),
    Choice(("coverage",), None, None, None, {"kind": "entropy_aware"},
           "reverse KL, plus forward KL where the teacher is undecided (2603.07079: Pass@8 +1.4 to +5.1, mathematics)",
           "short answers or offline data: forward_kl is simpler and, in our judgement, covers as much",
           {"kind": "minillm"}),
    Choice(None, None, ("small",), None, {"kind": "adaptive_kl"},
           "both directions, weighted by head and tail, without sampling (2404.02657)",
           "a larger budget: minillm, on-policy",
           {"kind": "forward_kl", "responses": "teacher"}),
    Choice(None, None, None, True, {"kind": "entropy_aware"},
           "long answers need much forward KL, else entropy collapses and length inflates (2605.16826, mathematics)",
           "answers under 512 tokens: minillm; the one beside it, without forward KL, kept entropy and length as well",
           {"kind": "reverse_kl"}),
    Choice(None, None, None, None, {"kind": "minillm"},
           "the student's samples, judged over whole responses (2306.08543: Rouge-L 24.6, SFT 23.3; GPT-2 120M, Dolly)",
           "NO-GO on coverage, or the one beside it kept more at little cost",
           {"kind": "entropy_aware"}),
)  # fmt: skip
