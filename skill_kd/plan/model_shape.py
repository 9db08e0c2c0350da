"""A model's shape from its config.json: weights by kind, counted exactly and without torch."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from skill_kd.errors import UsageError
from skill_kd.kd.errors import BadInput
from skill_kd.kd.model.context import CONTEXT_KEYS, context_length
from skill_kd.kd.model.layers import MOST_LAYERS, growth_problem, kept_layers


@dataclass(frozen=True)
class Linear:
    """A weight matrix of the blocks and its number of copies in the whole model."""

    name: str
    """Module name, as in ``student.lora.targets``."""
    inputs: int
    outputs: int
    bias: bool = False
    copies: int = 1
    expert: bool = False
    """True for an expert of a mixture: only tokens routed to it read it, and it is not an ``nn.Linear``."""

    @property
    def parameters(self) -> int:
        """Weights and biases of all copies."""
        return self.copies * self.outputs * (self.inputs + self.bias)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder-only language model. Sizes are in elements, positions in tokens."""

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    """Hidden width of a dense MLP."""
    vocab_size: int
    max_positions: int | None
    """Longest context in tokens; None if the config does not say."""
    tied_embeddings: bool = False
    gated_mlp: bool = True
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"
    """Norms on queries and keys: over one head, or over all heads."""
    norms: int = 2
    """Norms over the hidden size in each layer; one more follows the last layer."""
    norm_bias: bool = False
    learned_positions: int = 0
    """Rows of a learned position table; 0 for rotary positions, which have no weights."""
    eager_attention: bool = False
    """True if attention scores are soft-capped. SDPA cannot do this, so the [tokens, tokens] matrix is in memory."""
    experts: int = 0
    active_experts: int = 0
    """Experts that each token visits."""
    moe_intermediate_size: int = 0
    dense_layers: tuple[int, ...] = ()
    """Layers of a mixture with a dense MLP instead of experts."""
    vision_parameters: int = 0
    """Weights of the model's image tower: loaded, but not used for text."""
    approximate: bool = False
    """True if this model type is unknown and counted by the Llama formula."""
    growth_problem: str | None = None
    """Why no student can be built from layers of this model; None if one can."""

    @property
    def embedding_parameters(self) -> int:
        """Token table, position table and, unless tied, the LM head; these are never quantized."""
        tables = 1 if self.tied_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + self.learned_positions * self.hidden_size

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The weight matrices of all blocks, without the LM head."""
        return (*self._attention(), *self._mlp())

    @property
    def parameters(self) -> int:
        """All weights, each counted once."""
        norm = self.hidden_size * (2 if self.norm_bias else 1)
        widths = {"none": 0, "head": 2, "full": self.heads + self.kv_heads}
        norms = (self.norms * self.layers + 1) * norm + self.layers * widths[self.qk_norm] * self.head_dim
        blocks = sum(linear.parameters for linear in self.linears)
        return self.embedding_parameters + blocks + norms + self.vision_parameters

    @property
    def active_parameters(self) -> int:
        """Weights used for one token: only the experts it visits, and no image tower."""
        idle = sum(linear.parameters for linear in self.linears if linear.expert)
        visited = idle * self.active_experts // self.experts if self.experts else 0
        return self.parameters - self.vision_parameters - idle + visited

    def _attention(self) -> tuple[Linear, ...]:
        width, queries, keys = self.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        fused = {"phi3": "qkv_proj", "gpt2": "c_attn"}.get(self.model_type)
        output = {"gpt2": "c_proj", "opt": "out_proj"}.get(self.model_type, "o_proj")
        out = Linear(output, queries, width, self.output_bias, self.layers)
        if fused:
            return Linear(fused, width, queries + 2 * keys, self.qkv_bias, self.layers), out
        outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
        return (*(Linear(name, width, size, self.qkv_bias, self.layers) for name, size in outputs.items()), out)

    def _mlp(self) -> tuple[Linear, ...]:
        width, bias = self.hidden_size, self.mlp_bias
        sparse = self.layers - len(self.dense_layers) if self.experts else 0
        dense, size = self.layers - sparse, self.intermediate_size
        experts, narrow = sparse * self.experts, self.moe_intermediate_size
        mixture = (
            Linear("gate", width, self.experts, copies=sparse),
            Linear("experts.gate_up_proj", width, 2 * narrow, copies=experts, expert=True),
            Linear("experts.down_proj", narrow, width, copies=experts, expert=True),
        )
        mlp: tuple[Linear, ...]
        if not self.gated_mlp:
            up, down = ("c_fc", "c_proj") if self.model_type == "gpt2" else ("fc1", "fc2")
            mlp = (Linear(up, width, size, bias, dense), Linear(down, size, width, bias, dense))
        elif self.model_type == "phi3":
            mlp = (Linear("gate_up_proj", width, 2 * size, bias, dense), Linear("down_proj", size, width, bias, dense))
        else:
            rising = tuple(Linear(name, width, size, bias, dense) for name in ("gate_proj", "up_proj"))
            mlp = (*rising, Linear("down_proj", size, width, bias, dense))
        return (*(mlp if dense else ()), *(mixture if sparse else ()))


def with_layers(config: ModelConfig, layers: int | tuple[int, ...]) -> ModelConfig:
    """Return the config of a student that keeps some of a teacher's layers.

    Args:
        config: the teacher.
        layers: the layers to keep, or their count (half from the start, half from the end).

    Raises:
        UsageError: the teacher has fewer layers, or is built so that none can be taken from it.
    """
    if config.growth_problem:
        raise UsageError(config.growth_problem)
    try:
        kept = kept_layers(layers, config.layers)
    except BadInput as error:
        raise UsageError(str(error)) from error
    dense = tuple(new for new, old in enumerate(kept) if old in config.dense_layers)
    return replace(config, layers=len(kept), dense_layers=dense, vision_parameters=0)


@dataclass(frozen=True)
class _Family:
    """A model type's differences from Llama, and the defaults of its config."""

    bias: Literal["none", "qkv", "config", "all"] = "none"
    """Biases of the matrices: fixed by the type, or ``config``: read from ``attention_bias`` and ``mlp_bias``."""
    qk_norm: Literal["none", "head", "full"] = "none"
    norms: int = 2
    norm_bias: bool = False
    gated_mlp: bool = True
    position_rows: int | None = None
    """Extra rows of a learned position table beyond the longest context; None for no table."""
    defaults: Mapping[str, int | bool] = field(default_factory=dict)


