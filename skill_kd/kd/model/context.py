"""How many tokens a model reads, by its config. Without torch, so that a spec is checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
"""The names of the longest context in config.json; GPT-2 has the second one."""


def context_length(config: Mapping[str, object]) -> int | None:
    """Return the most tokens that a model reads, None if its config does not say so.

    Args:
        config: the content of config.json; of a multimodal model, the text part counts first.
    """
    for part in (config.get("text_config"), config):
        for key in CONTEXT_KEYS:
            if isinstance(part, Mapping) and isinstance(value := part.get(key), int):
                return value
    return None
