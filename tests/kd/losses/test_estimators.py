"""estimators: the exact one proven by enumerating every response, the paper's with its bias measured.

``enumeration`` gives the expected gradient of a loss and the exact gradient of KL(q ‖ p); ``reference`` gives the
gradient of one response, in plain loops, from the equations.
"""

import math

import pytest
import reference
import torch
from torch import Tensor

from skill_kd.kd.losses.divergences import log_probs, reverse_kl
from skill_kd.kd.losses.estimators import (
    effective_sample_size,
    log_weights,
    minillm_exact,
    minillm_paper,
    paper,
    token_logp,
)
from skill_kd.prove import enumeration, known
from skill_kd.prove.enumeration import AllResponses, Loss, cosine, exact_gradient, expected_gradient, random_policy
from skill_kd.prove.judging import policies

torch.set_num_threads(1)  # Tensors this small only lose time to threads.

SEEDS = range(4)
PLAIN: Loss = paper(length_normalization=False, clip=None).of_tensors
ESTIMATORS: dict[str, Loss] = {
    "exact": minillm_exact,
    "paper": minillm_paper,
    "paper, no length normalization": paper(length_normalization=False).of_tensors,
    "paper, no clip": paper(clip=None).of_tensors,
    "paper, neither": PLAIN,
}
every_estimator = pytest.mark.parametrize("loss", ESTIMATORS.values(), ids=ESTIMATORS.keys())


@pytest.fixture(scope="module", params=[3, 4], ids=["3 tokens", "4 tokens"])
def responses(request: pytest.FixtureRequest) -> AllResponses:
    """Vocabulary 4 with EOS: lengths 1 to the limit, the longest both ended and cut."""
    return enumeration.all_responses(vocabulary=4, max_length=request.param)


@pytest.fixture(scope="module")
def long_responses() -> AllResponses:
    return enumeration.all_responses(vocabulary=4, max_length=4)


# The harness itself: a proof is worth as much as what it is measured with.


def test_enumeration_holds_every_response_once(responses: AllResponses) -> None:
    rows = [tuple(ids[mask].tolist()) for ids, mask in zip(responses.ids_NT, responses.mask_NT, strict=True)]
    limit = responses.ids_NT.shape[1]
    assert len(rows) == len(set(rows)) == sum(3**t for t in range(limit)) + 3**limit
    assert {len(row) for row in rows} == set(range(1, limit + 1))
    assert any(row[-1] != 0 for row in rows)
    assert responses.prefixes == sum(3**t for t in range(limit))


def test_enumerated_probabilities_sum_to_one(responses: AllResponses) -> None:
    student, teacher = policies(responses, 0)
    for teacher_mix in (0.0, 0.2, 1.0):
        total = enumeration.mixture_logp(student, teacher, responses, teacher_mix).sum(dim=1).exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-14)


def test_enumerated_kl_obeys_the_chain_rule(responses: AllResponses) -> None:
    """KL(q ‖ p) = Σ over prefixes of the prefix's probability times KL there, by loops that share no code."""
    student, teacher = policies(responses, 0)
    q = [reference.softmax(row) for row in student.tolist()]
    p = [reference.softmax(row) for row in teacher.tolist()]
    total, seen = 0.0, set()
    for ids, mask, rows in zip(
        responses.ids_NT.tolist(), responses.mask_NT.tolist(), responses.prefix_NT.tolist(), strict=True
    ):
        reached = 1.0
        for token, counted, row in zip(ids, mask, rows, strict=True):
            if counted and row not in seen:
                seen.add(row)
                total += reached * reference.kl(q[row], p[row])
            reached *= q[row][token]
    assert float(enumeration.exact_kl(student, teacher, responses)) == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("teacher_mix", [None, 0.3])
