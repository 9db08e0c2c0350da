"""Decoding on a CPU, faster: linear layers that see few rows at a time work from reordered copies of their weights.

torch multiplies float32 matrices with a library that, on some processors, runs several times slower than its weights
can be read when there are fewer than some 32 rows, as there are at every step of decoding. oneDNN, which torch brings
too, does not once it has laid out the weights in its own order (benchmarks/results/sampling.json).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

ROWS = 16
"""Rows the order is chosen for; it serves more and fewer of them nearly as well."""

MOST_ROWS = 64
"""Beyond them, in prompts, torch's own product is as fast. And oneDNN keeps code for each number of rows it has met,
0.8 MB for every shape of weights: for prompts of all lengths that came to 0.8 GB."""


@contextmanager
def reordered_weights(*models: nn.Module) -> Iterator[None]:
    """Let the linear layers of ``models`` work from reordered copies of their weights.

    Only plain float32 layers on a CPU are touched, and only where this torch can do it. The copies, as large as the
    weights, are those of this moment and last as long as the context: train outside of it.
    """
    layers = [layer for model in models for layer in _plain_layers(model)] if can_reorder() else []
    try:
        for layer in layers:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
            # An instance's own forward is found before the class's; hooks still run around it.
            vars(layer)["forward"] = partial(_linear, layer, packed)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def can_reorder() -> bool:
    """Whether this torch was built with oneDNN's two operators."""
    mkldnn = torch.ops.mkldnn
    return all(hasattr(mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))


def _plain_layers(model: nn.Module) -> list[nn.Linear]:
    if torch.is_autocast_enabled("cpu"):  # It would be passed by.
        return []
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    # A layer with a forward of its own was changed by somebody else.
    return [layer for layer in layers if "forward" not in vars(layer) and _is_plain(layer.weight.detach())]


def _is_plain(weight: Tensor) -> bool:
    return type(weight) is Tensor and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _linear(layer: nn.Linear, packed: Tensor, states: Tensor) -> Tensor:
    if states.shape[:-1].numel() > MOST_ROWS:
        return nn.Linear.forward(layer, states)
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, layer.bias, "none", [], None)
    return product
