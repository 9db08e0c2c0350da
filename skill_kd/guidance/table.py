"""The decision table: findings with their remedies, and needs with their objective.

Frozen data. Numbers such as 2306.08543 are arXiv ids, listed in references/citations.md. "judgment" marks a claim that
nobody measured, "ours" a claim that benchmarks/ measured.
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
    "after enough epochs; before that, they fit head and tail in a different order."
)
_DISPUTED = (
    "2510.20817, on KL-regularized RL, not on distillation: coverage depends more on the regularization strength and "
    "the rewards than on the direction."
)
_COVERAGE = (
    "2603.07079: Pass@8 +1.4 to +5.1 with Qwen3 Base on six mathematics benchmarks; "
    "2605.16826: more forward KL keeps entropy, in mathematics"
)

_TOWARD_COVERAGE = Remedy(
    "move toward forward KL: entropy_aware (forward KL where the teacher is uncertain), or a lower β of jsd",
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
    "raise the serving temperature or top-p, and measure again",
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
        "completions are too narrow: answers became similar (seen in logs, not measured against the teacher)",
        "the student sharpened or lost modes; to find out which, replay 50 prompts with 8 samples each",
        (_TEMPERATURE, _TOWARD_COVERAGE),
        f"The teacher may be equally narrow: compare with its logs. {_SHARE} {_DISPUTED}",
    ),
    Finding(
        "sharpened",
        "both KLs are similar, student entropy / teacher entropy < 1",
        "sharpened: the modes are kept, but too little probability is outside the likeliest token",
        (_TEMPERATURE, _TOWARD_COVERAGE),
        f"A temperature that restores the entropy need not restore the content (2004.02990). {_SHARE}",
    ),
    Finding(
        "lost_modes",
        "forward_kl ≫ reverse_kl, recall below that of the teacher's own halves",
        "the student lost modes of the teacher; no serving setting restores them",
        (
            _TOWARD_COVERAGE,
            Remedy(
                "with MiniLLM: coverage_weight .5, forward KL on the teacher's samples",
                "pilot",
                "ours: forward KL −.03 nats in 16 updates. It is not in 2306.08543; its L_PT protects other tasks",
                (Knob(("minillm",), "objective.coverage_weight", 0.5),),
            ),
        ),
        f"{_SHARE} {_DISPUTED}",
    ),
    Finding(
        "loops",
        "loops, repetition, answers that compress too well",
        "early degeneration or reward hacking; a falling reverse KL does not rule it out",
        (
            Remedy(
                "check that the end-of-sequence token is trained and served (pad = eos, stop tokens)",
                "serving",
                "trl PR 6357",
            ),
            Remedy(
                "more teacher-mixed sampling, length normalization; off-policy: more of the student's own samples",
                "pilot",
                "2306.08543: validation Rouge-L 27.4, without mixing 22.3, without normalization 17.4; "
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
        "This helps stability, not coverage: the weights correct for the mixture. Greedy decoding alone can loop.",
    ),
    Finding(
        "length",
        "answers became longer or shorter, or are cut by the limit",
        "length inflation or collapse, or the student did not learn the end-of-sequence token",
        (
            Remedy("check the serving limit, the stop tokens and the chat template", "serving", "trl PR 6357"),
            Remedy(
                "on-policy: mix in responses of the teacher or the data; with MiniLLM keep length normalization",
                "pilot",
                "2604.08527 stops inflation by a mixture of rollouts and a reference constraint, which we do not have; "
                "2306.08543 (Eq 6)",
                (
                    Knob(("minillm",), "objective.length_normalization", True),
                    Knob(ON_POLICY, "objective.on_policy", 0.5),
                ),
            ),
            Remedy(
                "let rollouts end by themselves: a larger max_new_tokens",
                "pilot",
                "judgment",
                (Knob(("minillm", *ON_POLICY, *_OFF, *_TEXT), "rollout.max_new_tokens", 2, scale=True),),
            ),
        ),
        "Length depends on the prompts: longer questions look the same.",
    ),
    Finding(
        "refusals",
        "more refusals or hedges than the teacher",
        "check the prompts and the data before the objective",
        (
            Remedy("compare the prompt mix and the system prompt with those of training", "serving", "judgment"),
            Remedy("remove refusals from the training responses if the teacher answers", "data", "judgment"),
        ),
        "The teacher may refuse them too, or the policy may have changed on purpose. The patterns miss other wordings.",
    ),
    Finding(
        "imprecise",
        "low precision, odd tokens, student entropy / teacher entropy > 1",
        "over-smoothed: the student gives probability to tokens that are unlikely for the teacher",
        (
            Remedy("lower the serving temperature or top-p", "serving", "judgment"),
            Remedy(
                "move toward reverse or skew KL, on the student's own samples",
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
        "excess accumulated error (ExAccErr) rises along the answer, forward_kl on teacher prefixes is fine",
        "exposure bias: good on the teacher's prefixes, bad on the student's own",
        (_MORE_ON_POLICY,),
        "The published code for ExAccErr shows only one index: look at the whole curve with its interval.",
    ),
    Finding(
        "teacher_narrow",
        "the teacher's answers are equally similar",
        "the objective is not the cause",
        (
            Remedy(
                "change the teacher, the prompts or the data",
                "data",
                "2504.05228: within a family, larger models are often less diverse",
            ),
        ),
        "Different temperatures or prompts for teacher and student look the same.",
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
    alternative: Mapping[str, object] | None
    """The objective to compare with, on the same budget; None if the teacher gives only text."""

    def fits(self, matters: str, teacher: str, budget: str, long: bool) -> bool:
        """Return True if this row matches the need."""
        asked = ((self.matters, matters), (self.teacher, teacher), (self.budget, budget))
        return all(each is None or value in each for each, value in asked) and self.long in (None, long)


CHOICES = (
    Choice(None, ("text",), None, None, {"kind": "sequence_kd"},
           "the student can only imitate the teacher's text",
           "reverse_kl, which compares both models at every token, if the teacher gives log-probabilities",
           None),
    Choice(("coverage",), ("served",), None, None, {"kind": "forward_kl", "responses": "teacher"},
           "covers the teacher. Top-k targets alone are biased (arXiv 2503.16870), so we add one class "
           "for all other tokens",
           "entropy_aware, which reads the whole distribution, if you have the teacher's weights",
           {"kind": "reverse_kl"}),
    Choice(None, ("served",), None, None, {"kind": "reverse_kl"},
           "needs one request per student sample. minillm samples from a mixture with the teacher by default, so it "
           "would need one request per token",
           "minillm, which also counts the effect of a token on later ones, if you have the teacher's weights",
           {"kind": "forward_kl", "responses": "teacher"}),
    Choice(("coverage",), None, ("small",), None, {"kind": "forward_kl", "responses": "teacher"},
           "the student need not sample, so this is the cheapest way to keep modes (our judgment)",
           "entropy_aware, which also trains on the student's own prefixes, if the budget is larger",
           {"kind": "adaptive_kl"}),
    Choice(("coverage",), None, None, None, {"kind": "entropy_aware"},
           "reverse KL, plus forward KL where the teacher is uncertain "
           "(arXiv 2603.07079: Pass@8 +1.4 to +5.1, mathematics)",
           "forward_kl, which is simpler and covers as much (our judgment), if answers are short or data is offline",
           {"kind": "minillm"}),
    Choice(None, None, ("small",), None, {"kind": "adaptive_kl"},
           "combines both directions, weighted by how far the student is from the teacher on likely and on unlikely "
           "tokens; needs no sampling (arXiv 2404.02657)",
           "minillm, which trains on the student's own samples, if the budget is larger",
           {"kind": "forward_kl", "responses": "teacher"}),
    Choice(None, None, None, True, {"kind": "entropy_aware"},
           "without much forward KL, entropy collapses and long answers grow longer (arXiv 2605.16826, mathematics)",
           "reverse_kl, if your reverse_kl student kept entropy and length",
           {"kind": "reverse_kl"}),
    Choice(None, None, None, None, {"kind": "minillm"},
           "reverse KL over whole responses of the student "
           "(arXiv 2306.08543: Rouge-L 24.6, SFT 23.3; GPT-2 120M, Dolly)",
           "entropy_aware, if minillm got a NO-GO on coverage, or if your entropy_aware student kept more coverage",
           {"kind": "entropy_aware"}),
)  # fmt: skip
