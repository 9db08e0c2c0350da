"""Sampling responses from the student, or from a token-wise mixture of teacher and student (MiniLLM Eq 4).

Every row has its own random numbers, so a response depends on its prompt, the weights and its seed, but not on the
other rows. The mixture flips one coin per position for the whole group of rows. Each row's distribution is still
exactly Eq 4, and only the model that the coin selects decodes. The other model reads the tokens it has not seen as one
cached chunk at its next turn, so no separate scoring pass is needed. Keep a group small (``MIXED_GROUP``): rows that
share coins are correlated, and that part of the gradient's variance does not shrink as the group grows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.divergences import LOG_ZERO, log_probs, mixture
from ..losses.estimators import token_logp
from ..losses.masking import is_any, through_first_eos
from ..model.cached import CachedModel

MIXED_GROUP = 16
"""Most rows that share the coins of teacher-mixed sampling."""
SCORED_AT_ONCE = 128
"""Positions whose logits are in memory together when a rollout is scored."""


@dataclass(frozen=True)
class Decoding:
    """Settings for drawing next tokens, the same for every model of a rollout."""

    max_new_tokens: int
    temperature: float
    top_p: float
    eos_ids: frozenset[int]
    vocabulary: int
    """Only ids below this are drawn. Higher ids are padding of the embedding, or not shared with the teacher."""


@dataclass(frozen=True)
class Rollout:
    """Sampled responses. T is at most ``max_new_tokens``. Tokens after a row's first EOS are not part of it."""

    ids_BT: Tensor
    """long"""
    mask_BT: Tensor
    """bool, True through the first EOS."""
    behaviour_logp_BT: Tensor
    """float32 (float64 for a float64 model), the log-probability each token was drawn with."""
    student_logp_BT: Tensor | None = None
    """The student's own log-probability of each token, if a teacher took part."""
    teacher_hidden_BTH: Tensor | None = None
    """The teacher's final hidden states that predict each token, if it took part and returns them."""


def sampling_logp(logits: Tensor, decoding: Decoding) -> Tensor:
    """Return the log-probabilities [..., V] for drawing: with temperature, cut to the nucleus, renormalized.

    Temperature 0 is the limit: the likeliest token has probability 1. In a tie, the first one is taken.
    """
    logits = logits[..., : decoding.vocabulary]
    if decoding.temperature == 0:
        certain = torch.full_like(log_probs(logits), LOG_ZERO)
        return certain.scatter(-1, logits.argmax(dim=-1, keepdim=True), 0.0)
    logp = log_probs(logits, decoding.temperature)
    if decoding.top_p == 1:
        return logp
    sorted_logp, order = logp.sort(dim=-1, descending=True)
    mass_before = sorted_logp.exp().cumsum(dim=-1) - sorted_logp.exp()
    outside = torch.zeros_like(logp, dtype=torch.bool).scatter(-1, order, mass_before >= decoding.top_p)
    return log_probs(logp.masked_fill(outside, -math.inf))


def draw(logp_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return ids_B by inverting the cumulative distribution, in float64 so that rare tokens keep their probability."""
    cumulative_BV = logp_BV.exp().cumsum(dim=-1, dtype=torch.float64)
    target_B1 = uniform_B.to(cumulative_BV).unsqueeze(-1) * cumulative_BV[:, -1:]
    # 'right' skips tokens of probability 0, whose cumulative value equals their neighbor's.
    ids_B1 = torch.searchsorted(cumulative_BV, target_B1, right=True)
    return ids_B1.squeeze(-1).clamp(max=logp_BV.shape[-1] - 1)


class _Decoder:
    """One model with its cache. It reads the tokens it has not seen, and scores each of them.

    ``rows`` are the rows it still reads. A row leaves once the model has scored its last token, which saves its cache
    and computation. R is the number of these rows, K the number of positions of one pass.
    """

    def __init__(self, model: nn.Module, prompt_ids_BP: Tensor, prompt_mask_BP: Tensor, decoding: Decoding) -> None:
        self.model: Any = model
        self.cached = CachedModel(model)
        self.decoding = decoding
        self.rows = torch.arange(len(prompt_ids_BP), device=prompt_ids_BP.device)
        self.unseen = prompt_ids_BP
        self.attention_mask = prompt_mask_BP.long()
        self.unscored = 0
        self.scores: list[Tensor] = []
        self.hidden: list[Tensor] = []

    def next_logp(self, ended_B: Tensor) -> Tensor:
        """Return logp_RV of the next token, by one forward pass over all unseen tokens. Rows that ended leave."""
        # The prompt's last token predicts the first response token. Later, the first unseen one was scored when drawn.
        output = self.cached.read(self.unseen, self.attention_mask, self.unscored + 1)
        logp_RKV = sampling_logp(output.logits, self.decoding)
        if output.hidden is not None:
            self.hidden.append(self._for_all(output.hidden, len(ended_B)))
        elif self.unscored:
            drawn_RK = self.unseen[:, -self.unscored :]
            self.scores.append(self._for_all(token_logp(logp_RKV[:, :-1], drawn_RK), len(ended_B)))
        self.unseen, self.unscored = self.unseen[:, :0], 0
        return self._let_go(ended_B, logp_RKV[:, -1])

    def append_token(self, ids_B: Tensor, logp_RV: Tensor | None) -> None:
        """Append a drawn token. This model drew it from ``logp_RV``; None if another model drew it."""
        ids_R = ids_B[self.rows]
        self.unseen = torch.cat([self.unseen, ids_R.unsqueeze(1)], dim=1)
        self.attention_mask = torch.cat([self.attention_mask, torch.ones_like(self.unseen[:, :1])], dim=1)
        if logp_RV is None:
            self.unscored += 1
        else:
            self.scores.append(self._for_all(token_logp(logp_RV, ids_R).unsqueeze(1), len(ids_B)))

    def finish(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor | None]:
        """Score the remaining tokens. Return this model's log-probability [B, T] of every drawn token, 0 where masked,
        and the final hidden states [B, T, H] that predict them, if the model returns any."""
        if self.unscored:
            self.next_logp(torch.ones_like(mask_BT[:, 0]))
        if not self.hidden:
            return torch.cat(self.scores, dim=1).masked_fill(~mask_BT, 0), None
        hidden_BTH = torch.cat(self.hidden, dim=1)[:, : ids_BT.shape[1]]
        return self._score(hidden_BTH, ids_BT, mask_BT), hidden_BTH

    def _score(self, hidden_BTH: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Score all tokens from hidden states. A few large products take half the time of one product per turn."""
        states_NH, ids_N = hidden_BTH[mask_BT], ids_BT[mask_BT]
        scores = []
        for start in range(0, len(ids_N), SCORED_AT_ONCE):
            span = slice(start, start + SCORED_AT_ONCE)
            scores.append(token_logp(sampling_logp(self.model.project(states_NH[span]), self.decoding), ids_N[span]))
        score_N = torch.cat(scores)
        return score_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, score_N)

    def _for_all(self, value_R: Tensor, size: int) -> Tensor:
        """Expand the values of the R rows to all B rows; the other rows get 0."""
        value_B = value_R.new_zeros(size, *value_R.shape[1:])
        value_B[self.rows] = value_R
        return value_B

    def _let_go(self, ended_B: Tensor, logp_RV: Tensor) -> Tensor:
        """Drop the rows that ended from the cache and the other state. All their tokens are scored by now.

        They stay, and decode tokens that no one reads, if the cache cannot drop rows.
        """
        stays_R = ~ended_B[self.rows]
        if bool(stays_R.all()) or not bool(stays_R.any()) or not self.cached.keep_rows(stays_R.nonzero().squeeze(1)):
            return logp_RV
        self.rows, self.unseen = self.rows[stays_R], self.unseen[stays_R]
        self.attention_mask = self.attention_mask[stays_R]
        return logp_RV[stays_R]


