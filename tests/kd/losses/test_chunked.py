"""chunked: from hidden states the same values and gradients as from all logits at once, in memory for one chunk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from divergence_cases import BOUND
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skill_kd.kd.losses import divergences
from skill_kd.kd.losses.chunked import summed_loss
from skill_kd.kd.losses.compiled import fused
from skill_kd.kd.losses.divergences import log_probs
from skill_kd.kd.losses.estimators import EXACT, PAPER, Estimator, Responses, paper, token_logp
from skill_kd.kd.losses.lm_head import Head, LogitTransform
from skill_kd.kd.losses.projection import HiddenStates

torch.set_num_threads(1)

B, T, V, H, TEACHER_H, PADDING = 4, 5, 11, 6, 3, 3
CHUNKS = {"a token": 1, "two tokens": 2 * V * 8, "seven tokens": 7 * V * 8, "all": 2**20}


@dataclass
class Setting:
    """A student with a tied or an untied head, a teacher of another width, and what to score."""

    embedding: nn.Embedding
    linear: nn.Linear
    below: Tensor
    """Values that the student adds to its embeddings, so that hidden states are more than the head's own weights."""
    teacher_BTH: Tensor
    teacher_linear: nn.Linear
    ids_BT: Tensor
    mask_BT: Tensor
    behaviour_BT: Tensor
    transform: LogitTransform = field(default_factory=LogitTransform)
    teacher_transform: LogitTransform = field(default_factory=LogitTransform)

    def hidden(self) -> Tensor:
        return torch.tanh(self.embedding(self.ids_BT.clamp(min=0, max=V - 1)) + self.below)

    def states(self) -> HiddenStates:
        return HiddenStates(self.hidden(), Head(self.linear, V, self.transform))

    def teacher(self) -> HiddenStates:
        return HiddenStates(self.teacher_BTH, Head(self.teacher_linear, V, self.teacher_transform))

    def dense(self, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        student = log_probs(self.transform(self.linear(self.hidden())[..., :V]), temperature)
        return student, log_probs(
            self.teacher_transform(self.teacher_linear(self.teacher_BTH)[..., :V]), temperature
        ).detach()

    def responses(self, behaviour: bool = False) -> Responses:
        return Responses(self.ids_BT, self.mask_BT, self.behaviour_BT if behaviour else None)

    def wanted(self) -> list[Tensor]:
        found = [self.below, self.embedding.weight, self.linear.weight, self.linear.bias]
        return list({id(each): each for each in found if each is not None}.values())

    def numbers(self) -> list[Tensor]:
        return [*self.wanted(), *self.teacher_linear.parameters(), self.teacher_BTH]


def setting(tied: bool = False, bias: bool = True, dtype: torch.dtype = torch.float64, seed: int = 0) -> Setting:
    torch.manual_seed(seed)
    embedding, linear = nn.Embedding(V + PADDING, H, dtype=dtype), nn.Linear(H, V + PADDING, bias=bias, dtype=dtype)
    if tied:
        linear.weight = embedding.weight
    ids_BT = torch.randint(0, V, (B, T))
    # Rows of different lengths, one with a gap and one without any scored token.
    mask_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)
    return Setting(
        embedding,
        linear,
        torch.randn(B, T, H, dtype=dtype).requires_grad_(),
        torch.randn(B, T, TEACHER_H, dtype=dtype),
        nn.Linear(TEACHER_H, V + 1, dtype=dtype).requires_grad_(False),
        ids_BT,
        mask_BT,
        -torch.rand(B, T, dtype=dtype) * 3,
    )


def of_tokens(divergence: Callable[[Tensor, Tensor], Tensor]) -> Estimator:
    return Estimator(lambda student_logp, teacher_logp, _ids: divergence(student_logp, teacher_logp))


LIKELIHOOD = Estimator(lambda student_logp, _teacher, ids: -token_logp(student_logp, ids))