def test_variance_is_that_of_the_gradients_of_single_responses(teacher_mix: float | None) -> None:
    """Against one backward pass a response."""
    responses = enumeration.all_responses(vocabulary=3, max_length=3)
    student, teacher = policies(responses, 0)
    behaviour = enumeration.mixture_logp(student, teacher, responses, teacher_mix or 0.0)
    leaf = student.clone().requires_grad_()
    loss = minillm_exact(
        enumeration.next_token_logp(leaf, responses),
        enumeration.next_token_logp(teacher, responses),
        responses.ids_NT,
        responses.mask_NT,
        None if teacher_mix is None else behaviour,
    )
    gradients = [torch.autograd.grad(each, leaf, retain_graph=True)[0].flatten() for each in loss.sum(dim=1)]
    gradient_NP, probability_N1 = torch.stack(gradients), behaviour.sum(dim=1).exp().unsqueeze(1)
    mean = (probability_N1 * gradient_NP).sum(dim=0)
    expected = (probability_N1 * (gradient_NP - mean).square()).sum()
    variance = enumeration.gradient_variance(minillm_exact, student, teacher, responses, teacher_mix)
    assert variance == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_per_decision_vary_less_than_one_for_the_whole_sequence(
    long_responses: AllResponses, seed: int
) -> None:
    for teacher_mix in (0.2, 0.5):
        pair = policies(long_responses, seed)
        own, whole, plain = (
            enumeration.gradient_variance(loss, *pair, long_responses, teacher_mix)
            for loss in (minillm_exact, known.whole_sequence, known.plain_policy_gradient)
        )
        assert own < whole < plain


# Exactness.


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("teacher_mix", [None, 0.0, 0.2, 0.5])
def test_exact_follows_the_gradient_of_reverse_kl(
    responses: AllResponses, seed: int, teacher_mix: float | None
) -> None:
    student, teacher = policies(responses, seed)
    expected = exact_gradient(student, teacher, responses)
    assert expected.norm() > 0.01
    gradient = expected_gradient(minillm_exact, student, teacher, responses, teacher_mix)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
def test_paper_without_its_heuristics_is_exact_on_policy(responses: AllResponses, seed: int) -> None:
    student, teacher = policies(responses, seed)
    gradient = expected_gradient(PLAIN, student, teacher, responses)
    torch.testing.assert_close(gradient, exact_gradient(student, teacher, responses), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("teacher_mix", [None, 0.2, 0.5])
@every_estimator
def test_no_gradient_remains_where_the_student_is_the_teacher(
    responses: AllResponses, loss: Loss, teacher_mix: float | None, seed: int
) -> None:
    teacher = random_policy(responses, seed)
    gradient = expected_gradient(loss, teacher, teacher, responses, teacher_mix)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


# Bias, measured; the ranges are those of an enumeration of its own.


@pytest.mark.parametrize("seed", SEEDS)
def test_the_papers_final_form_is_biased_as_measured(long_responses: AllResponses, seed: int) -> None:
    student, teacher = policies(long_responses, seed)
    expected = exact_gradient(student, teacher, long_responses)
    gradient = expected_gradient(minillm_paper, student, teacher, long_responses, 0.2)
    assert 0.72 < cosine(gradient, expected) < 0.98


@pytest.mark.parametrize("seed", SEEDS)
def test_the_papers_weights_alone_are_biased_as_measured(long_responses: AllResponses, seed: int) -> None:
    student, teacher = policies(long_responses, seed)
    expected = exact_gradient(student, teacher, long_responses)
    gradient = expected_gradient(PLAIN, student, teacher, long_responses, 0.2)
    assert 0.89 < cosine(gradient, expected) < 0.995
    assert cosine(expected_gradient(PLAIN, student, teacher, long_responses, 0.5), expected) < cosine(
        gradient, expected
    )


@pytest.mark.parametrize(
    ("wrong", "teacher_mix"),
    [(known.single_only, None), (known.eq_5, 0.2), (known.sampled_log_ratio, None), (known.without_eos, None)],
)
def test_enumeration_finds_the_usual_mistakes(
    long_responses: AllResponses, wrong: Loss, teacher_mix: float | None
) -> None:
    for seed in SEEDS:
        student, teacher = policies(long_responses, seed)
        expected = exact_gradient(student, teacher, long_responses)
        gradient = expected_gradient(wrong, student, teacher, long_responses, teacher_mix)
        assert (gradient - expected).norm() / expected.norm() > 0.05


# One batch at a time: the gradient of each response against plain loops.

LENGTHS = (1, 2, 3, 6)
T, V = max(LENGTHS), 5


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return student logits (leaf), teacher logits, ids, mask, behavior log-probs; rows of 1, 2, 3 and 6 tokens."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn(len(LENGTHS), T, V, dtype=torch.float64, generator=generator).to(dtype) for _ in "qp"
    )  # fmt: skip
    ids = torch.randint(V, (len(LENGTHS), T), generator=generator)
    mask = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(1)
    mixed = 0.4 * teacher.softmax(dim=-1) + 0.6 * student.softmax(dim=-1)
    return student.requires_grad_(), teacher, ids, mask, token_logp(mixed.log(), ids)


