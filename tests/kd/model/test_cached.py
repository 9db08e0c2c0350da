"""caches: rows leave, and tokens after a cache are read, in every kind of cache that transformers has."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from skill_kd.kd.model.cached import CachedModel, cache_of
from skill_kd.kd.model.ensemble import Ensemble

torch.set_num_threads(1)

SHAPE = {"vocab_size": 13, "hidden_size": 16, "initializer_range": 0.5, "bos_token_id": 1, "eos_token_id": 2}
ATTENTION = {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, Callable[[], Any]] = {
    "keys": lambda: transformers.Qwen3Config(num_hidden_layers=2, **ATTENTION, **SHAPE),
    "window": lambda: transformers.MistralConfig(num_hidden_layers=2, sliding_window=3, **ATTENTION, **SHAPE),
    "state": lambda: transformers.MambaConfig(num_hidden_layers=2, state_size=4, time_step_rank=4, **SHAPE),
    "convolution": lambda: transformers.Lfm2Config(
        num_hidden_layers=2, layer_types=["conv", "full_attention"], **ATTENTION, **SHAPE
    ),
    "state and keys in one layer": lambda: transformers.FalconH1Config(
        num_hidden_layers=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, **ATTENTION, **SHAPE
    ),
}


ENSEMBLES = {"ensemble of states": ["state", "state"], "ensemble of keys and states": ["keys", "state"]}


def make(kind: str) -> nn.Module:
    made: nn.Module = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    return made


@pytest.fixture(scope="module", params=[*CONFIGS, *ENSEMBLES])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    if kinds := ENSEMBLES.get(request.param):
        return Ensemble([make(kind) for kind in kinds], [3.0, 1.0], 13)
    return make(request.param)


IDS = torch.randint(3, 13, (3, 9), generator=torch.Generator().manual_seed(0))
REAL = torch.ones_like(IDS)
REAL[0, :3] = REAL[2, :1] = 0


@torch.no_grad()
def alone(model: nn.Module, row: int) -> Tensor:
    """Return the logits of a row by one pass, without padding, mask or cache."""
    logits: Tensor = model(input_ids=IDS[row : row + 1, REAL[row] == 1]).logits[0]
    return logits


@torch.no_grad()
def test_tokens_after_a_cache_have_the_logits_of_one_pass_after_rows_left(model: nn.Module) -> None:
    reader = CachedModel(model)
    reader.read(IDS[:, :5], REAL[:, :5], 1)
    rows = [0, 2]
    assert reader.keep_rows(torch.tensor(rows))
    for first, last in ((5, 6), (6, 9)):
        read = reader.read(IDS[rows, first:last], REAL[rows, :last], last - first)
        assert read.hidden is None
        for place, row in enumerate(rows):
            shift = int((REAL[row] == 0).sum())
            torch.testing.assert_close(
                read.logits[place], alone(model, row)[first - shift : last - shift], rtol=0, atol=2e-4
            )


class Counting(nn.Module):
    """A recurrent model that notes the number of tokens of each pass."""

    _is_stateful = True

    def __init__(self, cache: Any = (), family: str = "jamba") -> None:
        super().__init__()
        self.cache, self.passes, self.config = cache, list[int](), SimpleNamespace(model_type=family)

    def forward(self, input_ids: Tensor, logits_to_keep: int, **_others: Any) -> SimpleNamespace:
        self.passes.append(input_ids.shape[1])
        logits = input_ids[:, -logits_to_keep:, None].float()
        return SimpleNamespace(logits=logits, past_key_values=self.cache)


@pytest.mark.parametrize(
    ("family", "version", "passes"),
    [
        ("qwen3_next", "5.23.0", [5, 4]),
        ("qwen3_next", "6.0.0.dev0", [5, 4]),
        ("qwen3_next", "5.22.1", [5, 1, 1, 1, 1]),
        ("jamba", "5.23.0", [5, 1, 1, 1, 1]),
    ],
)
def test_recurrent_models_read_one_token_at_a_time_unless_several_are_known_to_work(
    monkeypatch: pytest.MonkeyPatch, family: str, version: str, passes: list[int]
) -> None:
    monkeypatch.setattr("skill_kd.kd.model.cached.transformers.__version__", version)
    model = Counting(family=family)
    reader = CachedModel(model)
    reader.read(IDS[:, :5], REAL[:, :5], 1)
    read = reader.read(IDS[:, 5:], REAL, 2)
    assert model.passes == passes
    assert torch.equal(read.logits[..., 0], IDS[:, -2:].float())


class PartlySelected(transformers.DynamicCache):
    """A cache with states outside its layers. Only one of the two methods that select rows includes them."""

    def batch_select_indices(self, indices: Tensor) -> None:
        raise AssertionError


def test_rows_stay_if_a_cache_cannot_drop_them() -> None:
    for cache, able in (
        (object(), False),
        (PartlySelected(), False),
        ([{"past_key_values": transformers.DynamicCache()}, {"cache_params": object()}], False),
        ([{"past_key_values": transformers.DynamicCache()}], True),
    ):
        reader = CachedModel(Counting(cache))
        reader.read(IDS, REAL, 1)
        assert reader.keep_rows(torch.tensor([1])) is able


def test_a_cache_keeps_its_name() -> None:
    assert cache_of(SimpleNamespace(cache_params=1, logits=2)) == {"cache_params": 1}
    assert cache_of(SimpleNamespace(past_key_values=None)) == {}


@pytest.mark.parametrize("model", [Counting(None), Ensemble([Counting(object()), Counting(None)], [1.0, 1.0], 13)])
def test_a_model_without_a_cache_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="no cache"):
        CachedModel(model).read(IDS, REAL, 1)


def test_a_model_that_returns_more_logits_than_asked_for_is_cut_to_them() -> None:
    class All(Counting):
        def forward(self, input_ids: Tensor, logits_to_keep: int, **others: Any) -> SimpleNamespace:
            return super().forward(input_ids, input_ids.shape[1], **others)

    read = CachedModel(All(object())).read(IDS, REAL, 2)
    assert torch.equal(read.logits[..., 0], IDS[:, -2:].float())
