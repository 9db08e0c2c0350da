"""heads: what a model makes of its hidden states is found out by asking it, and refused where it is more than known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import build_model, make_tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from skill_kd.kd.losses.lm_head import Curve, Head

torch.set_num_threads(1)

V = 40
SMALL = {
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, tuple[dict[str, Any], Curve]] = {
    "llama": ({"tie_word_embeddings": False}, Curve()),
    "qwen2": ({"tie_word_embeddings": True}, Curve()),
    "gemma2": ({"final_logit_softcapping": 3.0}, Curve(1.0, 3.0)),
    "cohere": ({"logit_scale": 0.0625}, Curve(0.0625)),
    "granite": ({"logits_scaling": 6.0}, Curve(1 / 6)),
    "phi": ({}, Curve()),  # its head has a bias
}


def model(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    torch.manual_seed(0)
    made: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | MODELS[kind][0]))
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * 0.7)
    return made.to(dtype).train(False)


@pytest.mark.parametrize("kind", MODELS)
def test_states_and_head_give_the_logits_of_the_model(kind: str) -> None:
    made = model(kind)
    head = Head.of(made, V)
    ids = torch.randint(0, V, (2, 7))
    expected = made(input_ids=ids, logits_to_keep=4).logits
    with head.bypassed() as seen:
        assert made(input_ids=ids, logits_to_keep=4).logits.numel() == 0
    (states,) = seen
    assert states.shape == (2, 4, 16)
    torch.testing.assert_close(head.curve(head.linear(states)), expected)
    assert expected.std() > 0.1
    torch.testing.assert_close(made(input_ids=ids, logits_to_keep=4).logits, expected)  # It is as it was.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_scale_and_cap_are_found(kind: str, dtype: torch.dtype) -> None:
    curve, expected = Head.of(model(kind, dtype), V).curve, MODELS[kind][1]
    assert curve.scale == pytest.approx(expected.scale, rel=1e-6)
    assert curve.cap == (None if expected.cap is None else pytest.approx(expected.cap, rel=1e-6))


def test_gradients_reach_the_states() -> None:
    made = model("llama")
    head = Head.of(made, V)
    with head.bypassed() as seen:
        made(input_ids=torch.ones(1, 3, dtype=torch.long))
    seen[0].sum().backward()
    assert made.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0


def test_a_curve_of_another_kind_is_refused() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(V, 4), nn.Linear(4, V)

        def get_output_embeddings(self) -> nn.Linear:
            return self.head

        def forward(self, input_ids: Tensor) -> Any:
            logits = self.head(self.embedding(input_ids))
            return type("Output", (), {"logits": torch.where(logits > 0, logits, 2 * logits)})

    with pytest.raises(ValueError, match="more to its logits"):
        Head.of(Strange(), V)


def test_an_adapter_on_the_head_is_refused() -> None:
    peft = pytest.importorskip("peft")
    tokenizer = make_tokenizer()
    base = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    elsewhere = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert Head.of(elsewhere, 10).curve == Curve()
    base = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="not a plain Linear"):
        Head.of(adapted, 10)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="NoneType"):
        Head.of(nn.Linear(2, 2), 2)