_TIED: Mapping[str, int | bool] = {"tie_word_embeddings": True}
_GEMMA: Mapping[str, int | bool] = {**_TIED, "head_dim": 256}
_GEMMA3 = {**_GEMMA, "num_attention_heads": 8, "num_key_value_heads": 4}
_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family("config"),
    "smollm3": _Family("config", defaults=_TIED),
    "mistral": _Family(defaults={"num_key_value_heads": 8}),
    "qwen2": _Family("qkv"),
    "qwen3": _Family("config", "head", defaults={"head_dim": 128}),
    "qwen3_moe": _Family("config", "head"),
    "gemma": _Family("config", defaults=_GEMMA),
    "gemma2": _Family("config", norms=4, defaults={**_GEMMA, "attn_logit_softcapping": True}),
    "gemma3_text": _Family(
        "config", "head", norms=4, defaults={**_GEMMA3, "vocab_size": 262208, "max_position_embeddings": 131072}
    ),
    "phi3": _Family(),
    "olmo2": _Family("config", "full"),
    "gpt2": _Family("all", norm_bias=True, gated_mlp=False, position_rows=0, defaults=_TIED),
    "opt": _Family("all", norm_bias=True, gated_mlp=False, position_rows=2, defaults=_TIED),
}
_ALIASES = {
    **dict.fromkeys(("n_embd", "d_model"), "hidden_size"),
    **dict.fromkeys(("n_layer", "n_layers", "num_layers"), "num_hidden_layers"),
    **dict.fromkeys(("n_head", "n_heads", "num_heads", "attention_heads"), "num_attention_heads"),
    "num_kv_heads": "num_key_value_heads",
    **dict.fromkeys(("n_inner", "ffn_dim", "ffn_hidden_size", "dff"), "intermediate_size"),
    **dict.fromkeys(("num_local_experts", "n_routed_experts", "moe_num_experts"), "num_experts"),
    **dict.fromkeys(("num_experts_per_token", "moe_topk", "moe_top_k", "moe_k"), "num_experts_per_tok"),
    "expert_ffn_hidden_size": "moe_intermediate_size",
}
_WITHOUT_ATTENTION = frozenset({"mamba", "mamba2", "falcon_mamba"})
"""Model types that work (references/models.md) and that the formulas of this part do not cover."""


def parse_config(values: Mapping[str, object], source: str) -> ModelConfig:
    """Return the shape in a config.json.

    Args:
        values: the parsed JSON object.
        source: name of the model in messages.

    Raises:
        UsageError: a size is missing or not a positive whole number.
    """
    vision = 0
    text = values.get("text_config")
    if isinstance(text, Mapping):
        vision = _vision_parameters(values, text, source)
        values = {**text, "tie_word_embeddings": values.get("tie_word_embeddings")}
    if isinstance(experts := values.get("ffn_config"), Mapping):
        values = {**experts, **values}  # DBRX
    model_type = str(values.get("model_type", "unknown"))
    if model_type in _WITHOUT_ATTENTION:
        raise UsageError(
            f"model '{source}': models of type '{model_type}' have no attention heads, and plan knows only the memory "
            "and time of attention; they train without a plan: try a few updates first"
        )
    family = _FAMILIES.get(model_type, _Family("config"))
    sizes: dict[str, object] = dict(family.defaults)
    named = {key: value for key, value in values.items() if value is not None}
    sizes.update({_ALIASES[key]: value for key, value in named.items() if key in _ALIASES} | named)
    widths = sizes.get("intermediate_size")
    if isinstance(widths, list) and widths and {*map(type, widths)} == {int}:
        sizes["intermediate_size"] = max(widths)  # Gemma 3n has one for each layer
    if model_type not in _FAMILIES and "intermediate_size" not in sizes and "num_experts" not in sizes:
        family = replace(family, gated_mlp=False)  # as in GPT-2's relatives, which do not name the width
    shape = _shape(model_type, family, _Sizes(sizes, f"{source} ({model_type})"), vision)
    return replace(shape, growth_problem=growth_problem(values))


