"""Faster decoding on a CPU: linear layers that get few rows at a time use reordered copies of their weights.

Every decoding step multiplies few rows. With fewer than about 32 rows, torch's default float32 product is, on some
processors, several times slower than reading the weights from memory. oneDNN, which torch also contains, is not, once
it has put the weights in its own order (benchmarks/results/sampling.json).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

ROWS = 16
"""Number of rows that the order is chosen for. It works nearly as well for more or fewer rows."""

MOST_ROWS = 64
"""With more rows, as in prompts, torch's own product is as fast. oneDNN also keeps code for each number of rows it has
seen, 0.8 MB per weight shape. For prompts of all lengths this added up to 0.8 GB."""


@contextmanager
def reordered_weights(*models: nn.Module) -> Iterator[None]:
    """Make the linear layers of ``models`` use reordered copies of their weights within the context.

    This changes only plain float32 layers on a CPU, and only if this torch build supports it. The copies are as large
    as the weights and do not follow later changes of them, so train outside the context.
    """
    layers = [layer for model in models for layer in _plain_layers(model)] if can_reorder() else []
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
            # Python finds an instance's own forward before the class's. Hooks still run around it.
            vars(layer)["forward"] = partial(_linear, layer, packed)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def can_reorder() -> bool:
    """Return True if this torch was built with oneDNN's two operators."""
    mkldnn = torch.ops.mkldnn
    return all(hasattr(mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))


def _plain_layers(model: nn.Module) -> list[nn.Linear]:
    if torch.is_autocast_enabled("cpu"):  # The reordered weights would bypass autocast.
        return []
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    # A layer with its own forward was changed by other code.
    return [layer for layer in layers if "forward" not in vars(layer) and _is_plain(layer.weight.detach())]


def _is_plain(weight: Tensor) -> bool:
    return type(weight) is Tensor and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _linear(layer: nn.Linear, packed: Tensor, states: Tensor) -> Tensor:
    if states.shape[:-1].numel() > MOST_ROWS:
        return nn.Linear.forward(layer, states)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, layer.bias, "none", [], None)
    return product
