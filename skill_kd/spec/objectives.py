"""The objectives: the losses a stage can train on, chosen by ``kind``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from skill_kd.spec.section import Fraction, PositiveFloat, Section, refuse


class Sft(Section):
    """Supervised fine-tuning on the responses in the data: −Σ_t log q(y_t | x, y_<t). Reads no teacher."""

    kind: Literal["sft"] = "sft"


class SequenceKD(Section):
    """Sequence-level distillation (Kim & Rush 2016, arXiv 1606.07947, Eq 5): −Σ_t log q(y_t), y from the teacher.

    Needs only the teacher's text, so the teacher may have another tokenizer or be an endpoint without log-probs.
    """

    kind: Literal["sequence_kd"] = "sequence_kd"


class Divergence(Section):
    """Keys shared by the per-token divergences, which average over tokens and use the full vocabulary."""

    temperature: PositiveFloat = 1.0
    """T softens both distributions; the loss is multiplied by T² (Hinton et al. 2015, arXiv 1503.02531, section 2)."""
    on_policy: Fraction = 0.0
    """Share of each batch with responses sampled by the student; the rest come from ``responses``."""
    responses: Literal["teacher", "data"] = "teacher"
    """Source of the off-policy responses: sampled by the teacher, or read from the data."""
    hard_label_weight: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Weight w in (1 − w)·divergence + w·(−log q(y_t)), on responses from the data."""

    @model_validator(mode="after")
    def _labels_exist(self) -> Divergence:
        if self.hard_label_weight and (self.responses != "data" or self.on_policy == 1):
            raise refuse(
                f"hard_label_weight: {self.hard_label_weight} needs responses written in the data; "
                "set responses: data and on_policy below 1, or drop it"
            )
        return self


class ForwardKL(Divergence):
    """KL(p ‖ q) = Σ_v p log(p/q), mass-covering (Hinton et al. 2015; word-level KD, arXiv 1606.07947, Eq 4)."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Divergence):
    """KL(q ‖ p) = Σ_v q log(q/p) at each position, mode-seeking (GKD, arXiv 2306.13649: section 2, used in 3.1).

    On-policy it equals MiniLLM's Single term, which ignores the effect of a token on later rewards.
    """

    kind: Literal["reverse_kl"] = "reverse_kl"
    on_policy: Fraction = 1.0
    """Share of each batch with responses sampled by the student."""


class JSD(Divergence):
    """Generalized Jensen-Shannon (GKD, arXiv 2306.13649, Eq 1): β KL(p ‖ m) + (1 − β) KL(q ‖ m), m = βp + (1 − β)q."""

    kind: Literal["jsd"] = "jsd"
    beta: float = 0.5
    """β, from 0.05 to 0.95. Near 0 or 1 the gradient vanishes, so the loss does not become a KL."""
    on_policy: Fraction = 0.5
    """Share of each batch with responses sampled by the student."""

    @model_validator(mode="after")
    def _interior(self) -> JSD:
        if not 0.05 <= self.beta <= 0.95:
            end = "forward_kl" if self.beta < 0.5 else "reverse_kl"
            raise refuse(
                f"beta {self.beta} is outside 0.05 … 0.95, where the loss and its gradient shrink toward 0; "
                f"for that end use kind: {end}"
            )
        return self


class SkewKL(Divergence):
    """Skew KL (DistiLLM, arXiv 2402.03898, section 3.1): KL(p ‖ s·p + (1 − s)·q)."""

    kind: Literal["skew_kl"] = "skew_kl"
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """s, the teacher's share of the mixture; it approaches forward KL as s approaches 0."""


class SkewReverseKL(Divergence):
    """Skew reverse KL (DistiLLM, arXiv 2402.03898, section 3.1): KL(q ‖ (1 − s)·p + s·q)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """s, the student's share of the mixture; it approaches reverse KL as s approaches 0."""
    on_policy: Fraction = 1.0
    """Share of each batch with responses sampled by the student."""


class AdaptiveKL(Divergence):
    """Adaptive KL (arXiv 2404.02657, section 4): forward and reverse KL weighted by |p − q| on head and tail of p.

    Our head includes the token that crosses ``head_mass``; the authors' code leaves it out, unless it is the first.
    """

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Teacher probability mass that forms the head; μ in the paper."""


class EntropyAware(Divergence):
    """Entropy-aware distillation (arXiv 2603.07079): reverse KL, plus forward KL if the teacher's entropy is high."""

    kind: Literal["entropy_aware"] = "entropy_aware"
    entropy_threshold: PositiveFloat = 0.8
    """Forward KL is added at positions with a teacher entropy above this, in nats."""
    on_policy: Fraction = 1.0
    """Share of each batch with responses sampled by the student."""


class TotalVariation(Divergence):
    """Total variation ½ Σ_v |p − q| (f-DISTILL, arXiv 2307.15190, section 3.3): bounded by 1, symmetric."""

    kind: Literal["total_variation"] = "total_variation"


_ESTIMATOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "paper": {"teacher_mix": 0.2, "length_normalization": True, "clip": 0.2},
    "exact": {"teacher_mix": 0.0, "length_normalization": False, "clip": None},
}


class MiniLLM(Section):
    """MiniLLM (arXiv 2306.08543): minimize KL(q ‖ p) over whole responses by policy gradient (Eq 3)."""

    kind: Literal["minillm"] = "minillm"
    estimator: Literal["paper", "exact"] = "paper"
    """``paper`` is heuristic (per-token weights, normalized returns, clipping); ``exact`` is unbiased for Eq 1."""
    teacher_mix: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """α of Eq 4: share of tokens sampled by the teacher. ``paper``: 0.2, heuristic. ``exact``: 0; any α is unbiased."""
    length_normalization: bool = True
    """Use R^Norm of Eq 6, so long responses do not dominate. Heuristic: changes the objective. Off for ``exact``."""
    clip: Annotated[float, Field(gt=0, lt=1)] | None = 0.2
    """PPO's ε on the importance weight. Heuristic: biases the gradient to bound its variance. Off for ``exact``."""
    pt_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of −log q on ``data.pretraining``. Heuristic: preserves abilities that the prompts do not exercise."""
    coverage_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of forward KL on teacher samples of the same prompts. Heuristic: recovers modes that reverse KL drops."""

    @model_validator(mode="before")
    @classmethod
    def _fill_by_estimator(cls, values: object) -> object:
        if isinstance(values, Mapping):
            return {**_ESTIMATOR_DEFAULTS.get(str(values.get("estimator", "paper")), {}), **values}
        return values

    @model_validator(mode="after")
    def _exact_stays_exact(self) -> MiniLLM:
        broken_by = [("length_normalization", True)] * self.length_normalization + [("clip", self.clip)] * bool(
            self.clip
        )
        if self.estimator == "exact" and broken_by:
            field, value = broken_by[0]
            raise refuse(f"{field}: {value} makes estimator: exact biased; drop it, or use estimator: paper")
        return self


_OffPolicy = (
    Sft | SequenceKD | ForwardKL | ReverseKL | JSD | SkewKL | SkewReverseKL | AdaptiveKL | EntropyAware | TotalVariation
)
OffPolicyObjective = Annotated[_OffPolicy, Field(discriminator="kind")]
_Objective = MiniLLM | _OffPolicy
Objective = Annotated[_Objective, Field(discriminator="kind")]
OBJECTIVE_KINDS: tuple[str, ...] = tuple(each.model_fields["kind"].default for each in get_args(_Objective))