@torch.no_grad()
def sample(
    student: nn.Module,
    prompt_ids_BP: Tensor,
    prompt_mask_BP: Tensor,
    uniform_BT: Tensor,
    decoding: Decoding,
    teacher: nn.Module | None = None,
    teacher_mix: float = 0.0,
    coin_T: Tensor | None = None,
) -> Rollout:
    """Sample up to ``max_new_tokens`` tokens per row after left-padded prompts.

    Args:
        student: causal language model with the usual keyword arguments and a cache.
        prompt_ids_BP: prompts (long), padded on the left; ``prompt_mask_BP`` is True on real tokens.
        uniform_BT: float64 in [0, 1), one for each token to draw, from ``uniforms``.
        teacher: draws position t if ``coin_T[t]`` < ``teacher_mix``, which is α of Eq 4. If the model has
            ``forward_with_hidden_states``, that method returns the logits of the last position only and, as ``hidden``,
            the final hidden states. Its ``project`` maps them to logits.
        coin_T: float64 in [0, 1), shared by all rows.

    Returns:
        Rollout whose ``behaviour_logp_BT`` is log p̃ of Eq 4, or log q without a teacher.
    """
    student_decoder = _Decoder(student, prompt_ids_BP, prompt_mask_BP, decoding)
    decoders = [student_decoder]
    speakers = [student_decoder] * decoding.max_new_tokens
    if teacher is not None and coin_T is not None and teacher_mix > 0:
        teacher_decoder = _Decoder(teacher, prompt_ids_BP, prompt_mask_BP, decoding)
        decoders.append(teacher_decoder)
        speakers = [teacher_decoder if coin < teacher_mix else student_decoder for coin in coin_T.tolist()]
    ended_B = torch.zeros(len(prompt_ids_BP), dtype=torch.bool, device=prompt_ids_BP.device)
    drawn: list[Tensor] = []
    for step, speaker in enumerate(speakers):
        logp_RV = speaker.next_logp(ended_B)
        ids_B = torch.zeros_like(ended_B, dtype=torch.long)
        ids_B[speaker.rows] = draw(logp_RV, uniform_BT[speaker.rows, step])
        for decoder in decoders:
            decoder.append_token(ids_B, logp_RV if decoder is speaker else None)
        drawn.append(ids_B)
        ended_B |= is_any(ids_B, decoding.eos_ids)
        if bool(ended_B.all()):
            break
    ids_BT = torch.stack(drawn, dim=1)
    mask_BT = through_first_eos(ids_BT, decoding.eos_ids)
    student_logp_BT, _ = student_decoder.finish(ids_BT, mask_BT)
    if len(decoders) == 1:
        return Rollout(ids_BT, mask_BT, student_logp_BT)
    teacher_logp_BT, teacher_hidden_BTH = teacher_decoder.finish(ids_BT, mask_BT)
    behaviour_logp_BT = mixture(teacher_logp_BT, student_logp_BT, teacher_mix)
    return Rollout(ids_BT, mask_BT, behaviour_logp_BT, student_logp_BT, teacher_hidden_BTH)