_LARGEST = 1_000_000_000
"""A larger size is damage."""


class _Sizes:
    """Values of a config, checked on access."""

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self.values, self.source = values, source

    def count(self, key: str, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if value is None:
            raise UsageError(f"config.json of {self.source} has no '{key}', so the size of the model is unknown")
        if type(value) is not int or not 0 <= value <= _LARGEST:
            shown = reprlib.repr(value)
            raise UsageError(f"config.json of {self.source} has {key}: {shown}, not a whole number up to {_LARGEST}")
        return value

    def layers(self) -> int:
        value = self.count("num_hidden_layers")
        if value > MOST_LAYERS:
            raise UsageError(
                f"config.json of {self.source} says num_hidden_layers: {value}; at most {MOST_LAYERS} can be planned"
            )
        return value

    def positions(self) -> int:
        for key in CONTEXT_KEYS:
            self.count(key, 0)
        return context_length(self.values) or 0

    def flag(self, key: str) -> bool:
        return bool(self.values.get(key, False))


def _shape(model_type: str, family: _Family, sizes: _Sizes, vision: int) -> ModelConfig:
    hidden, heads = sizes.count("hidden_size"), sizes.count("num_attention_heads")
    if not hidden or not heads:
        raise UsageError(f"config.json of {sizes.source} has {heads} heads and a hidden size of {hidden}; 0 is invalid")
    positions = sizes.positions()
    attention_bias = family.bias == "all" or (family.bias == "config" and sizes.flag("attention_bias"))
    config = ModelConfig(
        model_type=model_type,
        hidden_size=hidden,
        layers=sizes.layers(),
        heads=heads,
        kv_heads=sizes.count("num_key_value_heads", heads),
        head_dim=sizes.count("head_dim", hidden // heads),
        intermediate_size=_mlp_width(family, sizes, hidden),
        vocab_size=sizes.count("vocab_size"),
        max_positions=positions or None,
        tied_embeddings=sizes.flag("tie_word_embeddings"),
        gated_mlp=family.gated_mlp,
        qkv_bias=attention_bias or family.bias == "qkv",
        output_bias=attention_bias,
        mlp_bias=family.bias == "all" or (family.bias == "config" and sizes.flag("mlp_bias")),
        qk_norm=family.qk_norm,
        norms=family.norms,
        norm_bias=family.norm_bias,
        learned_positions=0 if family.position_rows is None else positions + family.position_rows,
        eager_attention=sizes.flag("attn_logit_softcapping"),
        vision_parameters=vision,
        # Only OPT-350M projects its embeddings and has no last norm.
        approximate=model_type not in _FAMILIES or sizes.count("word_embed_proj_dim", hidden) != hidden,
    )
    return _mixture(config, sizes)


def _mlp_width(family: _Family, sizes: _Sizes, hidden: int) -> int:
    """Return the width of a dense MLP. A config without one may have experts in all layers."""
    if not family.gated_mlp:
        return sizes.count("intermediate_size", 4 * hidden)
    experts_only = "num_experts" in sizes.values and "intermediate_size" not in sizes.values
    return sizes.count("moe_intermediate_size" if experts_only else "intermediate_size")


def _mixture(config: ModelConfig, sizes: _Sizes) -> ModelConfig:
    experts = sizes.count("num_experts", 0)
    if not experts:
        return config
    step = max(sizes.count("decoder_sparse_step", 1), 1)
    listed = sizes.values.get("mlp_only_layers")
    named = {layer for layer in listed if isinstance(layer, int)} if isinstance(listed, list) else set()
    return replace(
        config,
        experts=experts,
        active_experts=sizes.count("num_experts_per_tok"),
        moe_intermediate_size=sizes.count("moe_intermediate_size", config.intermediate_size),
        dense_layers=tuple(layer for layer in range(config.layers) if layer in named or (layer + 1) % step),
    )


def _vision_parameters(values: Mapping[str, object], text: Mapping[str, object], source: str) -> int:
    """Return the weights of Gemma 3's image tower (SigLIP without its head) and of its projection to the text model."""
    tower = values.get("vision_config")
    if values.get("model_type") != "gemma3" or not isinstance(tower, Mapping):
        return 0
    sizes = _Sizes({**tower, "text": text.get("hidden_size")}, f"{source} (vision_config)")
    width, wide, patch = sizes.count("hidden_size"), sizes.count("intermediate_size"), sizes.count("patch_size")
    patches = (sizes.count("image_size") // max(patch, 1)) ** 2
    embeddings = width * (3 * patch**2 + 1) + patches * width
    block = 4 * width * (width + 1) + wide * (width + 1) + width * (wide + 1) + 4 * width
    joint = width * sizes.count("text") + width
    return embeddings + sizes.count("num_hidden_layers") * block + 2 * width + joint
