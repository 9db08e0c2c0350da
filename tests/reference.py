"""Independent float64 references: plain Python loops, written from the equations of the papers.

This file imports nothing of the package under test, and no torch, so that an agreement between the two means something.
A distribution is a list of probabilities; p is the teacher, q the student. Nats throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Distribution = Sequence[float]
Matrix = Sequence[Sequence[float]]
DivergenceReference = Callable[[Distribution, Distribution], float]


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Return exp(z_v / T) / Σ exp(z / T); a logit of −inf has probability 0."""
    highest = max(logits)
    powers = [math.exp((logit - highest) / temperature) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def kl(of: Distribution, against: Distribution) -> float:
    """Return Σ_v of_v log(of_v / against_v), with 0 log 0 = 0, and inf where ``against`` lacks the support."""
    if any(f > 0 and a == 0 for f, a in zip(of, against, strict=True)):
        return math.inf
    return math.fsum(f * (math.log(f) - math.log(a)) for f, a in zip(of, against, strict=True) if f > 0)


def entropy(p: Distribution) -> float:
    """Return −Σ_v p_v log p_v."""
    return -math.fsum(x * math.log(x) for x in p if x > 0)


def mixture(first: Distribution, second: Distribution, share: float) -> list[float]:
    """Return share · first + (1 − share) · second."""
    return [share * f + (1 - share) * s for f, s in zip(first, second, strict=True)]


def forward_kl(q: Distribution, p: Distribution) -> float:
    """KL(p ‖ q): the expectation is over the teacher."""
    return kl(p, q)


def reverse_kl(q: Distribution, p: Distribution) -> float:
    """KL(q ‖ p): the expectation is over the student."""
    return kl(q, p)


def jsd(q: Distribution, p: Distribution, beta: float) -> float:
    """β KL(p ‖ m) + (1 − β) KL(q ‖ m) with m = βp + (1 − β)q. arXiv 2306.13649 Eq 1."""
    m = mixture(p, q, beta)
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def skew_kl(q: Distribution, p: Distribution, skew: float) -> float:
    """KL(p ‖ s·p + (1 − s)·q). arXiv 2402.03898."""
    return kl(p, mixture(p, q, skew))


def skew_reverse_kl(q: Distribution, p: Distribution, skew: float) -> float:
    """KL(q ‖ (1 − s)·p + s·q). arXiv 2402.03898."""
    return kl(q, mixture(q, p, skew))


def head(p: Distribution, mass: float) -> set[int]:
    """Return the ids of the fewest likeliest tokens whose probabilities sum to at least ``mass``."""
    chosen: list[int] = []
    for token in sorted(range(len(p)), key=lambda v: -p[v]):
        if math.fsum(p[v] for v in chosen) >= mass:
            break
        chosen.append(token)
    return set(chosen)


def head_share(q: Distribution, p: Distribution, head_mass: float) -> float:
    """Return the share of the gap Σ|p − q| that lies on the teacher's head; ½ where there is no gap."""
    in_head = head(p, head_mass)
    gaps = [abs(x - y) for x, y in zip(p, q, strict=True)]
    total = math.fsum(gaps)
    return math.fsum(gaps[v] for v in in_head) / total if total > 0 else 0.5


def adaptive_kl(q: Distribution, p: Distribution, head_mass: float) -> float:
    """Forward KL weighted by the head's share of the gap, reverse KL by the tail's. arXiv 2404.02657."""
    share = head_share(q, p, head_mass)
    return share * kl(p, q) + (1 - share) * kl(q, p)


def entropy_aware(q: Distribution, p: Distribution, entropy_threshold: float) -> float:
    """KL(q ‖ p), plus KL(p ‖ q) where H(p) exceeds the threshold. arXiv 2603.07079."""
    return kl(q, p) + (kl(p, q) if entropy(p) > entropy_threshold else 0.0)


def total_variation(q: Distribution, p: Distribution) -> float:
    """½ Σ_v |p_v − q_v|. arXiv 2307.15190."""
    return 0.5 * math.fsum(abs(x - y) for x, y in zip(p, q, strict=True))


def nucleus(p: Distribution, top_p: float) -> list[float]:
    """Return p cut to the fewest likeliest tokens of mass at least ``top_p``, renormalized. arXiv 1904.09751 Eq 2."""
    kept = head(p, top_p)
    total = math.fsum(p[v] for v in kept)
    return [p[v] / total if v in kept else 0.0 for v in range(len(p))]


def through_first_eos(ids: Sequence[int], eos_ids: set[int]) -> list[bool]:
    """Return True up to and including the first end-of-sequence token."""
    mask, running = [], True
    for token in ids:
        mask.append(running)
        running = running and token not in eos_ids
    return mask


def effective_sample_size(weights: Sequence[float]) -> float:
    """Return (Σ w)² / (B Σ w²). Kish 1965."""
    return math.fsum(weights) ** 2 / (len(weights) * math.fsum(w * w for w in weights))


def reverse_kl_gradient(q: Distribution, p: Distribution) -> list[float]:
    """Return ∂KL(q ‖ p)/∂z_v = q_v (log q_v − log p_v − KL), for q = softmax(z)."""
    value = kl(q, p)
    return [x * (math.log(x) - math.log(y) - value) for x, y in zip(q, p, strict=True)]


def score(q: Distribution, token: int) -> list[float]:
    """Return ∂log q(token)/∂z_v = [v = token] − q_v, for q = softmax(z)."""
    return [float(v == token) - x for v, x in enumerate(q)]


def minillm_exact_gradient(
    student_logits: Matrix, teacher_logits: Matrix, ids: Sequence[int], behaviour_logp: Sequence[float] | None
) -> list[list[float]]:
    """Return Σ_t W_{<t} ∇KL(q_t ‖ p_t) − Σ_t Σ_{t' > t} W_{<=t'} r_t' ∇log q(y_t), by the student's logits, [T][V].

    W_{<=t} = Π_{i <= t} q(y_i)/p̃(y_i) and r_t = log p(y_t)/q(y_t). Eq 3 of arXiv 2306.08543 with each addend reweighted
    to the student's distribution by the ratio of everything it depends on.
    """
    q = [softmax(row) for row in student_logits]
    p = [softmax(row) for row in teacher_logits]
    length = len(ids)
    ratio = [
        1.0 if behaviour_logp is None else q[t][ids[t]] / math.exp(behaviour_logp[t]) for t in range(length)
    ]  # fmt: skip
    reward = [math.log(p[t][ids[t]] / q[t][ids[t]]) for t in range(length)]
    gradient = []
    for t in range(length):
        before = math.prod(ratio[:t])
        later = math.fsum(math.prod(ratio[: u + 1]) * reward[u] for u in range(t + 1, length))
        single, likelihood = reverse_kl_gradient(q[t], p[t]), score(q[t], ids[t])
        gradient.append([before * s - later * g for s, g in zip(single, likelihood, strict=True)])
    return gradient


def minillm_paper_gradient(
    student_logits: Matrix,
    teacher_logits: Matrix,
    ids: Sequence[int],
    behaviour_logp: Sequence[float] | None,
    length_normalization: bool,
    clip: float | None,
) -> list[list[float]]:
    """Return Σ_t w_t ∇KL(q_t ‖ p_t) − Σ_t w_t A_t ∇log q(y_t), by the student's logits, [T][V].

    w_t = q/p̃ of the token; A_t = R_{t+1}, or its mean over the tokens that remain (Eq 6, off-by-one fixed). The second
    sum drops a token that PPO's clip holds: w_t above 1 + ε pushed up, or below 1 − ε pushed down.
    """
    q = [softmax(row) for row in student_logits]
    p = [softmax(row) for row in teacher_logits]
    length = len(ids)
    reward = [math.log(p[t][ids[t]] / q[t][ids[t]]) for t in range(length)]
    gradient = []
    for t in range(length):
        weight = 1.0 if behaviour_logp is None else q[t][ids[t]] / math.exp(behaviour_logp[t])
        advantage = math.fsum(reward[t + 1 :])
        if length_normalization and t + 1 < length:
            advantage /= length - t - 1
        held = clip is not None and (
            (advantage > 0 and weight > 1 + clip) or (advantage < 0 and weight < 1 - clip)
        )  # fmt: skip
        pull = 0.0 if held else weight * advantage
        single, likelihood = reverse_kl_gradient(q[t], p[t]), score(q[t], ids[t])
        gradient.append([weight * s - pull * g for s, g in zip(single, likelihood, strict=True)])
    return gradient
