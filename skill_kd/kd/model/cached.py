"""A model with its cache: each pass reads the tokens it has not seen, whatever kind of cache the model has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Cache

from ..losses.masking import position_ids

WITH_MASK = {"past_key_values": True, "cache_params": False}
"""Names of the cache, the same in a model's output and among its arguments.

False for Mamba: after its cache, a mask would have to cover the new tokens only. They are all real, so none is passed.
"""

READ_SEVERAL: Sequence[str] = (
    *("bailing_hybrid", "bamba", "falcon_h1", "granitemoehybrid", "kimi_linear", "mamba2", "nemotron_h", "olmo_hybrid"),
    *("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp", "qwen4_exp_text"),
    *("zamba", "zamba2", "zaya"),
)
"""Recurrent models, by ``model_type``, that read several tokens after a cache.

Others would start again from an empty state (Jamba, Mamba), so they read one token at a time. The walk of
benchmarks/model_families.py found this.
"""

SINCE = (5, 23)
"""The transformers version of that walk. With an older one, all recurrent models read one token at a time."""


@dataclass(frozen=True)
class CachedPass:
    """The result of reading unseen tokens, for R rows and the K positions that were asked for."""

    logits: Tensor
    """[R, K, V], or [R, 1, V] at the last position if there are hidden states."""
    hidden: Tensor | None
    """[R, K, H], the final hidden states, if the model has ``forward_with_hidden_states``."""


class CachedModel:
    """A causal language model, and the cache of what it has read."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: Callable[..., Any] = getattr(model, "forward_with_hidden_states", model)
        modules: list[Any] = list(model.modules())
        families = {module.config.model_type for module in modules if getattr(module, "_is_stateful", False)}
        older = tuple(map(int, transformers.__version__.split(".")[:2])) < SINCE
        self.one_by_one = bool(families) and (older or not families.issubset(READ_SEVERAL))
        self.cache: dict[str, Any] = {}

    def read(self, ids_RN: Tensor, attention_mask_RL: Tensor, keep: int) -> CachedPass:
        """Read N unseen tokens, and return logits or hidden states at the last ``keep`` of them.

        Args:
            attention_mask_RL: long, 1 at real tokens, over all tokens seen so far and the unseen ones.

        Raises:
            ValueError: the model returned no cache.
        """
        unseen = ids_RN.shape[1]
        if not (self.cache and self.one_by_one):
            return self._pass(ids_RN, attention_mask_RL, keep)
        seen = attention_mask_RL.shape[1] - unseen
        passes = [
            self._pass(ids_RN[:, column : column + 1], attention_mask_RL[:, : seen + column + 1], 1)
            for column in range(unseen)
        ][-keep:]
        hidden = [each.hidden for each in passes if each.hidden is not None]
        logits = passes[-1].logits if hidden else torch.cat([each.logits for each in passes], dim=1)
        return CachedPass(logits, torch.cat(hidden, dim=1) if hidden else None)

    def keep_rows(self, rows: Tensor) -> bool:
        """Drop all rows of the cache but ``rows`` (indices). Return False if this cache cannot do that."""
        (cache,) = self.cache.values()
        # An ensemble has a cache for each member, with its name.
        caches = [each for named in cache for each in named.values()] if isinstance(cache, list) else [cache]
        selectors = [_row_selector(each) for each in caches]
        able = [select for select in selectors if select is not None]
        if len(able) < len(selectors):
            return False
        for select in able:
            select(rows)
        return True

    def _pass(self, ids_RN: Tensor, attention_mask_RL: Tensor, keep: int) -> CachedPass:
        output = with_cache(
            self.forward,
            self.cache,
            input_ids=ids_RN,
            attention_mask=attention_mask_RL,
            position_ids=position_ids(attention_mask_RL)[:, -ids_RN.shape[1] :],
            use_cache=True,
            logits_to_keep=keep,
        )
        self.cache = cache_of(output)
        # Without a cache, the next pass would silently treat its few tokens as the whole context.
        if not self.cache:
            raise ValueError(
                "the model returned no cache: put it in eval mode, gradient checkpointing turns caches off"
            )
        hidden = getattr(output, "hidden", None)
        # A few models ignore ``logits_to_keep``.
        return CachedPass(output.logits[:, -keep:], hidden if hidden is None else hidden[:, -keep:])


def with_cache(
    forward: Callable[..., Any], cache: Mapping[str, Any], attention_mask: Tensor | None = None, **inputs: Any
) -> Any:
    """Return a model's output after a cache that ``cache_of`` returned; empty if the model has read nothing.

    ``attention_mask`` covers all tokens, also those of the cache.
    """
    mask = attention_mask if all(WITH_MASK[name] for name in cache) else None
    return forward(attention_mask=mask, **inputs, **(cache or {"past_key_values": None}))


def cache_of(output: Any) -> dict[str, Any]:
    """Return the cache in a model's output, as a keyword argument of the next pass; empty if there is none."""
    found = {name: getattr(output, name, None) for name in WITH_MASK}
    return {name: cache for name, cache in found.items() if cache is not None}


def _row_selector(cache: Any) -> Callable[[Tensor], None] | None:
    """Return the method of a cache that keeps only some rows, or None if no method selects all of its state.

    Only ``reorder_cache`` also selects the recurrent states of layers. It works with fewer rows too. A class that
    overrides the other method alone has states outside its layers (MiniMax), which ``reorder_cache`` leaves out.
    """
    if not isinstance(cache, Cache):
        return None
    kind, all_layers = type(cache), Cache
    if kind.reorder_cache is all_layers.reorder_cache and (
        kind.batch_select_indices is not all_layers.batch_select_indices
    ):
        return None
    selector: Callable[[Tensor], None] = cache.reorder_cache
    return selector