def logit_gradient(
    loss: Loss, student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behaviour: Tensor | None
) -> Tensor:
    total = loss(log_probs(student), log_probs(teacher), ids, mask, behaviour).sum()
    (gradient,) = torch.autograd.grad(total, student)
    return gradient


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "mixed"])
def test_exact_gradient_of_each_response_is_the_score_function_form(on_policy: bool) -> None:
    """Returns and weights are detached: anything that flowed through them would add to this."""
    student, teacher, ids, mask, behaviour = batch()
    gradient = logit_gradient(minillm_exact, student, teacher, ids, mask, None if on_policy else behaviour)
    for row, length in enumerate(LENGTHS):
        expected = reference.minillm_exact_gradient(
            student[row].tolist(),
            teacher[row].tolist(),
            ids[row, :length].tolist(),
            None if on_policy else behaviour[row].tolist(),
        )
        torch.testing.assert_close(gradient[row, :length], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "mixed"])
@pytest.mark.parametrize("length_normalization", [True, False])
@pytest.mark.parametrize("clip", [None, 0.2, 0.05])
def test_paper_gradient_of_each_response_is_the_score_function_form(
    on_policy: bool, length_normalization: bool, clip: float | None
) -> None:
    student, teacher, ids, mask, behaviour = batch(1)
    loss = paper(length_normalization=length_normalization, clip=clip).of_tensors
    gradient = logit_gradient(loss, student, teacher, ids, mask, None if on_policy else behaviour)
    for row, length in enumerate(LENGTHS):
        expected = reference.minillm_paper_gradient(
            student[row].tolist(),
            teacher[row].tolist(),
            ids[row, :length].tolist(),
            None if on_policy else behaviour[row].tolist(),
            length_normalization,
            clip,
        )
        torch.testing.assert_close(gradient[row, :length], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("length", [1, 2])
@every_estimator
def test_short_responses_are_finite_and_their_last_token_has_no_later_reward(loss: Loss, length: int) -> None:
    student, teacher, ids, mask, _ = batch(2)
    student, teacher = student[:1, :length].detach().requires_grad_(), teacher[:1, :length]
    ids, mask = ids[:1, :length], torch.ones(1, length, dtype=torch.bool)
    assert loss(log_probs(student), log_probs(teacher), ids, mask, None).isfinite().all()
    gradient = logit_gradient(loss, student, teacher, ids, mask, None)
    q, p = reference.softmax(student[0, -1].tolist()), reference.softmax(teacher[0, -1].tolist())
    expected = torch.tensor(reference.reverse_kl_gradient(q, p), dtype=torch.float64)
    torch.testing.assert_close(gradient[0, -1], expected)


def test_length_normalization_divides_by_the_tokens_that_remain() -> None:
    """Each later reward is 1, so every normalized return is 1, and the plain one is the count."""
    logq, logp = math.log(0.25), math.log(0.25) + 1
    length, eye = 4, torch.eye(2, dtype=torch.float64)[0]
    student = torch.full((1, length, 2), logq, dtype=torch.float64).requires_grad_()
    teacher = torch.full((1, length, 2), logp, dtype=torch.float64)
    ids, mask = torch.zeros(1, length, dtype=torch.long), torch.ones(1, length, dtype=torch.bool)
    for normalized, returns in ((True, [1, 1, 1, 0]), (False, [3, 2, 1, 0])):
        loss = paper(length_normalization=normalized, clip=None).of_tensors(student, teacher, ids, mask)
        single = torch.where(mask, reverse_kl(student, teacher), 0.0)
        (pull,) = torch.autograd.grad((single - loss).sum(), student)
        torch.testing.assert_close(pull[0], torch.tensor(returns, dtype=torch.float64).unsqueeze(1) * eye)


@pytest.mark.parametrize(
    ("weight", "advantage", "flows"),
    [(1.3, 1, False), (1.3, -1, True), (0.7, 1, True), (0.7, -1, False), (1.1, 1, True), (0.9, -1, True)],
)
def test_clip_stops_the_gradient_only_where_the_advantage_pushes_further_out(
    weight: float, advantage: int, flows: bool
) -> None:
    # The first token's only later reward is the advantage; at equal distributions there is no Single term to see.
    student = torch.zeros(1, 2, 2, dtype=torch.float64)
    teacher = student.clone()
    teacher[0, 1, 0] = advantage
    student.requires_grad_()
    ids, mask = torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
    behaviour = token_logp(log_probs(student), ids).detach() - math.log(weight)
    gradient = logit_gradient(minillm_paper, student, teacher, ids, mask, behaviour)[0, 0]
    assert bool(gradient.any()) is flows
    if flows:
        assert math.copysign(1, -float(gradient[0])) == advantage


# Masks, padding, batches.


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "mixed"])
@every_estimator
def test_masked_positions_add_exactly_nothing(loss: Loss, on_policy: bool) -> None:
    student, teacher, ids, mask, behaviour = batch(3)
    clean = loss(log_probs(student), log_probs(teacher), ids, mask, None if on_policy else behaviour)
    slope = logit_gradient(loss, student, teacher, ids, mask, None if on_policy else behaviour)
    assert not clean[~mask].any()
    assert not slope[~mask].any()
    for garbage in (1e4, -1e4):
        dirty = student.detach().clone()
        dirty[~mask] = torch.tensor([garbage, -math.inf, 0, garbage, -garbage], dtype=torch.float64)
        dirty.requires_grad_()
        dirty_teacher = teacher.clone()
        dirty_teacher[~mask] = torch.tensor([-math.inf, 0, garbage, -garbage, 1.0], dtype=torch.float64)
        dirty_behaviour = behaviour.masked_fill(~mask, math.nan)
        arguments = (dirty_teacher, ids.masked_fill(~mask, -100), mask, None if on_policy else dirty_behaviour)
        value = loss(log_probs(dirty), log_probs(dirty_teacher), *arguments[1:])
        assert torch.equal(value, clean)
        assert torch.equal(logit_gradient(loss, dirty, *arguments), slope)


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "mixed"])
@every_estimator
def test_nan_at_masked_positions_stays_out_of_the_loss(loss: Loss, on_policy: bool) -> None:
    student, teacher, ids, mask, behaviour = batch(3)
    given = None if on_policy else behaviour
    clean = loss(log_probs(student), log_probs(teacher), ids, mask, given)
    dirty = [log_probs(z).masked_fill(~mask.unsqueeze(-1), math.nan) for z in (student, teacher)]
    assert torch.equal(loss(*dirty, ids, mask, given), clean)


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "mixed"])
@every_estimator
def test_more_padding_changes_nothing(loss: Loss, on_policy: bool) -> None:
    student, teacher, ids, mask, behaviour = batch(4)
    given = None if on_policy else behaviour
    value = loss(log_probs(student), log_probs(teacher), ids, mask, given)
    slope = logit_gradient(loss, student, teacher, ids, mask, given)
    padded = torch.nn.functional.pad
    wide = padded(student.detach(), (0, 0, 0, 3), value=0.5).requires_grad_()
    arguments = (
        padded(teacher, (0, 0, 0, 3), value=-0.5),
        padded(ids, (0, 3), value=2),
        padded(mask, (0, 3), value=False),
        None if on_policy else padded(behaviour, (0, 3), value=-7.0),
    )
    wide_value = loss(log_probs(wide), log_probs(arguments[0]), *arguments[1:])
    torch.testing.assert_close(wide_value, padded(value, (0, 3)), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        logit_gradient(loss, wide, *arguments), padded(slope, (0, 0, 0, 3)), rtol=0, atol=1e-13
    )  # fmt: skip


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "mixed"])
@every_estimator
def test_a_batch_is_the_sum_of_its_rows(loss: Loss, on_policy: bool) -> None:
    student, teacher, ids, mask, behaviour = batch(5)
    given = None if on_policy else behaviour
    value = loss(log_probs(student), log_probs(teacher), ids, mask, given)
    slope = logit_gradient(loss, student, teacher, ids, mask, given)
    for row, length in enumerate(LENGTHS):
        at = (slice(row, row + 1), slice(length))
        alone = student[at].detach().requires_grad_()
        arguments = (teacher[at], ids[at], mask[at], None if on_policy else behaviour[at])
        torch.testing.assert_close(loss(log_probs(alone), log_probs(arguments[0]), *arguments[1:]), value[at])
        torch.testing.assert_close(logit_gradient(loss, alone, *arguments), slope[at])


