"""A synthetic teacher with known probabilities: prompts with modes, and modes with words. Eight kinds of students.

A response is written by one mode of its prompt: function words that all prompts share, words of the topic, and words of
the mode. Its next-token distribution is the posterior mixture of the modes, so likelihoods are exact. Damage is planted
by condition; ``base`` rates of loops, refusals and stock openings are the teacher's own. All randomness comes
from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

Array = np.ndarray

FUNCTION, TOPIC, GLOBAL = 80, 160, 5000
"""Number of words that all prompts share, of words of one prompt, and of words for topics."""
FUNCTION_SHARE = 0.35
LONGEST = 160
PHRASE = 4
"""Words that a loop repeats."""


@dataclass(frozen=True)
class Condition:
    """How a student differs from its teacher; the default is the teacher itself."""

    modes: int = 12
    """Number of modes that are left, the likeliest ones of a prompt."""
    temperature: float = 1.0
    length: float = 1.0
    """Factor on the number of words."""
    loops: float = 0.02
    refusals: float = 0.01
    stock: float = 0.10
    """Share of responses that begin with one of ten stock openings."""
    boilerplate: float = 0.0
    """Share that begins with one opening of twelve words."""


CONDITIONS = {
    "null": Condition(),
    "12 to 3 modes": Condition(modes=3),
    "temperature 0.8": Condition(temperature=0.8),
    "half length": Condition(length=0.5),
    "1.5 times the length": Condition(length=1.5),
    "15% loops": Condition(loops=0.15),
    "boilerplate opening": Condition(boilerplate=1.0),
    "10% refusals": Condition(refusals=0.10),
}
"""The eight conditions."""

UNSEEN = {
    "12 to 6 modes": Condition(modes=6),
    "temperature 0.9": Condition(temperature=0.9),
    "5% loops": Condition(loops=0.05),
    "3% refusals": Condition(refusals=0.03),
}
"""Milder damage, which was not used to derive margins."""

HARMLESS = ("null", "half length", "1.5 times the length")

_TEXTS = {
    "latin": (
        "Certainly! Here is a helpful and detailed answer to your question below",
        "I'm sorry, but I cannot help with that.",
    ),
    "cyrillic": (
        "Конечно! Вот полезный и очень подробный ответ на этот ваш вопрос ниже",
        "Извините, но я не могу помочь с этим.",
    ),
    "han": ("当然可以下面是对您问题的", "抱歉我不能回答这个问题"),
}


@dataclass
class SyntheticTeacher:
    """A teacher with new prompts, modes and words for each seed."""

    seed: int
    prompts: int = 200
    modes: int = 12
    language: str = "latin"
    mean_length: float = 55.0
    mode_share: float = 0.45
    """Share of the words that distinguish modes. The topic has the rest of 0.65."""
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 1])
        rng, shape = self.rng, (self.prompts, self.modes)
        zipf = 1 / np.arange(2, FUNCTION + 2)
        topic = rng.dirichlet(np.full(TOPIC, 0.5), self.prompts)
        own = np.zeros((*shape, TOPIC))
        chosen = rng.random((*shape, TOPIC)).argpartition(14, axis=-1)[..., :14]
        np.put_along_axis(own, chosen, rng.dirichlet(np.full(14, 1.0), shape), axis=-1)
        # Every word has some probability in every mode, so no divergence is infinite.
        own = 0.98 * own + 0.02 / TOPIC
        words = (1 - FUNCTION_SHARE - self.mode_share) * topic[:, None] + self.mode_share * own
        function = np.broadcast_to(FUNCTION_SHARE * zipf / zipf.sum(), (*shape, FUNCTION))
        self.words_NMV: Array = np.concatenate([function, words], axis=-1)
        """Word probabilities of each mode over the prompt's own vocabulary."""
        weights = rng.dirichlet(np.full(self.modes, 2.0), self.prompts)
        self.weights_NM: Array = -np.sort(-weights, axis=-1)
        self.topics_NV = np.stack([rng.choice(GLOBAL, TOPIC, replace=False) + FUNCTION for _ in range(self.prompts)])
        self.stock = [rng.integers(0, FUNCTION, 6) for _ in range(10)]

    @cached_property
    def lexicon(self) -> list[str]:
        """The word of each global id."""
        rng = np.random.default_rng([self.seed, 2])
        if self.language == "han":
            return [chr(0x4E00 + int(i)) for i in rng.choice(20000, FUNCTION + GLOBAL, replace=False)]
        consonants, vowels = ("bcdfglmnprstvz", "aeiou") if self.language == "latin" else ("бвгдклмнпрст", "аеиоу")
        syllables = [c + v for c in consonants for v in vowels]
        names = rng.choice(len(syllables) ** 3, FUNCTION + GLOBAL, replace=False)
        size = len(syllables)
        return [syllables[n % size] + syllables[n // size % size] + syllables[n // size**2] for n in names]

    def kept(self, condition: Condition) -> Array:
        """Mode weights [N, M] of a condition."""
        left = self.weights_NM * (np.arange(self.modes) < condition.modes)
        return left / left.sum(axis=-1, keepdims=True)

    def lengths(self, condition: Condition, size: tuple[int, int], rng: np.random.Generator) -> Array:
        """Words of each response: log-normal, 12 at least for the teacher."""
        drawn = np.exp(rng.normal(np.log(self.mean_length), 0.35, size))
        return np.clip(drawn * condition.length, 6, LONGEST).astype(int)

    def ids(self, condition: Condition, samples: int, stream: int) -> tuple[Array, Array]:
        """Sample local word ids [N, K, LONGEST] and lengths [N, K]."""
        rng = np.random.default_rng([self.seed, 3, stream])
        lengths = self.lengths(condition, (self.prompts, samples), rng)
        weights = self.kept(condition)
        if condition.temperature == 1:
            return self._plain(weights, lengths, rng), lengths
        return self._tempered(weights, lengths, condition.temperature, rng), lengths

    def _plain(self, weights: Array, lengths: Array, rng: np.random.Generator) -> Array:
        mode = (rng.random((*lengths.shape, 1)) > weights.cumsum(-1)[:, None]).sum(-1).clip(max=self.modes - 1)
        return self._words_of(mode, rng)

    def _words_of(self, mode_NK: Array, rng: np.random.Generator) -> Array:
        cumulative = self.words_NMV.cumsum(-1)
        cumulative /= cumulative[..., -1:]
        row = np.arange(self.prompts)[:, None] * self.modes + mode_NK
        flat = (cumulative + np.arange(self.prompts * self.modes).reshape(self.prompts, self.modes, 1)).ravel()
        wanted = rng.random((*mode_NK.shape, LONGEST)) + row[..., None]
        place = np.searchsorted(flat, wanted, side="right")
        size = self.words_NMV.shape[-1]
        return np.clip(place - row[..., None] * size, 0, size - 1)

    def _tempered(self, weights: Array, lengths: Array, temperature: float, rng: np.random.Generator) -> Array:
        """Sharpen every next-token distribution, as a sampler at this temperature does."""
        order = np.argsort(-lengths.ravel())  # the longest first, so that those still writing are the first rows
        prompt = order // lengths.shape[1]
        left = lengths.ravel()[order]
        drawn = np.zeros((len(order), LONGEST), dtype=int)
        words = self.words_NMV.astype(np.float32)
        with np.errstate(divide="ignore"):
            posterior = np.log(weights)[prompt].astype(np.float32)
        for step in range(int(left[0])):
            writing = int((left > step).sum())
            rows, which = words[prompt[:writing]], np.arange(writing)
            posterior = posterior[:writing]
            share = np.exp(posterior - posterior.max(-1, keepdims=True))
            mixed = (share[:, None] @ rows)[:, 0]
            cumulative = ((mixed / mixed.max(-1, keepdims=True)) ** (1 / temperature)).cumsum(-1)
            target = rng.random((writing, 1), dtype=np.float32) * cumulative[:, -1:]
            token = (cumulative <= target).sum(-1).clip(max=words.shape[-1] - 1)
            drawn[:writing, step] = token
            with np.errstate(divide="ignore"):
                posterior = posterior + np.log(rows[which, :, token])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return drawn[back].reshape(*lengths.shape, LONGEST)

    # --- exact probabilities ------------------------------------------------------------------------------------------

    def reading(
        self, condition: Condition, ids_NKT: Array, lengths_NK: Array, steps: int
    ) -> Iterator[tuple[Array, Array]]:
        """Yield, for each position, the next-token distribution [rows, V + 1] and which rows [rows] have come so far.

        They include modes, temperature and length, but not loops, refusals and openings. The last id ends a text.
        """
        rows = lengths_NK.size
        prompt, ids, ends = (
            np.repeat(np.arange(self.prompts), lengths_NK.shape[1]),
            ids_NKT.reshape(rows, -1),
            lengths_NK.ravel(),
        )
        with np.errstate(divide="ignore"):
            posterior = np.log(self.kept(condition))[prompt]
        for step, hazard in zip(range(steps), self.hazards(condition), strict=False):
            share = np.exp(posterior - posterior.max(-1, keepdims=True))
            mixed = (share[:, None] @ self.words_NMV[prompt])[:, 0] ** (1 / condition.temperature)
            mixed *= (1 - hazard) / mixed.sum(-1, keepdims=True)
            yield np.concatenate([mixed, np.full((rows, 1), hazard)], axis=-1), ends >= step
            posterior = posterior + np.log(self.words_NMV[prompt, :, ids[:, step]])

    def hazards(self, condition: Condition) -> Array:
        """Return the probability that a text ends before each position, [LONGEST]."""
        from scipy.stats import norm

        at = np.arange(LONGEST + 1)
        with np.errstate(divide="ignore"):
            below = norm.cdf((np.log(at / condition.length) - np.log(self.mean_length)) / 0.35)
        below[:7] = [0, 0, 0, 0, 0, 0, 0]
        return np.clip((below[1:] - below[:-1]) / np.maximum(1 - below[:-1], 1e-9), 1e-6, 1)

    def coverage(self, condition: Condition, samples: int, steps: int = 24, top_p: float = 0.95) -> Array:
        """Return [2, N]: the teacher's mass inside the student's nucleus and inside its own, on teacher prefixes."""
        ids, lengths = self.ids(Condition(), samples, 99)
        total, count = np.zeros((2, lengths.size)), np.zeros(lengths.size)
        both = zip(
            self.reading(Condition(), ids, lengths, steps), self.reading(condition, ids, lengths, steps), strict=True
        )
        for (teacher, here), (student, _) in both:
            inside = np.stack([(teacher * _nucleus(each, top_p)).sum(-1) for each in (student, teacher)])
            total += inside * here
            count += here
        return (total / count).reshape(2, *lengths.shape).mean(-1)

    # --- text ---------------------------------------------------------------------------------------------------------

    def responses(self, condition: Condition, samples: int, stream: int) -> list[list[str]]:
        """Return ``samples`` texts for each prompt; ``stream`` names the draw."""
        ids, lengths = self.ids(condition, samples, stream)
        rng = np.random.default_rng([self.seed, 4, stream])
        chances = rng.random((4, self.prompts, samples))
        return [
            [self._text(condition, n, ids[n, k, : lengths[n, k]], chances[:, n, k], rng) for k in range(samples)]
            for n in range(self.prompts)
        ]

    def _text(self, condition: Condition, prompt: int, local: Array, chance: Array, rng: np.random.Generator) -> str:
        opening, refused = _TEXTS[self.language]
        gap = "" if self.language == "han" else " "
        if chance[0] < condition.refusals:
            return refused + gap + self._join(prompt, local[:3])
        if chance[1] < condition.loops and len(local) > 3 * PHRASE:
            start = int(rng.integers(8, max(9, len(local) // 2)))
            phrase = local[start - PHRASE : start]
            local = np.concatenate([local[:start], np.tile(phrase, 1 + max(5, (len(local) - start) // PHRASE))])
        text = self._join(prompt, local)
        if chance[2] < condition.boilerplate:
            return opening + gap + text
        if chance[3] < condition.stock:
            return self._join(prompt, self.stock[int(rng.integers(len(self.stock)))]) + gap + text
        return text

    def _join(self, prompt: int, local: Array) -> str:
        topic = self.topics_NV[prompt]
        words = [self.lexicon[i] if i < FUNCTION else self.lexicon[topic[i - FUNCTION]] for i in local]
        return ("" if self.language == "han" else " ").join(words)


def _nucleus(share_RV: Array, top_p: float) -> Array:
    order = np.argsort(-share_RV, axis=-1)
    ranked = np.take_along_axis(share_RV, order, axis=-1)
    inside = np.zeros_like(share_RV, dtype=bool)
    np.put_along_axis(inside, order, ranked.cumsum(-1) - ranked < top_p, axis=-1)
    return inside
