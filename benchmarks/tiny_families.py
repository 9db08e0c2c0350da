"""Tiny random models of all families of causal language models in the installed transformers.

Each is built from a config alone. The sizes below replace those of the family's default config and of its sub-configs.
Lists with one value per layer are left out, so the config makes them for the smaller number of layers. ``SPECIAL`` has
the settings that only some families need.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

LAYERS = 4
VOCABULARY = 272
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>")
"""Ids 0 to 3."""

NAMES: dict[int, str] = {
    VOCABULARY: "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size",
    4: """
        num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads swa_num_attention_heads num_encoder_attention_heads num_decoder_attention_heads
        index_topk num_experts num_local_experts n_routed_experts moe_num_experts sliding_window local_attention
        attention_window_size window_size sliding_window_size attention_chunk_size linear_num_value_heads
        mamba_dt_rank time_step_rank mamba_chunk_size chunk_size
    """,
    32: """
        hidden_size d_model n_embd dim_model emb_dim embedding_dim embedding_size input_embedding_size
        output_embedding_size word_embed_proj_dim attention_hidden_size lru_width hidden_size_per_layer_input
    """,
    48: """
        intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim dim_ff dff ffn_hidden_size d_inner
        feed_forward_size intermediate_size_mlp dense_intermediate_size shared_intermediate_size
        expert_ffn_hidden_size
    """,
    24: """
        moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size
        moe_shared_expert_intermediate_size
    """,
    2: """
        num_key_value_heads num_kv_heads swa_num_key_value_heads kv_n_heads num_experts_per_tok
        num_experts_per_token moe_topk moe_top_k moe_k linear_num_key_heads linear_num_heads eos_token_id
        forced_eos_token_id decoder_start_token_id
    """,
    8: """
        head_dim swa_head_dim kv_channels d_head dim_head attention_head_size qk_nope_head_dim qk_rope_head_dim
        v_head_dim rotary_dim query_pre_attn_scalar linear_key_head_dim linear_value_head_dim linear_head_dim
        mamba_n_heads mamba_num_heads mamba_d_head mamba_head_dim mamba_headdim mamba_d_state state_size
        ssm_state_size
    """,
    16: "kv_lora_rank q_lora_rank o_lora_rank index_head_dim qk_head_dim index_n_heads",
    1: """
        n_group topk_group num_expert_group first_k_dense_replace n_shared_experts moe_num_shared_experts
        mamba_n_groups mamba_ngroups n_groups num_nextn_predict_layers bos_token_id
    """,
    128: """
        max_position_embeddings n_positions n_ctx context_length max_seq_len model_max_length
        max_target_positions original_max_position_embeddings
    """,
    64: "mamba_d_ssm",
    0: "pad_token_id",
    3: "image_token_id image_token_index video_token_id audio_token_id",
}
"""Names of settings by the size they get."""

LAYER_COUNTS = """
    num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers encoder_layers num_encoder_layers
"""
SIZES: dict[str, int] = {
    **{name: size for size, names in NAMES.items() for name in names.split()},
    **dict.fromkeys(LAYER_COUNTS.split(), LAYERS),
    "is_decoder": True,
}
"""A size by the name of its setting. Settings that a family's config does not have are left out."""

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
DOTS = {"head_dim": 16, "per_layer_config": {2: {"v_head_dim": 16}, 3: {"v_head_dim": 16}}}
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}
HYBRID = ["linear_attention", "hybrid"] * 2
MIXED = ["linear_attention", "full_attention"] * 2
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "dots3_note": {f"text_config.{name}": value for name, value in DOTS.items()},
    "dots3_note_text": DOTS,
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": MIXED},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm3": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8},
    "minimax": {"layer_types": MIXED},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "moe", "mlp"]},
    "qwen4_exp": {f"text_config.{name}": value for name, value in INDEXER.items()},
    "qwen4_exp_text": INDEXER,
    "reformer": {"axial_pos_embds": False},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}
"""Settings of one family, by model type. A dot separates a sub-config from its setting."""


def families() -> list[str]:
    """Return the model types of all causal language models of the installed transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str) -> PreTrainedConfig:
    """Return the config of a tiny model."""
    config = CONFIG_MAPPING[family]
    usual = config()
    changed = _smaller(usual, SPECIAL.get(family, {}))
    made = config(**changed)
    kinds = list(dict.fromkeys(getattr(usual, "layer_types", None) or ()))
    if len(kinds) > 1 and len(set(made.layer_types)) == 1:  # the usual pattern is longer than the tiny model
        made = config(**changed, layer_types=[kinds[layer % len(kinds)] for layer in range(LAYERS)])
    return made


def _smaller(config: PreTrainedConfig, special: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that make a config like ``config`` small, its sub-configs included."""
    names = config.to_dict().keys()
    changed = {name: value for name, value in SIZES.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention has as many keys as queries
        changed["num_key_value_heads"] = changed["num_attention_heads"]
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if isinstance(part, PreTrainedConfig):
            within = {key.partition(".")[2]: value for key, value in special.items() if key.startswith(f"{name}.")}
            changed[name] = {"model_type": part.model_type, **_smaller(part, within)}
    return changed | {name: value for name, value in special.items() if "." not in name}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Return a random model in eval mode. Larger weights than usual make its tokens differ in probability."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.mul_(5)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].normal_(std=0.1)  # the sampler may draw it
    return model.train(False)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, after the special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    backend = Tokenizer(models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    pad, bos, eos, image = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, bos_token=bos, eos_token=eos, additional_special_tokens=[image]
    )


def write_tiny(family: str, folder: Path) -> None:
    """Write a model folder with its tokenizer."""
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def class_name(family: str) -> str:
    """Return the name of the model class."""
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]]
    return str(found.__name__)
