"""The context length of a model, read from its config. This module imports no torch, so that checks stay quick."""

from __future__ import annotations

from collections.abc import Mapping

CONTEXT_KEYS = ("max_position_embeddings", "n_positions")
"""Names of the context length in config.json. GPT-2 uses the second one."""


def context_length(config: Mapping[str, object]) -> int | None:
    """Return the largest number of tokens that a model reads, or None if its config does not say.

    Args:
        config: the content of config.json. The text part of a multimodal model takes precedence.
    """
    for part in (config.get("text_config"), config):
        for key in CONTEXT_KEYS:
            if isinstance(part, Mapping) and type(value := part.get(key)) is int:
                return value
    return None
