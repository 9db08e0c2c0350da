"""The student with its loss inside ``forward``. Wrappers such as DDP and FSDP see one call and hook every gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..dataset.batch import Batch
from ..losses.chunked import summed_loss
from ..losses.divergences import log_probs
from ..losses.estimators import Estimator
from ..losses.lm_head import Head
from ..losses.masking import masked_sum
from ..losses.projection import HiddenStates
from .teacher_distribution import TeacherDistribution, all_logp, on_shared_outcomes


def response_logits(model: nn.Module, batch: Batch, vocabulary: int) -> Tensor:
    """Return logits_BTV that predict the response tokens. The LM head runs only on these positions."""
    logits: Tensor = _predicting(_read(model, batch).logits, batch)[..., :vocabulary]
    return logits


def response_hidden_states(model: nn.Module, batch: Batch, head: Head) -> HiddenStates:
    """Return the hidden states that predict the response tokens. The LM head does not run."""
    with head.bypassed() as seen:
        _read(model, batch)
    return HiddenStates(_predicting(seen[0], batch), head)


def _predicting(values: Tensor, batch: Batch) -> Tensor:
    """Return the positions that predict the response tokens. A few models ignore ``logits_to_keep``."""
    return values[:, -batch.width - 1 : -1]


def _read(model: nn.Module, batch: Batch) -> Any:
    return model(
        input_ids=batch.ids_BL,
        attention_mask=batch.attention_mask_BL,
        position_ids=batch.position_ids_BL,
        use_cache=False,
        logits_to_keep=batch.width + 1,
    )


def find_head(model: nn.Module, vocabulary: int) -> Head | None:
    """Return the LM head if the loss can use it separately from the model, None if the loss needs all logits."""
    try:
        return Head.of(model, vocabulary)
    except ValueError:
        return None


class StudentWithLoss(nn.Module):
    """A student whose forward pass returns the sum of its loss over the scored tokens of a batch."""

    def __init__(self, model: nn.Module, vocabulary: int, compiled: bool = False) -> None:
        """``compiled`` runs the element-wise part of the loss through torch.compile, if that works."""
        super().__init__()
        self.model = model
        self.vocabulary = vocabulary
        self.compiled = compiled
        self.head = find_head(model, vocabulary)
        # Sharding wraps the blocks that the outermost module names.
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    def forward(self, batch: Batch, loss: Estimator, teacher: TeacherDistribution | None, temperature: float) -> Tensor:
        """Return Σ loss_BT over scored tokens, a float32 scalar; the caller divides by the loss's normalizer."""
        if self.head is not None and (teacher is None or isinstance(teacher, HiddenStates)):
            student = response_hidden_states(self.model, batch, self.head)
            return summed_loss(student, teacher, batch, loss, temperature=temperature, compiled=self.compiled)
        student_logp_BTV = log_probs(response_logits(self.model, batch, self.vocabulary), temperature)
        told = all_logp(teacher, temperature) if isinstance(teacher, HiddenStates) else teacher
        return masked_sum(loss(*on_shared_outcomes(student_logp_BTV, told, batch)), batch.mask_BT)
