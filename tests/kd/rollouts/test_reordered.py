"""reordered: the same products, only while sampling, and nothing left behind."""

import copy
from collections.abc import Iterator

import pytest
import tiny
import torch
from torch import nn

from skill_kd.kd.dataset.encoding import Encoded
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.reordered import MOST_ROWS, can_reorder, reordered_weights
from skill_kd.kd.rollouts.sampler import Sampler, requests_for

pytestmark = pytest.mark.skipif(not can_reorder(), reason="this torch cannot reorder weights")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def is_reordered(layer: nn.Module) -> bool:
    return "forward" in vars(layer)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 1, 5), (2, 40, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_gives_the_product_of_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer, states = nn.Linear(5, 7, bias=bias), torch.randn(shape)
    expected = layer(states)
    with reordered_weights(layer):
        assert is_reordered(layer)
        torch.testing.assert_close(layer(states), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rows", "copied"), [((MOST_ROWS,), True), ((2, MOST_ROWS // 2 + 1), False)])
def test_the_copy_serves_few_rows_alone(rows: tuple[int, ...], copied: bool) -> None:
    layer, states = nn.Linear(5, 7), torch.randn(*rows, 5)
    with reordered_weights(layer):
        before = layer(states)
        layer.weight += 1  # which the copy does not see
        assert torch.equal(layer(states), before) == copied


def test_takes_the_weights_of_the_moment() -> None:
    layer, states = nn.Linear(5, 7), torch.randn(2, 5)
    for _ in range(2):
        layer.weight += 1
        with reordered_weights(layer):
            torch.testing.assert_close(
                layer(states), nn.functional.linear(states, layer.weight, layer.bias), rtol=1e-5, atol=1e-5
            )


def test_hooks_still_run() -> None:
    layer, states = nn.Linear(5, 7), torch.randn(2, 5)
    layer.register_forward_pre_hook(lambda _layer, args: (args[0][:1],))
    with reordered_weights(layer):
        assert layer(states).shape == (1, 7)


def test_leaves_every_layer_as_it_was_even_after_an_error() -> None:
    def break_off(_layer: nn.Module, _args: object) -> None:
        assert all(is_reordered(layer) for layer in model)
        raise RuntimeError("planned")

    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 5))
    before = copy.deepcopy(model.state_dict())
    model[1].register_forward_pre_hook(break_off)
    with pytest.raises(RuntimeError, match="planned"), reordered_weights(model, model):
        model(torch.randn(2, 5))
    assert not any(is_reordered(layer) for layer in model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_spares_what_it_does_not_know() -> None:
    class Special(nn.Linear):
        pass

    changed = nn.Linear(5, 7)
    own = changed.forward = lambda states: states
    spared = [Special(5, 7), nn.Linear(5, 7).double(), nn.Linear(5, 7, device="meta"), nn.Conv1d(5, 7, 1)]
    with reordered_weights(*spared, changed):
        assert not any(is_reordered(layer) for layer in spared)
        assert changed.forward is own
    assert changed.forward is own
    with torch.autocast("cpu", dtype=torch.bfloat16), reordered_weights(layer := nn.Linear(5, 7)):
        assert not is_reordered(layer)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_sampler_draws_the_same_tokens_with_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny.make_tokenizer()
    student, teacher = (
        tiny.build_model(kind, layers=2, vocabulary=len(tokenizer), tokenizer=tokenizer, seed=seed) for seed in (0, 1)
    )
    decoding = Decoding(12, 1.0, 1.0, frozenset({2}), len(tokenizer))
    requests = requests_for([Encoded((5, 6, 7)), Encoded((9,))], (0,))
    sampler, seen = Sampler(decoding, 0, CPU), []
    student.lm_head.register_forward_hook(lambda layer, _args, _output: seen.append(is_reordered(layer)))
    with_it = sampler.sample_mixed(student, teacher, 0.3, requests), sampler.sample(student, requests, "student")
    assert set(seen) == {True}
    assert not is_reordered(student.lm_head)
    monkeypatch.setattr("skill_kd.kd.rollouts.reordered.can_reorder", lambda: False)
    without = sampler.sample_mixed(student, teacher, 0.3, requests), sampler.sample(student, requests, "student")
    assert not any(seen[len(seen) // 2 :])
    for ours, theirs in zip(with_it, without, strict=True):
        assert [row.response for row in ours] == [row.response for row in theirs]
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                torch.tensor(a.behaviour_logp), torch.tensor(b.behaviour_logp), rtol=1e-4, atol=1e-4
            )