def assert_same(s: Setting, dense: Tensor, chunks: Tensor, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Values and gradients, of a multiple so that the gradient that arrives is not 1."""
    torch.testing.assert_close(chunks, dense.to(chunks.dtype), rtol=rtol, atol=atol)
    expected, actual = (torch.autograd.grad(-3 * value, s.wanted()) for value in (dense, chunks))
    for e, a in zip(expected, actual, strict=True):
        assert e.abs().max() > 1e-3
        torch.testing.assert_close(a, e, rtol=rtol, atol=atol)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("name", BOUND)
def test_a_divergence_has_the_value_and_gradients_of_all_logits_at_once(name: str, chunk: str) -> None:
    s = setting()
    student, teacher = s.dense(temperature=2.0)
    dense = torch.where(s.mask_BT, BOUND[name](student, teacher), 0.0).sum()
    loss = of_tokens(BOUND[name])
    chunks = summed_loss(s.states(), s.teacher(), s.responses(), loss, temperature=2.0, chunk_bytes=CHUNKS[chunk])
    assert_same(s, dense, chunks)


@pytest.mark.parametrize("on_policy", [True, False], ids=["on-policy", "mixed"])
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    "estimator",
    [EXACT, PAPER, paper(length_normalization=False, clip=None)],
    ids=["exact", "paper", "paper, plain"],
)
def test_an_estimator_knows_the_rest_of_its_row_whatever_the_chunk(
    estimator: Estimator, chunk: str, on_policy: bool
) -> None:
    s = setting(seed=1)
    responses = s.responses(behaviour=not on_policy)
    chunks = summed_loss(s.states(), s.teacher(), responses, estimator, chunk_bytes=CHUNKS[chunk])
    assert_same(s, estimator(*s.dense(), responses).sum(), chunks)


def reverse(s: Setting, **options: Any) -> Tensor:
    return summed_loss(
        s.states(),
        s.teacher(),
        s.responses(),
        of_tokens(divergences.reverse_kl),
        **{"chunk_bytes": 300} | options,
    )


def dense_reverse(s: Setting, temperature: float = 1.0) -> Tensor:
    return torch.where(s.mask_BT, divergences.reverse_kl(*s.dense(temperature)), 0.0).sum()


@pytest.mark.parametrize(
    "transform", [LogitTransform(), LogitTransform(0.3), LogitTransform(1.0, 2.0), LogitTransform(4.0, 2.0)], ids=str
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_kind_of_head(tied: bool, bias: bool, transform: LogitTransform) -> None:
    s = setting(tied, bias)
    s.transform, s.teacher_transform = transform, LogitTransform(0.7, 3.0)
    assert_same(s, dense_reverse(s), reverse(s))


def test_the_padding_of_a_head_has_no_gradient() -> None:
    s = setting()
    reverse(s).backward()
    assert (s.linear.weight.grad[V:] == 0).all()
    assert (s.linear.bias.grad[V:] == 0).all()


def test_finite_differences() -> None:
    s = setting()
    s.transform = LogitTransform(0.5, 3.0)
    wanted = s.wanted()
    gradients = torch.autograd.grad(reverse(s, temperature=1.5), wanted)
    for tensor, gradient in zip(wanted, gradients, strict=True):
        direction, values = torch.randn_like(tensor), []
        for step in (1e-5, -2e-5):
            tensor.data.add_(direction, alpha=step)
            values.append(float(reverse(s, temperature=1.5).detach()))
        tensor.data.add_(direction, alpha=1e-5)
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


def test_weights_of_positions_and_rows() -> None:
    s = setting()
    per_row, per_token = torch.rand(B, 1, dtype=torch.float64), torch.rand(B, T, dtype=torch.float64)

    def loss(student: Tensor, teacher: Tensor, ids: Tensor, row: Tensor, token: Tensor) -> Tensor:
        return row * divergences.forward_kl(student, teacher) - token * token_logp(student, ids)

    dense = torch.where(s.mask_BT, loss(*s.dense(), s.ids_BT, per_row, per_token), 0.0).sum()
    estimator = Estimator(loss, lambda _responses, _logq, _logp: (per_row, per_token))
    assert_same(s, dense, summed_loss(s.states(), s.teacher(), s.responses(), estimator, chunk_bytes=300))
    torch.testing.assert_close(estimator(*s.dense(), s.responses()).sum(), dense)


def test_weights_that_read_what_they_do_not_ask_for_fail() -> None:
    s = setting()
    estimator = replace(EXACT, reads_rows=False)
    with pytest.raises(RuntimeError, match="size"):
        estimator(*s.dense(), s.responses())
    with pytest.raises(RuntimeError, match="size"):
        summed_loss(s.states(), s.teacher(), s.responses(), estimator)


def test_without_a_teacher() -> None:
    s = setting()

    def loss(student: Tensor, teacher: Tensor | None, ids: Tensor) -> Tensor:
        assert teacher is None
        return -token_logp(student, ids)

    dense = torch.where(s.mask_BT, -token_logp(s.dense()[0], s.ids_BT), 0.0).sum()
    assert_same(s, dense, summed_loss(s.states(), None, s.responses(), Estimator(loss), chunk_bytes=300))


def test_what_is_not_scored_is_never_read() -> None:
    s = setting()
    expected = reverse(s)
    s.ids_BT = s.ids_BT.masked_fill(~s.mask_BT, -100)
    s.teacher_BTH = s.teacher_BTH.masked_fill(~s.mask_BT.unsqueeze(-1), torch.nan)
    s.below = s.below.detach().masked_fill(~s.mask_BT.unsqueeze(-1), torch.nan).requires_grad_()
    value = reverse(s)
    assert value == expected
    assert torch.autograd.grad(value, s.linear.weight)[0].isfinite().all()


def test_nothing_scored_is_zero_with_gradients_of_zero() -> None:
    s = setting()
    s.mask_BT = torch.zeros_like(s.mask_BT)
    for value in (reverse(s), summed_loss(s.states(), s.teacher(), s.responses(), EXACT)):
        assert value == 0
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(value, s.wanted()))


def test_a_frozen_head_and_frozen_states() -> None:
    s = setting()
    expected = torch.autograd.grad(dense_reverse(s), [s.below, s.linear.weight])
    s.linear.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(reverse(s), s.below)[0], expected[0])
    s.linear.requires_grad_(True)
    s.below.requires_grad_(False), s.embedding.requires_grad_(False)
    torch.testing.assert_close(torch.autograd.grad(reverse(s), s.linear.weight)[0], expected[1])


def test_without_gradients_only_the_value_is_computed() -> None:
    s = setting()
    with torch.no_grad(), LiveBytes() as memory:
        value = reverse(s)
    assert not value.requires_grad
    torch.testing.assert_close(value, dense_reverse(s).detach())
    assert s.linear.weight.shape not in memory.made


def test_gradients_are_given_out_once() -> None:
    value = reverse(setting())
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        value.backward()


# --- dtypes -----------------------------------------------------------------------------------------------------------


def test_bfloat16_weights_are_as_right_as_their_products() -> None:
    s = setting(dtype=torch.bfloat16)
    value = reverse(s)
    assert value.dtype == torch.float32
    gradients = torch.autograd.grad(value, s.wanted())
    assert {gradient.dtype for gradient in gradients} == {torch.bfloat16}
    assert_near(s, value, gradients)


def test_autocast_computes_products_in_its_dtype_and_gradients_in_the_weights() -> None:
    s = setting(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = reverse(s)
    gradients = torch.autograd.grad(value, s.wanted())
    assert {each.dtype for each in (value, *gradients)} == {torch.float32}
    assert (value - reverse(s)).abs() > 1e-6  # It did compute in bfloat16.
    assert_near(s, value, gradients)


def assert_near(s: Setting, value: Tensor, gradients: tuple[Tensor, ...]) -> None:
    """Against float64 with the same numbers."""
    wide = setting()
    wide.ids_BT = s.ids_BT
    for narrow, other in zip(s.numbers(), wide.numbers(), strict=True):
        other.data.copy_(narrow.data)
    exact = dense_reverse(wide)
    assert float(value.detach()) == pytest.approx(float(exact.detach()), rel=0.02)
    for actual, expected in zip(gradients, torch.autograd.grad(exact, wide.wanted()), strict=True):
        assert (actual.double() - expected).norm() < 0.02 * expected.norm()


def test_gradients_and_the_sum_of_bfloat16_weights_are_accumulated_in_float32() -> None:
    # In bfloat16 a sum of equal addends stops at 256 of them.
    linear = nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
    states = HiddenStates(torch.ones(1, 1024, 1, dtype=torch.bfloat16, requires_grad=True), Head(linear, 2))
    ids, mask = torch.zeros(1, 1024, dtype=torch.long), torch.ones(1, 1024, dtype=torch.bool)
    many = summed_loss(states, None, Responses(ids, mask), LIKELIHOOD, chunk_bytes=1)
    first = HiddenStates(states.hidden_BTH[:, :1], states.head)
    one = summed_loss(first, None, Responses(ids[:, :1], mask[:, :1]), LIKELIHOOD)
    assert float(many) == pytest.approx(1024 * float(one), rel=1e-4)
    gradients = [torch.autograd.grad(value, linear.weight)[0] for value in (many, one)]
    torch.testing.assert_close(gradients[0], 1024 * gradients[1])


# --- memory -----------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Adds up the storages that operations make: ``peak`` is the highest sum of those alive, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.storages: dict[int, int] = {}
        self.made: set[torch.Size] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given | self.storages.keys():
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.made.add(tensor.shape)
        self.storages[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, key: int) -> None:
        self.live -= self.storages.pop(key)


def peak(tokens: int, loss: Estimator, vocabulary: int = 4000, rows: int = 8) -> int:
    shape = rows, tokens // rows
    linear = nn.Linear(2, vocabulary, bias=False)
    hidden = torch.randn(*shape, 2, requires_grad=True)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool)
    teacher = HiddenStates(torch.randn(*shape, 2), Head(nn.Linear(2, vocabulary, bias=False), vocabulary))
    with LiveBytes() as memory:
        student = HiddenStates(hidden, Head(linear, vocabulary))
        summed_loss(student, teacher, Responses(ids, mask), loss, chunk_bytes=8 * vocabulary * 4).backward()
    return memory.peak


@pytest.mark.parametrize(
    "loss",
    [
        of_tokens(divergences.reverse_kl),
        replace(EXACT, weights=lambda _responses, logq, logp: (logq, logp)),
    ],
    ids=["positions", "whole rows"],
)
def test_memory_does_not_grow_with_the_tokens(loss: Estimator) -> None:
    few, many = peak(64, loss), peak(512, loss)
    assert few > 2 * 8 * 4000 * 4  # Two models' chunks are counted.
    # What a token may add: states, gradients, ids, mask, a handful of weights; its logits would be 16,000 bytes.
    assert many - few < (512 - 64) * 200


class Products(TorchDispatchMode):
    """Adds up the multiplications in matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.multiplications = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in {"mm", "addmm", "addmm_"}:
            left, right = args[-2:]
            self.multiplications += left.numel() * right.shape[1]
        return function(*args, **(kwargs or {}))


LABELLED = Estimator(
    lambda student, teacher, _ids, share: share * divergences.reverse_kl(student, teacher),
    lambda responses, _logq, _logp: (torch.full((len(responses.mask_BT), 1), 0.5, dtype=torch.float64),),
)


@pytest.mark.parametrize(
    ("estimator", "tokens", "products"),
    [
        (EXACT, 5, 4),
        (EXACT, 7, 4),
        (EXACT, 4, 5),
        (of_tokens(divergences.reverse_kl), 4, 4),
        (LIKELIHOOD, 4, 4),
        (LABELLED, 4, 4),
    ],
    ids=["a row", "rows", "less than a row", "no weights", "likelihood", "weights of rows"],
)
def test_only_rows_that_are_read_and_do_not_fit_cost_more_than_four_products_of_what_is_scored(
    estimator: Estimator, tokens: int, products: int
) -> None:
    s = setting(bias=False)
    s.teacher_BTH = torch.randn(B, T, H, dtype=torch.float64)
    s.teacher_linear = nn.Linear(H, V, bias=False, dtype=torch.float64).requires_grad_(False)
    student, teacher = s.states(), s.teacher()
    with Products() as count:
        summed_loss(student, teacher, s.responses(), estimator, chunk_bytes=tokens * V * 8).backward()
    assert s.mask_BT.sum() == 10  # Rows of 5, 3 and 2: the first one is read twice in the last case.
    assert count.multiplications == products * 10 * V * H


# --- the compiler -----------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    fused.cache_clear()
    yield
    fused.cache_clear()


def test_a_compiler_that_fails_is_done_without_and_said_once(
    fresh_compiler: None, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def broken(*_args: object, **_options: object) -> Callable[..., Any]:
        def fails(*_args: object) -> None:
            raise RuntimeError("no C++ compiler")

        return fails

    monkeypatch.setattr(torch, "compile", broken)
    s = setting()
    assert_same(s, dense_reverse(s), reverse(s, compiled=True))
    reverse(s, compiled=True)
    said = [str(w.message) for w in recwarn]
    assert said == ["torch.compile fails here, so the loss is not compiled: no C++ compiler"]


def test_compiled_is_the_same(fresh_compiler: None) -> None:
    s = setting()
    s.transform = LogitTransform(0.5, 3.0)

    def value(compiled: bool) -> Tensor:
        return summed_loss(s.states(), s.teacher(), s.responses(behaviour=True), EXACT, compiled=compiled)

    assert_same(s, value(compiled=False), value(compiled=True))


# --- inside a wrapper -------------------------------------------------------------------------------------------------


def test_inside_distributed_data_parallel() -> None:
    class Policy(nn.Module):
        def __init__(self, s: Setting) -> None:
            super().__init__()
            self.embedding, self.linear, self.below = s.embedding, s.linear, nn.Parameter(s.below.detach())

        def forward(self) -> Tensor:
            s.below = self.below
            return reverse(s)

    s = setting(tied=True)
    expected = torch.autograd.grad(dense_reverse(s), [s.embedding.weight, s.linear.bias])
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        nn.parallel.DistributedDataParallel(Policy(s))().backward()
    finally:
        torch.distributed.destroy_process_group()
    for gradient, weight in zip(expected, [s.embedding.weight, s.linear.bias], strict=True):
        torch.testing.assert_close(weight.grad, gradient)
