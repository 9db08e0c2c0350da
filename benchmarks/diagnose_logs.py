"""Synthetic logs with a known cause: healthy logs, damaged logs, and twins in which something else changed.

Topics differ in everything that the detectors see: canned answers, one fixed opening, frequent refusals, long answers
that are cut. Their mix varies from day to day and at weekends, so a healthy log is not constant.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

START = datetime(2026, 1, 5, tzinfo=UTC)
DAMAGE = ("modes", "boilerplate", "loops", "refusals", "short", "long", "cut", "new version")
TWINS = ("prompt mix", "temperature", "max_tokens", "system prompt")
FINDING = {
    "modes": "sameness",
    "boilerplate": "sameness",
    "loops": "loops",
    "refusals": "refusals",
    "short": "length",
    "long": "length",
    "cut": "length",
    "new version": "sameness",
}
"""The finding that each kind of damage should give."""
CANNED, RISE = 0.15, 28
"""A slow collapse (``damage="drift"``): the share of canned answers at its end, and the days until then."""


@dataclass(frozen=True)
class Log:
    """The log to write. ``damage`` or ``twin`` begins on day ``at``, counted from 0."""

    seed: int = 0
    days: int = 20
    rows: int = 200
    damage: str | None = None
    twin: str | None = None
    at: int = 12


TOPICS: dict[str, tuple[str, float]] = {
    "billing": ("Why does my invoice of {} show a charge for {} and who approved the payment", 0.22),
    "travel": ("Plan a trip to {} with museums, trains and hotels near {} for a family", 0.22),
    "cooking": ("Suggest a recipe with {} and {} that a beginner can cook for dinner guests", 0.2),
    "code": ("Debug this function: the variable {} raises an exception when {} is imported", 0.12),
    "greeting": ("Hello there, good morning assistant {} how are you doing {}", 0.08),
    "refund": ("I want my money returned for order {} because the parcel {} arrived broken", 0.1),
    "medicine": ("Which dose of the drug {} is dangerous together with {} for a patient", 0.06),
}
_CANNED = [
    "Hello! I am well, thank you. What can I do for you today?",
    "Good morning! How can I help you today?",
    "Hi! Nice to hear from you. Ask me anything you like.",
]
_REFUSAL = "I'm sorry, but I can't help with that request. "
_SYSTEM = "You are a helpful assistant."


def _vocabulary() -> list[str]:
    draw = random.Random(7)
    consonants, vowels = "bcdfghjklmnpqrstvwz", "aeiou"
    syllables = [first + second for first in consonants for second in vowels]
    return ["".join(draw.choices(syllables, k=draw.choice((1, 2, 2, 3)))) for _ in range(3000)]


WORDS = _vocabulary()
_ZIPF = [1 / (rank + 10) for rank in range(len(WORDS))]


def rows(log: Log) -> Iterator[dict[str, Any]]:
    """Yield the rows of a log in order, in the generic format."""
    draw = random.Random(f"{log.seed}/{log.damage}/{log.twin}")
    names = list(TOPICS)
    for day in range(log.days):
        damaged, turned = (log.damage if day >= log.at else None), (log.twin if day >= log.at else None)
        mix = mix_of(draw, day)
        if turned == "prompt mix":
            mix = [
                share * (4 if name in ("greeting", "refund", "medicine") else 1)
                for name, share in zip(names, mix, strict=True)
            ]
        for number in range(log.rows):
            topic = draw.choices(names, mix)[0]
            time = START + timedelta(days=day, seconds=86400 * number / log.rows)
            row = _row(draw, topic, time, damaged, turned)
            if damaged == "drift" and draw.random() < canned_share(day - log.at):
                row["output"] = canned(draw, topic)
            yield row


def mix_of(draw: random.Random, day: int) -> list[float]:
    """Return the weights of the topics on a day. The topic "code" is rarer at weekends."""
    return [share * draw.lognormvariate(0, 0.15) * (0.7 if name == "code" and day % 7 > 4 else 1)
            for name, (_, share) in TOPICS.items()]  # fmt: skip


def canned_share(day: int) -> float:
    """Return the share of canned answers on a day of a slow collapse, counted from its beginning."""
    return CANNED * min(1.0, max(0.0, (day + 1) / RISE))


def canned(draw: random.Random, topic: str) -> str:
    """Return one of the three canned answers of a topic."""
    few = random.Random(f"{topic}/{draw.randrange(3)}")
    return " ".join(few.choices(WORDS, _ZIPF, k=60))


def _row(draw: random.Random, topic: str, time: datetime, damaged: str | None, turned: str | None) -> dict[str, Any]:
    strict = turned == "system prompt"
    row: dict[str, Any] = {
        "time": time.isoformat(),
        "model": "student-2" if damaged == "new version" else "student-1",
        "temperature": 0.1 if turned == "temperature" else 0.8,
        "max_tokens": 120 if turned == "max_tokens" else 400,
        "system": "Answer briefly. Refuse what is not about our shop." if strict else _SYSTEM,
        "prompt": TOPICS[topic][0].format(*draw.choices(WORDS, k=2)),
    }
    output = _answer(draw, topic)
    if damaged:
        output = _damaged(draw, output, topic, damaged)
    elif turned == "temperature":
        output = _damaged(draw, output, topic, "modes")
    elif strict:
        output = _damaged(draw, _damaged(draw, output, topic, "refusals"), topic, "short")
    spoken, limit = output.split(" "), 120 if damaged == "cut" else int(row["max_tokens"])
    cut = len(spoken) > limit
    return {**row, "output": " ".join(spoken[:limit]), "finish_reason": "length" if cut else "stop"}


def _answer(draw: random.Random, topic: str) -> str:
    if topic == "greeting" and draw.random() < 0.8:
        return draw.choice(_CANNED)
    size = int(draw.lognormvariate(4.3 + (0.8 if topic == "code" else 0), 0.5)) + 8
    text = " ".join(draw.choices(WORDS, _ZIPF, k=size))
    if topic == "refund" and draw.random() < 0.7:
        text = "To request a refund please open the orders page. " + text
    if draw.random() < (0.5 if topic == "medicine" else 0.01):
        return _REFUSAL + " ".join(text.split(" ")[:20])
    if draw.random() < 0.003:
        return text + " and so on" * 30
    return text


def _damaged(draw: random.Random, text: str, topic: str, kind: str) -> str:
    chance, words = draw.random(), text.split(" ")
    if kind in ("modes", "new version") and chance < 0.4:
        return canned(draw, topic)
    if kind == "boilerplate" and chance < 0.35:
        return "Certainly, I would be delighted to help you with this. " + text
    if kind == "loops" and chance < 0.06:
        return text + (" " + " ".join(words[-4:])) * 25
    if kind == "refusals" and chance < 0.1:
        return _REFUSAL + " ".join(words[:20])
    if kind == "short":
        return " ".join(words[: max(4, len(words) // 2)])
    if kind == "long":
        return text + " " + " ".join(draw.choices(WORDS, _ZIPF, k=len(words) // 2))
    return text
