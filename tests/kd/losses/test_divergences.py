"""divergences: right against plain-loop references, in the direction they name, finite where logits are not."""

import functools
import math

import pytest
import reference
import torch
from divergence_cases import CASES, SYMMETRIC, Case
from torch import Tensor

from skill_kd.kd.losses import divergences
from skill_kd.kd.losses.divergences import LOG_ZERO, log_probs

torch.set_num_threads(1)  # Tensors this small only lose time to threads.

every_divergence = pytest.mark.parametrize(
    "case", CASES, ids=lambda case: "-".join(map(str, (case[0], *case[1].values())))
)


def ours(case: Case) -> divergences.Divergence:
    return functools.partial(getattr(divergences, case[0]), **case[1])


def theirs(case: Case) -> reference.DivergenceReference:
    return functools.partial(getattr(reference, case[0]), **case[1])


def logits(seed: int, rows: int = 40, vocabulary: int = 7, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocabulary, dtype=torch.float64, generator=generator)


def referred(case: Case, student: Tensor, teacher: Tensor) -> Tensor:
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    values = [theirs(case)(reference.softmax(q), reference.softmax(p)) for q, p in pairs]
    return torch.tensor(values, dtype=torch.float64)


@every_divergence
@pytest.mark.parametrize("scale", [0.1, 2.0, 100.0], ids=["near uniform", "usual", "extreme"])
def test_value_agrees_with_the_reference(case: Case, scale: float) -> None:
    student, teacher = logits(1, scale=scale), logits(2, scale=scale)
    value = ours(case)(log_probs(student), log_probs(teacher))
    torch.testing.assert_close(value, referred(case, student, teacher), rtol=1e-9, atol=1e-12)
    assert (value >= 0).all()


@every_divergence
def test_is_zero_exactly_where_the_distributions_agree(case: Case) -> None:
    teacher = logits(3)
    same = ours(case)(log_probs(teacher + 5.0), log_probs(teacher))
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-12)
    assert (ours(case)(log_probs(logits(4)), log_probs(teacher)) > 1e-4).all()


@pytest.mark.parametrize("case", [case for case in CASES if case not in SYMMETRIC], ids=str)
def test_swapped_arguments_are_another_divergence(case: Case) -> None:
    """Without this the agreement above could hold in either direction."""
    student, teacher = logits(1), logits(2)
    swapped = ours(case)(log_probs(teacher), log_probs(student))
    assert (swapped - referred(case, student, teacher)).abs().mean() > 1e-3


def test_forward_kl_agrees_with_torch() -> None:
    student, teacher = log_probs(logits(5)), log_probs(logits(6))
    expected = torch.nn.functional.kl_div(student, teacher, log_target=True, reduction="none").sum(dim=-1)
    torch.testing.assert_close(divergences.forward_kl(student, teacher), expected, rtol=1e-12, atol=1e-12)


def test_forward_kl_is_cross_entropy_less_the_teachers_entropy() -> None:
    student, teacher = log_probs(logits(5)), log_probs(logits(6))
    cross_entropy = -(teacher.exp() * student).sum(dim=-1)
    expected = cross_entropy - divergences.entropy(teacher)
    torch.testing.assert_close(divergences.forward_kl(student, teacher), expected, rtol=1e-12, atol=1e-12)


