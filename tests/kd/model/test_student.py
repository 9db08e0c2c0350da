"""policy: a server's named tokens and the rest give the losses of the whole vocabulary, or a bound of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from divergence_cases import BOUND, SPECS
from tiny import build_model, make_tokenizer
from torch import Tensor, nn

from skill_kd.kd.config import Distill
from skill_kd.kd.dataset.batch import Batch, Row, collate
from skill_kd.kd.losses.divergences import LOG_ZERO, bucketed, log_probs
from skill_kd.kd.losses.estimators import token_logp
from skill_kd.kd.model.student import StudentWithLoss, find_head, response_hidden_states, response_logits
from skill_kd.kd.model.teacher_distribution import LEAST_REST, TopK, on_shared_outcomes
from skill_kd.kd.train.objectives import build_objective

torch.set_num_threads(1)

B, T, V = 2, 3, 12
CPU = torch.device("cpu")
MINILLM = {"kind": "minillm", "estimator": "paper", "teacher_mix": 0.0, "length_normalization": True, "clip": 0.2}
OBJECTIVES = [*SPECS, {"kind": "forward_kl", "hard_label_weight": 0.3, "responses": "data"}, MINILLM]
BOUNDED = {kind: each for kind, each in BOUND.items() if kind not in ("adaptive_kl", "entropy_aware")}
"""Those that merging outcomes never raises: the other two decide on weights by the outcomes themselves."""


def distribution(seed: int, spread: float = 2.0) -> Tensor:
    values = torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return log_probs(spread * values).float()


def batch() -> Batch:
    """Two rows, the second one token shorter and so padded."""
    rows = [
        Row((1, 2), (3, 4, 5), (True,) * 3, "student", (-1.0, -2.0, -0.5)),
        Row((1,), (6, 0), (True,) * 2, "data", (-1.5, -2.5)),
    ]
    return collate(rows, 0, CPU)


def told(teacher_logp: Tensor, top: int) -> TopK:
    """Return the answer of a server about ``teacher_logp``: the likeliest tokens and the sampled one."""
    layout, rows = batch(), []
    for b, length in enumerate((3, 2)):
        positions = []
        for t in range(length):
            named = {*teacher_logp[b, t].topk(top).indices.tolist(), int(layout.response_BT[b, t])}
            positions.append({token: float(teacher_logp[b, t, token]) for token in named})
        rows.append(positions)
    return TopK.of(rows, V, CPU)


def build(values: dict[str, object]) -> object:
    return build_objective(Distill.of({"objective": values}).objective)


def summed(values: dict[str, object], student: Tensor, teacher: Tensor | TopK) -> Tensor:
    loss_BT = build(values).loss(*on_shared_outcomes(student, teacher, batch()))
    return torch.where(batch().mask_BT, loss_BT, 0.0).sum()


@pytest.mark.parametrize("values", OBJECTIVES, ids=str)
def test_naming_every_token_gives_the_loss_and_gradient_of_the_whole_vocabulary(values: dict[str, object]) -> None:
    logits = distribution(1).requires_grad_()
    teacher = distribution(2)
    dense = summed(values, log_probs(logits), teacher)
    named = summed(values, log_probs(logits), told(teacher, V))
    torch.testing.assert_close(named, dense, rtol=1e-5, atol=1e-5)
    expected, actual = (torch.autograd.grad(value, logits)[0] for value in (dense, named))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("top", [1, 2, 5, V - 1])
def test_merging_tokens_never_raises_a_divergence(name: str, top: int) -> None:
    mask = batch().mask_BT
    lost = 0.0
    for seed in range(20):
        student, teacher = distribution(seed), distribution(seed + 100)
        view = told(teacher, top)
        bound = BOUNDED[name](bucketed(student, view.ids_BTK), view.logp_BTK1)[mask]
        whole = BOUNDED[name](student, teacher)[mask]
        assert (bound <= whole + 1e-5).all()
        assert (bound >= -1e-6).all()
        lost += float((whole - bound).sum())
    assert lost > 1e-3 or top == V - 1  # One token alone in the rest merges nothing.


@pytest.mark.parametrize("values", OBJECTIVES, ids=str)
def test_few_named_tokens_give_finite_losses_and_gradients_also_where_rows_are_padded(
    values: dict[str, object],
) -> None:
    logits = (100 * distribution(1)).requires_grad_()
    loss = summed(values, log_probs(logits), told(distribution(2, spread=40.0), 2))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logits)[0].isfinite().all()


def test_buckets_hold_the_named_tokens_and_the_rest_exactly() -> None:
    logp = distribution(3)
    ids = torch.tensor([4, -1, 7]).expand(B, T, 3)
    merged = bucketed(logp, ids).exp()
    torch.testing.assert_close(merged[..., 0], logp[..., 4].exp())
    torch.testing.assert_close(merged[..., 2], logp[..., 7].exp())
    assert (merged[..., 1] == 0).all()
    torch.testing.assert_close(merged.sum(dim=-1), torch.ones(B, T))


def test_an_id_that_names_no_token_does_not_hide_token_0() -> None:
    logp = distribution(3)
    ids = torch.tensor([0, -1]).expand(B, T, 2)
    torch.testing.assert_close(bucketed(logp, ids)[..., 2].exp(), 1 - logp[..., 0].exp())


def test_rows_that_name_different_numbers_of_tokens_are_laid_out_alike() -> None:
    view = TopK.of([[{3: math.log(0.5), 1: math.log(0.25)}, {2: math.log(0.75)}], [{5: math.log(0.1)}]], V, CPU)
    assert view.ids_BTK.tolist() == [[[3, 1], [2, -1]], [[5, -1], [-1, -1]]]
    expected = [[[0.5, 0.25, 0.25], [0.75, 0.0, 0.25]], [[0.1, 0.0, 0.9], [0.0, 0.0, 1.0]]]
    torch.testing.assert_close(view.logp_BTK1.exp(), torch.tensor(expected))


def test_tokens_that_the_student_lacks_are_part_of_the_rest() -> None:
    view = TopK.of([[{3: math.log(0.5), V: math.log(0.3)}]], V, CPU)
    assert view.ids_BTK.tolist() == [[[3]]]
    torch.testing.assert_close(view.logp_BTK1.exp(), torch.tensor([[[0.5, 0.5]]]))


def test_a_rest_lost_in_rounding_costs_no_more_than_rounding_could_hide() -> None:
    view = TopK.of([[{3: 0.0}]], V, CPU)
    assert float(view.logp_BTK1[0, 0, 1]) == pytest.approx(math.log(LEAST_REST), rel=1e-3)
    whole = TopK.of([[dict.fromkeys(range(V), -math.log(V))]], V, CPU)
    assert float(whole.logp_BTK1[0, 0, V]) == LOG_ZERO


def test_a_response_token_is_found_in_its_bucket() -> None:
    student, teacher = distribution(1), distribution(2)
    view = told(teacher, 2)
    shared_logp, teacher_logp, layout = on_shared_outcomes(student, view, batch())
    assert teacher_logp is not None
    mask, ids = layout.mask_BT, batch().response_BT
    for buckets, tokens in ((shared_logp, student), (teacher_logp, teacher)):
        torch.testing.assert_close(
            token_logp(buckets, layout.response_BT)[mask], token_logp(tokens, ids)[mask], rtol=1e-5, atol=1e-6
        )


def test_a_policy_accepts_a_servers_top_k_as_a_distribution() -> None:
    tokenizer = make_tokenizer()
    policy = StudentWithLoss(build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer), V)
    objective = build({"kind": "reverse_kl"})
    teacher = distribution(2)
    dense, named, few = (
        policy(batch(), objective.loss, view, 1.0) for view in (teacher, told(teacher, V), told(teacher, 1))
    )
    torch.testing.assert_close(named, dense, rtol=1e-5, atol=1e-5)
    assert 0 < few < dense
    few.backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in policy.parameters())


def test_the_batch_itself_is_left_as_it_was() -> None:
    layout = batch()
    before = replace(layout, response_BT=layout.response_BT.clone())
    on_shared_outcomes(distribution(1), told(distribution(2), 2), layout)
    assert layout.response_BT.equal(before.response_BT)


@pytest.mark.parametrize("values", [*OBJECTIVES, {"kind": "sft"}, {**MINILLM, "estimator": "exact"}], ids=str)
@pytest.mark.parametrize("student", ["llama", "gpt2", "qwen2"])
def test_working_from_hidden_states_changes_neither_loss_nor_gradient(student: str, values: dict[str, object]) -> None:
    tokenizer = make_tokenizer()
    padded = {"vocabulary": len(tokenizer) + 7, "tokenizer": tokenizer, "layers": 1}
    model, teacher = build_model(student, **padded), build_model("llama", **padded, seed=1)
    head = find_head(teacher, V)
    assert head is not None
    view = None if values["kind"] == "sft" else response_hidden_states(teacher, batch(), head)
    policy, objective = StudentWithLoss(model, V), build(values)
    losses, gradients = [], []
    for known in (policy.head, None):
        assert policy.head is not None
        policy.head = known
        policy.zero_grad()
        loss = policy(batch(), objective.loss, view, 1.0)
        loss.backward()
        losses.append(loss.detach())
        gradients.append([weight.grad.clone() for weight in policy.parameters() if weight.grad is not None])
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    assert len(gradients[0]) == len(list(policy.parameters()))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_head_with_an_adapter_keeps_all_logits() -> None:
    """LoRA adds to the output of the head, which hidden states and weight alone do not show."""
    from peft import LoraConfig, get_peft_model

    tokenizer = make_tokenizer()
    model = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    everywhere = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
    assert find_head(everywhere, V) is None
    plain = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    assert find_head(get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"])), V) is not None


def test_a_model_that_returns_more_logits_than_asked_for_is_read_at_the_same_positions() -> None:
    model = build_model("llama", layers=1, vocabulary=300, tokenizer=make_tokenizer())

    def ask_for_all(
        _model: nn.Module, args: tuple[object, ...], inputs: Mapping[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        return args, {**inputs, "logits_to_keep": 0}

    head = find_head(model, 300)
    assert head is not None
    with torch.no_grad():
        expected = response_logits(model, batch(), 300), response_hidden_states(model, batch(), head).hidden_BTH
        model.register_forward_pre_hook(ask_for_all, with_kwargs=True)
        found = response_logits(model, batch(), 300), response_hidden_states(model, batch(), head).hidden_BTH
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
