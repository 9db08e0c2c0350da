"""Compare a loss's expected gradient with those of KL(q ‖ p), of KL(p ‖ q) and of the known losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from skill_kd.errors import UsageError
from skill_kd.prove.enumeration import (
    AllResponses,
    Loss,
    all_responses,
    cosine,
    exact_gradient,
    expected_gradient,
    mixture_logp,
    next_token_logp,
    random_policy,
)
from skill_kd.prove.known import FORWARD, KNOWN
from skill_kd.prove.verdict import SENTENCES, Case, Kind, Verdict

VOCABULARY, LENGTH = 4, 3
TOLERANCE = 1e-5
"""Largest relative error that passes. The rounding of float32 stays below it; known biases are 100 times larger."""


def judge(loss: Loss, name: str, seeds: int, teacher_mixes: Sequence[float]) -> Verdict:
    """Compare ``loss`` with the exact gradient over all responses of up to 3 tokens of a vocabulary of 4, EOS included.

    Args:
        loss: (student_logp_BTV, teacher_logp_BTV, ids_BT, mask_BT, behavior_logp_BT or None) -> loss_BT, or its sum
            over T, or over all. Float64, T = 3, V = 4. It is called with one row at a time. A mean over tokens is
            therefore over one response's own tokens, and a scalar is the loss of one response.
        seeds: number of pairs of random policies.
        teacher_mixes: each α of the sampler (Eq 4); at 0 the loss gets None for ``behavior_logp_BT``.

    Raises:
        UsageError: the loss raises an error, or returns a value without gradient.
    """
    rowwise = row_by_row(loss, name)
    try:
        return _judged(rowwise, name, seeds, teacher_mixes)
    except RuntimeError as error:  # from torch, in the backward pass
        words = " ".join(str(error).split())
        raise UsageError(f"{name} has no gradient that torch can compute: {words}") from error


def _judged(rowwise: Loss, name: str, seeds: int, teacher_mixes: Sequence[float]) -> Verdict:
    responses = all_responses(VOCABULARY, LENGTH)
    cases = tuple(compare(rowwise, responses, seed, mix) for mix in teacher_mixes for seed in range(seeds))
    matter = any(_masked_positions_matter(rowwise, responses, mix) for mix in teacher_mixes)
    likeness = _likeness(rowwise, responses, seeds, teacher_mixes)
    same_as = next((known for known, (_, apart) in likeness.items() if apart <= TOLERANCE), None)
    nearest = max(likeness, key=lambda known: likeness[known][0])
    kind = _kind(cases, matter)
    if kind == "biased" and (same_as in FORWARD or _forward_on_teacher_samples(rowwise, responses, seeds)):
        kind = "forward_kl"
    says = SENTENCES[kind].format(step=cases[0].step)
    if matter:
        says += "; masked positions affect its gradient"
    return Verdict(name, kind, says, same_as, f"{nearest} (cosine {likeness[nearest][0]:.3f})", matter, cases)


def _kind(cases: Sequence[Case], masked_positions_matter: bool) -> Kind:
    if not all(abs(case.error + case.at_teacher) < torch.inf for case in cases):
        return "not_finite"
    on_policy = [case for case in cases if case.teacher_mix == 0]
    if on_policy and all(max(abs(case.step), case.left) <= TOLERANCE for case in on_policy):
        return "zero"
    if masked_positions_matter:
        return "biased"
    if _one_step_apart(cases):
        exact = max(case.error for case in cases) <= TOLERANCE
        return "exact" if exact else "step_size" if cases[0].step > 0 else "wrong_sign"
    return "on_policy_only" if on_policy and on_policy[0].step > 0 and _one_step_apart(on_policy) else "biased"


def _one_step_apart(cases: Sequence[Case]) -> bool:
    """Return True if all cases are right with the same step size."""
    steps = [case.step for case in cases]
    return all(map(_right, cases)) and max(steps) - min(steps) <= TOLERANCE * max(map(abs, steps))


def _right(case: Case) -> bool:
    """Return True if a case is exact up to a step size, and has no gradient if the student equals the teacher."""
    return max(case.left, case.at_teacher) <= TOLERANCE * abs(case.step)


def compare(loss: Loss, responses: AllResponses, seed: int, teacher_mix: float) -> Case:
    """Measure a loss, called with all responses as one batch, on this seed's pair of policies."""
    student, teacher = policies(responses, seed)
    mix = teacher_mix or None
    exact = exact_gradient(student, teacher, responses)
    gradient = expected_gradient(loss, student, teacher, responses, mix)
    step = float((gradient * exact).sum() / (exact * exact).sum())
    return Case(
        teacher_mix,
        seed,
        error=float((gradient - exact).norm() / exact.norm()),
        cosine=cosine(gradient, exact),
        step=step,
        left=float((gradient - step * exact).norm() / exact.norm()),
        cosine_with_forward=cosine(gradient, exact_gradient(student, teacher, responses, forward=True)),
        at_teacher=float(expected_gradient(loss, teacher, teacher, responses, mix).norm()),
    )