def test_entropy_agrees_with_the_reference() -> None:
    teacher = logits(6)
    expected = [reference.entropy(reference.softmax(row)) for row in teacher.tolist()]
    torch.testing.assert_close(divergences.entropy(log_probs(teacher)), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("share", [1e-6, 0.2, 0.5, 1 - 1e-6])
def test_mixture_gives_its_share_to_the_first(share: float) -> None:
    first, second = logits(7, rows=1), logits(8, rows=1)
    expected = reference.mixture(
        reference.softmax(first[0].tolist()), reference.softmax(second[0].tolist()), share
    )  # fmt: skip
    mixed = divergences.mixture(log_probs(first), log_probs(second), share)[0].exp()
    torch.testing.assert_close(mixed, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)


# Direction: which mass a student keeps when it cannot keep all of it.

GRID = torch.arange(41, dtype=torch.float64)
HIGH, LOW = 10.0, 30.0  # The teacher's two modes, far apart for a student of this width.


def bump(center: Tensor | float) -> Tensor:
    return -((GRID - center) ** 2) / (2 * 2.0**2)


def fitted_center(divergence: divergences.Divergence) -> float:
    """Return the center of the one-parameter student that is best by ``divergence``."""
    teacher_logp = torch.logaddexp(bump(HIGH) + math.log(0.6), bump(LOW) + math.log(0.4)).log_softmax(dim=-1)
    centers = torch.linspace(0, 40, 401, dtype=torch.float64)
    student_logp = bump(centers.unsqueeze(1)).log_softmax(dim=-1)
    return float(centers[divergence(student_logp, teacher_logp.expand_as(student_logp)).argmin()])


@pytest.mark.parametrize(
    "divergence",
    [
        divergences.forward_kl,
        functools.partial(divergences.jsd, beta=1e-30),
        functools.partial(divergences.skew_kl, skew=1e-30),
    ],
    ids=["forward_kl", "jsd, beta near 0", "skew_kl, skew near 0"],
)
def test_covering_divergences_put_the_student_between_the_modes(divergence: divergences.Divergence) -> None:
    mean = 0.6 * HIGH + 0.4 * LOW
    assert fitted_center(divergence) == pytest.approx(mean, abs=1.5)


@pytest.mark.parametrize(
    "divergence",
    [
        divergences.reverse_kl,
        functools.partial(divergences.jsd, beta=0.999),
        functools.partial(divergences.skew_reverse_kl, skew=0.001),
    ],
    ids=["reverse_kl", "jsd, beta near 1", "skew_reverse_kl, skew near 0"],
)
def test_seeking_divergences_put_the_student_on_the_larger_mode(divergence: divergences.Divergence) -> None:
    assert fitted_center(divergence) == pytest.approx(HIGH, abs=0.2)


@pytest.mark.parametrize(
    ("close", "far"), [("skew_kl", "forward_kl"), ("skew_reverse_kl", "reverse_kl")], ids=["forward", "reverse"]
)
def test_skew_near_0_is_the_plain_divergence(close: str, far: str) -> None:
    student, teacher = log_probs(logits(1)), log_probs(logits(2))
    skewed = getattr(divergences, close)(student, teacher, skew=1e-9)
    torch.testing.assert_close(skewed, getattr(divergences, far)(student, teacher), rtol=1e-5, atol=1e-6)


def test_jsd_divided_by_its_share_tends_to_forward_and_to_reverse_kl() -> None:
    student, teacher = log_probs(logits(1)), log_probs(logits(2))
    near_0 = divergences.jsd(student, teacher, beta=1e-7) / 1e-7
    near_1 = divergences.jsd(student, teacher, beta=1 - 1e-7) / 1e-7
    torch.testing.assert_close(near_0, divergences.forward_kl(student, teacher), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(near_1, divergences.reverse_kl(student, teacher), rtol=1e-4, atol=1e-6)


# Gradients.


@pytest.mark.parametrize("case", [case for case in CASES if case[0] != "adaptive_kl"], ids=str)
def test_gradient_agrees_with_finite_differences(case: Case) -> None:
    student, teacher_logp = logits(1, rows=1).requires_grad_(), log_probs(logits(2, rows=1))
    assert torch.autograd.gradcheck(lambda z: ours(case)(log_probs(z), teacher_logp), (student,))


@pytest.mark.parametrize("head_mass", [0.2, 0.5, 0.95])
def test_adaptive_kl_weights_carry_no_gradient(head_mass: float) -> None:
    student, teacher = logits(1, rows=6), logits(2, rows=6)
    share = torch.tensor(
        [
            reference.head_share(reference.softmax(q), reference.softmax(p), head_mass)
            for q, p in zip(student.tolist(), teacher.tolist(), strict=True)
        ],
        dtype=torch.float64,
    )

    def held(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
        forward, reverse = divergences.forward_kl, divergences.reverse_kl
        return share * forward(student_logp, teacher_logp) + (1 - share) * reverse(student_logp, teacher_logp)

    adaptive = functools.partial(divergences.adaptive_kl, head_mass=head_mass)
    torch.testing.assert_close(gradient(adaptive, student, teacher), gradient(held, student, teacher))


def gradient(divergence: divergences.Divergence, student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    student = student.detach().requires_grad_()
    value = divergence(log_probs(student, temperature), log_probs(teacher, temperature))
    (slope,) = torch.autograd.grad(value.sum(), student)
    return slope


@every_divergence
def test_gradient_is_zero_and_finite_where_the_distributions_agree(case: Case) -> None:
    teacher = logits(3)
    slope = gradient(ours(case), teacher, teacher)
    torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-12)


@every_divergence
def test_no_gradient_reaches_the_teacher_through_a_detached_input(case: Case) -> None:
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    ours(case)(log_probs(student), log_probs(teacher).detach()).sum().backward()
    assert student.grad is not None
    assert teacher.grad is None


# Numbers that break careless code. The float32 path is the one that training takes.

INF = math.inf
HOSTILE = {
    "student lacks a teacher token": ([0.3, -INF, 1.0, 0.2], [0.1, 0.5, 0.2, -1.0]),
    "teacher lacks a student token": ([0.3, 0.1, 1.0, 0.2], [0.1, -INF, 0.2, -1.0]),
    "both lack the same token": ([0.3, -INF, 1.0, 0.2], [0.1, -INF, 0.2, -1.0]),
    "disjoint supports": ([0.3, 0.2, -INF, -INF], [-INF, -INF, 0.1, 0.2]),
    "one token each, the same": ([-INF, 2.0, -INF, -INF], [-INF, 5.0, -INF, -INF]),
    "one token each, different": ([-INF, 2.0, -INF, -INF], [3.0, -INF, -INF, -INF]),
    "huge and opposed": ([1e4, -1e4, 0.0, 1e4], [-1e4, 1e4, 1e4, 0.0]),
    "huge and equal": ([1e4, -1e4, 0.0, 1e4], [1e4, -1e4, 0.0, 1e4]),
}


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_value_and_gradient_are_finite(case: Case, dtype: torch.dtype, temperature: float) -> None:
    student, teacher = torch.tensor(list(HOSTILE.values()), dtype=dtype).unbind(dim=1)
    value = ours(case)(log_probs(student, temperature), log_probs(teacher, temperature))
    slope = gradient(ours(case), student, teacher, temperature)
    for situation, amount, row in zip(HOSTILE, value, slope, strict=True):
        assert amount.isfinite(), situation
        assert amount >= -1e-6, situation
        assert row.isfinite().all(), situation


@every_divergence
@pytest.mark.parametrize("missing", ["student", "teacher", "both"])
def test_tokens_of_probability_zero_change_nothing_else(case: Case, missing: str) -> None:
    """If the reference is finite, a −inf logit must give its value: 0 log 0 is 0."""
    student, teacher = logits(1), logits(2)
    for name, side in (("student", student), ("teacher", teacher)):
        if missing in (name, "both"):
            side[:, 2] = -INF
    expected = referred(case, student, teacher)
    finite = expected.isfinite()
    value = ours(case)(log_probs(student), log_probs(teacher))
    torch.testing.assert_close(value[finite], expected[finite], rtol=1e-9, atol=1e-12)
    assert value.isfinite().all()


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_an_infinite_divergence_counts_the_bound_for_each_missing_token(name: str) -> None:
    full, lacking = logits(1), logits(2)
    lacking[:, 2] = -INF
    student, teacher = (lacking, full) if name == "forward_kl" else (full, lacking)
    of, against = log_probs(full), log_probs(lacking)
    present = [0, 1, 3, 4, 5, 6]
    rest = (of.exp() * (of - against))[:, present].sum(dim=-1)
    expected = rest + of[:, 2].exp() * (of[:, 2] - LOG_ZERO)
    torch.testing.assert_close(ours((name, {}))(log_probs(student), log_probs(teacher)), expected)


@every_divergence
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_half_precision_logits_are_computed_in_float32(case: Case, dtype: torch.dtype) -> None:
    student, teacher = logits(1).to(dtype), logits(2).to(dtype)
    value = ours(case)(log_probs(student), log_probs(teacher))
    assert value.dtype == torch.float32
    expected = referred(case, student.double(), teacher.double())
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-6)
    assert gradient(ours(case), student, teacher).isfinite().all()


def test_near_equal_large_vocabularies_keep_their_precision_in_float32() -> None:
    student = logits(9, rows=2, vocabulary=50_000, scale=3.0)
    teacher = student + logits(10, rows=2, vocabulary=50_000, scale=0.1)
    exact = divergences.reverse_kl(log_probs(student), log_probs(teacher))
    rounded = divergences.reverse_kl(log_probs(student.float()), log_probs(teacher.float()))
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-3, atol=1e-6)


# log_probs.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probs_is_the_tempered_softmax(temperature: float) -> None:
    rows = logits(11, rows=5)
    expected = torch.tensor([reference.softmax(row, temperature) for row in rows.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_probs(rows, temperature).exp(), expected, rtol=1e-12, atol=1e-15)


def test_log_probs_is_bounded_and_the_bound_is_probability_zero() -> None:
    logp = log_probs(torch.tensor([[0.0, -INF, -3e4]]))
    assert logp[0, 1:].tolist() == [LOG_ZERO, LOG_ZERO]
    assert logp.double().exp()[0, 1:].tolist() == [0, 0]


def test_log_probs_keeps_float64_and_widens_the_rest() -> None:
    for given, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        assert log_probs(torch.zeros(1, 3, dtype=given)).dtype == expected


# Adaptive and gated forms.


def test_the_adaptive_head_is_the_fewest_tokens_that_reach_the_mass() -> None:
    teacher = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()
    student = torch.tensor([[0.1, 0.2, 0.3, 0.4]], dtype=torch.float64).log()
    forward, reverse = divergences.forward_kl(student, teacher), divergences.reverse_kl(student, teacher)
    gaps = [0.3, 0.1, 0.1, 0.3]
    for mass, in_head in ((0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4)):
        share = sum(gaps[:in_head]) / sum(gaps)
        expected = share * forward + (1 - share) * reverse
        torch.testing.assert_close(divergences.adaptive_kl(student, teacher, head_mass=mass), expected)


def test_forward_kl_joins_only_above_the_entropy_threshold() -> None:
    teacher = log_probs(torch.zeros(1, 4, dtype=torch.float64))
    student = log_probs(logits(12, rows=1, vocabulary=4))
    forward, reverse = divergences.forward_kl(student, teacher), divergences.reverse_kl(student, teacher)
    entropy = float(divergences.entropy(teacher))
    assert entropy == pytest.approx(math.log(4))
    for threshold, expected in (
        (entropy - 1e-9, forward + reverse),
        (entropy, reverse),
        (entropy + 1e-9, reverse),
    ):
        torch.testing.assert_close(divergences.entropy_aware(student, teacher, entropy_threshold=threshold), expected)


def test_the_gate_is_set_for_each_position_apart() -> None:
    teacher = log_probs(torch.tensor([[9.0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64))
    student = log_probs(logits(12, rows=2, vocabulary=4))
    forward, reverse = divergences.forward_kl(student, teacher), divergences.reverse_kl(student, teacher)
    gated = divergences.entropy_aware(student, teacher, entropy_threshold=0.8)
    torch.testing.assert_close(gated, torch.stack([reverse[0], reverse[1] + forward[1]]))


@every_divergence
def test_any_leading_shape_is_kept(case: Case) -> None:
    student, teacher = log_probs(logits(1)), log_probs(logits(2))
    flat = ours(case)(student, teacher)
    shaped = ours(case)(student.view(4, 10, 7), teacher.view(4, 10, 7))
    torch.testing.assert_close(shaped, flat.view(4, 10), rtol=1e-12, atol=1e-14)


def test_total_variation_is_between_0_and_1() -> None:
    disjoint = [torch.tensor([[0.0, -INF]]), torch.tensor([[-INF, 0.0]])]
    assert divergences.total_variation(*map(log_probs, disjoint)).item() == 1
    assert (divergences.total_variation(log_probs(logits(1)), log_probs(logits(2))) < 1).all()
