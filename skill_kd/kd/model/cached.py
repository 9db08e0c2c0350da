"""A model with its cache: each pass reads the tokens it has not seen, whatever kind of cache the model has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from ..errors import BadInput
from ..losses.masking import position_ids
from .families import refusal


@dataclass(frozen=True)
class CacheKind:
    """How a model reads the tokens after its cache."""

    takes_mask: bool = True
    """False if a mask would have to cover the new tokens only. They are all real, so none is passed."""
    takes_several: bool = True
    """False if the model starts again from an empty state when it gets several tokens at once."""


CACHES = {
    "past_key_values": CacheKind(),
    "cache_params": CacheKind(takes_mask=False, takes_several=False),  # Mamba
}
"""Kinds of caches by their name, the same in a model's output and among its arguments."""

STATES_TAKE_SEVERAL = tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 23)
"""True if recurrent layers with ``past_key_values`` read several tokens after a cache. This was tested from 5.23 on."""


@dataclass(frozen=True)
class CachedPass:
    """What the unseen tokens led to. R rows, K positions that were asked for."""

    logits: Tensor
    """[R, K, V], or [R, 1, V] at the last position if there are hidden states."""
    hidden: Tensor | None
    """[R, K, H], the final hidden states, if the model has ``forward_with_hidden_states``."""


class CachedModel:
    """A causal language model, and the cache of what it has read."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: Callable[..., Any] = getattr(model, "forward_with_hidden_states", model)
        self.recurrent = any(getattr(module, "_is_stateful", False) for module in model.modules())
        self.cache: dict[str, Any] = {}

    def read(self, ids_RN: Tensor, attention_mask_RL: Tensor, keep: int) -> CachedPass:
        """Read N unseen tokens, and return logits or hidden states at the last ``keep`` of them.

        Args:
            attention_mask_RL: long, 1 at real tokens, over all tokens seen so far and the unseen ones.

        Raises:
            ValueError: the model returned no cache.
        """
        unseen = ids_RN.shape[1]
        if self._takes_several():
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
        selectors = [_row_selector(each) for each in (cache if isinstance(cache, list) else [cache])]
        able = [select for select in selectors if select is not None]
        if len(able) < len(selectors):
            return False
        for select in able:
            select(rows)
        return True

    def _takes_several(self) -> bool:
        if not self.cache:
            return True
        return all(CACHES[name].takes_several for name in self.cache) and (STATES_TAKE_SEVERAL or not self.recurrent)

    def _pass(self, ids_RN: Tensor, attention_mask_RL: Tensor, keep: int) -> CachedPass:
        output = self.forward(
            input_ids=ids_RN,
            attention_mask=attention_mask_RL if all(CACHES[name].takes_mask for name in self.cache) else None,
            position_ids=position_ids(attention_mask_RL)[:, -ids_RN.shape[1] :],
            use_cache=True,
            logits_to_keep=keep,
            **(self.cache or {"past_key_values": None}),
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


def cache_of(output: Any) -> dict[str, Any]:
    """Return the cache in a model's output, as a keyword argument of the next pass; empty if there is none."""
    found = {name: getattr(output, name, None) for name in CACHES}
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


def check_family(model: PreTrainedModel, whose: str) -> None:
    """Refuse a loaded model that is wrong in a padded batch or with its cache.

    Raises:
        BadInput: the message has the reason.
    """
    if reason := refusal(model.config.to_dict()):
        raise BadInput(f"{whose}: {reason}; take another model")
