"""The layers of its teacher that a student keeps, and the changes in its config. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import BadInput

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers")
"""Names of the number of layers in config.json. GPT-2 uses the second one."""
MOST_LAYERS = 10_000
"""More layers than any model has. The work on a config grows with them, so a larger number is refused first."""
INDICES = ("mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs")
"""Settings that list numbers of layers."""
LEADING = ("first_k_dense_replace", "num_dense_layers", "max_window_layers")
"""Settings that count the first layers of a kind. The layers after them are of another kind."""
BOUND = {
    "num_kv_shared_layers": "its last layers read the keys and values of earlier ones",
    "hidden_size_per_layer_input": "one of its embeddings spans all layers",
    "attention_types": "its config gives the kinds of layers as a repeated pattern",
    "hybrid_override_pattern": "its config gives the kinds of layers as a pattern",
    "attn_layer_period": "its kinds of layers repeat with a period",
    "hybrid_layer_ids": "some of its layers share weights",
}
"""Settings of models from which no layer can be taken, with the reasons."""
DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "gemma3n_text": {"num_kv_shared_layers": 15},
    "gemma4_text": {"hidden_size_per_layer_input": 256},
    "jamba": {"attn_layer_period": 8},
}
"""Values of the same settings that a config.json may leave out, by model type."""


def kept_layers(layers: int | Sequence[int], available: int) -> tuple[int, ...]:
    """Return the layers a grown student keeps. A count keeps half from each end and drops one middle block.

    Raises:
        BadInput: the teacher has fewer layers, or more than ``MOST_LAYERS``.
    """
    if available > MOST_LAYERS:
        raise BadInput(f"the teacher's config.json says {available} layers; layers are taken of at most {MOST_LAYERS}")
    needed = layers if isinstance(layers, int) else max(len(layers), max(layers) + 1)
    if needed > available:
        asked = layers if isinstance(layers, int) else list(layers)
        raise BadInput(
            f"student.from_teacher.layers: {asked} is more than the teacher's {available} layers; "
            f"the last layer is {available - 1}"
        )
    if not isinstance(layers, int):
        return tuple(layers)
    first = (layers + 1) // 2
    return (*range(first), *range(available - layers + first, available))


def text_part(config: Mapping[str, object]) -> Mapping[str, object]:
    """Return the config of the language model: that of the whole model, or the text part of a multimodal one."""
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def growth_problem(text: Mapping[str, object]) -> str | None:
    """Return why no student can be built from the layers of a model with this text config, or None if one can."""
    kind = text.get("model_type")
    values = {**DEFAULTS.get(str(kind), {}), **text}
    for name, reason in BOUND.items():
        if values.get(name):
            return (
                f"student.from_teacher: no layer can be taken from a {kind} teacher, because {reason} ({name}); "
                "set student.model, a smaller model of its family"
            )
    return None


def shortened(text: Mapping[str, object], kept: Sequence[int], available: int) -> dict[str, object]:
    """Return the settings that change if only the ``kept`` layers of a text config stay.

    Lists with one value per layer lose the values of the others, and lists of layer numbers are renumbered.
    """
    changes: dict[str, object] = {}
    for name, value in text.items():
        if name in INDICES and isinstance(value, list):
            changes[name] = [new for new, old in enumerate(kept) if old in value]
        elif "layer" in name and isinstance(value, list) and len(value) == available:
            changes[name] = [value[layer] for layer in kept]
        elif name in LEADING and isinstance(value, int):
            changes[name] = sum(layer < value for layer in kept)
    step = text.get("decoder_sparse_step")
    if isinstance(step, int) and step > 1:
        named = text.get("mlp_only_layers")
        dense = set(named) if isinstance(named, list) else set()
        changes["mlp_only_layers"] = [new for new, old in enumerate(kept) if old in dense or (old + 1) % step]
        changes["decoder_sparse_step"] = 1
    return changes
