"""The LM head of a causal language model, used separately from the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LogitTransform:
    """The map from a head's output z to logits: s·z, then c·tanh(s·z / c) if the model caps its logits."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, output: Tensor) -> Tensor:
        """Return the logits, in at least float32."""
        wide = output if output.dtype == torch.float64 else output.float()
        scaled = wide if self.scale == 1 else wide * self.scale
        return scaled if self.cap is None else self.cap * torch.tanh(scaled / self.cap)


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits: a linear layer, then a transform."""

    linear: nn.Linear
    vocabulary: int
    """Only the first ``vocabulary`` ids count; the rest of the layer is padding."""
    transform: LogitTransform = LogitTransform()

    @classmethod
    def of(cls, model: nn.Module, vocabulary: int) -> Head:
        """Find out how ``model``, a causal language model, computes its logits. Call this before wrapping the model.

        It runs the model on one token, replaces the layer's output by known values and reads the logits. The
        configuration is not enough: models use five names for the scale, and ``logits_scaling`` divides in Granite
        and multiplies in HyperCLOVAX.

        Raises:
            ValueError: the head is not a plain linear layer (LoRA, quantized, none), or the model does more to its
                logits than scale and cap them.
        """
        linear = getattr(model, "get_output_embeddings", lambda: None)()
        if type(linear) is not nn.Linear or not linear.weight.is_floating_point() or linear.weight.is_meta:
            raise ValueError(f"the output head is {type(linear).__name__}, not a plain Linear layer in memory")
        # At 2⁻¹⁰ a cap changes less than rounding does, so the logit shows the scale; at 1e30 it is the cap itself.
        known = torch.tensor([2.0**-10, 1e30, -1e30, -1.0, 3.0, -30.0, 0.0], device=linear.weight.device)
        given_C = known.repeat(-(-linear.out_features // len(known)))[: linear.out_features]
        hook = linear.register_forward_hook(lambda _module, _args, out: given_C.expand(out.shape))
        try:
            with torch.no_grad():
                made_C = model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=given_C.device)).logits[0, -1]
        finally:
            hook.remove()
        cap = float(made_C[1]) if made_C[1] < 1e20 else None
        transform = LogitTransform(float(made_C[0]) * 2**10, cap)
        if made_C.shape != given_C.shape or not torch.allclose(transform(given_C), made_C.float(), rtol=1e-5):
            raise ValueError("the model does more to its logits than scaling and capping them")
        return cls(linear, vocabulary, transform)

    @contextmanager
    def bypassed(self) -> Iterator[list[Tensor]]:
        """Make each forward pass append the head's input to the yielded list, and project nothing.

        The model's own code still applies its norm and selects the positions. Its logits are empty, [B, 0, C].
        """
        seen: list[Tensor] = []

        def divert(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            seen.append(args[0])
            return (args[0][:, :0],)

        hook = self.linear.register_forward_pre_hook(divert)
        try:
            yield seen
        finally:
            hook.remove()