def policies(responses: AllResponses, seed: int) -> tuple[Tensor, Tensor]:
    """Return a random student and teacher: logits with standard deviation 1."""
    return random_policy(responses, seed), random_policy(responses, 100 + seed)


def row_by_row(loss: Loss, name: str) -> Loss:
    """Return the loss as loss_B: it is called with one row at a time, and its result is summed."""

    def rowwise(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
        def of_row(row: int) -> Tensor:
            # Copies, so that a loss that writes into its arguments cannot affect other rows.
            at = slice(row, row + 1)
            given = None if behavior is None else behavior[at].clone()
            return loss(student[at], teacher[at].clone(), ids[at].clone(), mask[at].clone(), given).sum()

        try:
            total = torch.stack([of_row(row) for row in range(len(ids))])
        except Exception as error:  # a user's loss may raise anything
            words = " ".join(str(error).split())
            raise UsageError(
                f"{name} raised {type(error).__name__}: {words}. Its arguments are log-probabilities "
                f"[1, {ids.shape[1]}, {student.shape[2]}] of student and teacher, ids and mask [1, {ids.shape[1]}], "
                "and the sampler's log-probabilities of the ids or None. It must return a tensor"
            ) from error
        if not total.requires_grad:
            raise UsageError(
                f"{name} returns a loss without gradient; compute it from its first argument, and do not detach that"
            )
        return total

    return rowwise


def _inside(loss: Loss) -> Loss:
    """Return the loss without its gradient at masked positions."""

    def inside(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
        return loss(torch.where(mask.unsqueeze(-1), student, student.detach()), teacher, ids, mask, behavior)

    return inside


def _likeness(
    loss: Loss, responses: AllResponses, seeds: int, teacher_mixes: Sequence[float]
) -> dict[str, tuple[float, float]]:
    """Return, for each known loss, the cosine with its gradients and the difference at the best step size."""

    def stacked(some: Loss) -> Tensor:
        pairs = [policies(responses, seed) for seed in range(seeds)]
        mixes = [mix or None for mix in teacher_mixes]
        return torch.cat([expected_gradient(_inside(some), *pair, responses, mix) for pair in pairs for mix in mixes])

    own = stacked(loss)
    others = {known: stacked(each) for known, each in KNOWN.items()}
    return {known: (cosine(own, other), _apart(own, other)) for known, other in others.items()}


def _apart(gradient: Tensor, other: Tensor) -> float:
    """Return ‖g − c·o‖ / ‖g‖ at the best c > 0; 1 if there is no such c."""
    step = (gradient * other).sum() / (other * other).sum()
    return float((gradient - step * other).norm() / gradient.norm()) if step > 0 else 1.0


def _forward_on_teacher_samples(loss: Loss, responses: AllResponses, seeds: int) -> bool:
    """Return True if, on the teacher's responses, the loss follows the gradient of KL(p ‖ q)."""
    drawn = [policies(responses, seed) for seed in range(seeds)]
    own = torch.cat([expected_gradient(_inside(loss), *pair, responses, 1.0) for pair in drawn])
    forward = torch.cat([exact_gradient(*pair, responses, forward=True) for pair in drawn])
    return _apart(own, forward) <= TOLERANCE


def _masked_positions_matter(loss: Loss, responses: AllResponses, teacher_mix: float) -> bool:
    """Return True if masked positions get gradient, or if their values change the gradient elsewhere."""
    mask = responses.mask_NT
    student, teacher = policies(responses, 0)
    behavior = mixture_logp(student, teacher, responses, teacher_mix) if teacher_mix else None
    clean = [next_token_logp(theta, responses) for theta in (student, teacher)]
    noise = torch.randn(clean[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dirty = [torch.where(mask.unsqueeze(-1), logp, noise.log_softmax(dim=-1)) for logp in clean]
    dirty_ids = responses.ids_NT.masked_fill(~mask, 1)
    dirty_behavior = behavior.masked_fill(~mask, -3.0) if behavior is not None else None
    gradients: list[Tensor] = []
    for pair, ids, logp in ((clean, responses.ids_NT, behavior), (dirty, dirty_ids, dirty_behavior)):
        leaf = pair[0].detach().requires_grad_()
        gradients += torch.autograd.grad(loss(leaf, pair[1], ids, mask, logp).sum(), leaf)
    reached = any(bool(gradient[~mask].any()) for gradient in gradients)
    return reached or not torch.allclose(gradients[0][mask], gradients[1][mask], rtol=TOLERANCE, atol=TOLERANCE)