@every_estimator
def test_a_row_that_is_all_masked_adds_nothing(loss: Loss) -> None:
    student, teacher, ids, mask, behaviour = batch(5)
    empty = torch.zeros_like(mask)
    assert not loss(log_probs(student), log_probs(teacher), ids, empty, behaviour).any()
    assert not logit_gradient(loss, student, teacher, ids, empty, behaviour).any()


@every_estimator
def test_tokens_one_model_rules_out_keep_loss_and_gradient_finite(loss: Loss) -> None:
    """The teacher may draw what the student gives probability 0, and the student what the teacher does."""
    student, teacher, ids, mask, _ = batch(6, torch.float32)
    for side in (student.detach(), teacher):
        excluded = side.detach().clone()
        excluded.scatter_(-1, ids[:, :2].unsqueeze(-1), -math.inf)
        q, p = (excluded, teacher) if side is not teacher else (student.detach(), excluded)
        q = q.requires_grad_()
        mixed = torch.logaddexp(log_probs(p) + math.log(0.2), log_probs(q) + math.log(0.8)).detach()
        behaviour = token_logp(mixed, ids)
        assert loss(log_probs(q), log_probs(p), ids, mask, behaviour).isfinite().all()
        assert logit_gradient(loss, q, p, ids, mask, behaviour).isfinite().all()


@every_estimator
def test_passing_the_students_own_log_probabilities_equals_passing_none(loss: Loss) -> None:
    student, teacher, ids, mask, _ = batch(7)
    own = token_logp(log_probs(student), ids).detach()
    torch.testing.assert_close(
        logit_gradient(loss, student, teacher, ids, mask, own),
        logit_gradient(loss, student, teacher, ids, mask, None),
    )


# Weights.


def test_log_weights_are_detached_and_zero_where_masked() -> None:
    student, _, ids, mask, behaviour = batch(8)
    logq = token_logp(log_probs(student), ids)
    weights = log_weights(logq, mask, behaviour)
    assert not weights.requires_grad
    torch.testing.assert_close(weights[mask], (logq - behaviour)[mask].detach())
    assert not weights[~mask].any()
    assert not log_weights(logq, mask, None).any()


def test_effective_sample_size_agrees_with_kish() -> None:
    log_weight = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = reference.effective_sample_size([math.exp(sum(row)) for row in log_weight.tolist()])
    assert effective_sample_size(log_weight) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("level", [0.0, 1.0, -3000.0, 3000.0])
def test_equal_weights_are_all_effective(level: float) -> None:
    assert effective_sample_size(torch.full((8, 3), level)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("gap", [200.0, 5000.0])
def test_one_dominant_weight_leaves_one_of_the_batch(gap: float) -> None:
    log_weight = torch.zeros(8, 3)
    log_weight[5] = gap
    assert effective_sample_size(log_weight) == pytest.approx(1 / 8, abs=1e-9)


def test_effective_sample_size_falls_as_the_teacher_mixes_in_more(long_responses: AllResponses) -> None:
    student, teacher = policies(long_responses, 0)
    sizes = []
    for teacher_mix in (0.0, 0.2, 0.5):
        behaviour = enumeration.mixture_logp(student, teacher, long_responses, teacher_mix)
        own = enumeration.mixture_logp(student, teacher, long_responses, 0.0)
        sizes.append(effective_sample_size(log_weights(own, long_responses.mask_NT, behaviour)))
    assert sizes[0] == pytest.approx(1)
    assert sizes[0] > sizes[1] > sizes[2]
