"""Measure the sampled answers of a window: the values of each answer, and the topic of its prompt."""

from __future__ import annotations

import math
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from skill_kd.diagnose.changes.windows import NOT_LOGGED, Sampled, Setting, Windows, length_bin, text_hash
from skill_kd.kd.children import end_with_parent, starting_workers
from skill_kd.textstats import NearDuplicates, compression, looping, opening, refusal, words

OPENING = 5
"""Number of words in an opening."""
NEAR = 120
"""Number of words of an answer that are compared with other answers."""
FIXED = 400
"""Number of bytes of an answer that are compressed. Shorter answers are skipped: the ratio depends on the length."""

_HEDGES = re.compile(
    r"\b(?:as an? (?:ai|language model)|it(?:'s| is) important to (?:note|remember|consider)|it(?:'s| is) worth noting"
    r"|i (?:would|'d) (?:recommend|suggest) (?:consulting|seeking|speaking)|consult (?:a|an|your|with) \w+"
    r"|it depends|i(?:'m| am) not (?:sure|certain|a (?:doctor|lawyer|professional))|please note that"
    r"|there (?:is|are) no (?:one-size|simple)|may or may not|seek professional)\b"
)


def hedge(text: str) -> bool:
    """Return True if the first or last 300 characters have a hedge. Knows English only; use it for rates."""
    ends = text if len(text) <= 600 else f"{text[:300]} … {text[-300:]}"
    return _HEDGES.search(ends.casefold().replace("’", "'")) is not None


@dataclass
class MeasuredAnswer:
    """One sampled answer."""

    row: Sampled
    refusal: bool
    hedge: bool
    loop: bool
    cut: bool | None
    """True if the answer ended at the length limit; None if the log has no finish reason."""
    log_length: float
    """ln(characters + 1)."""
    compression: float | None
    opening: int
    """Hash of the first words; 0 if the text is shorter."""
    near: int
    """Number of its cluster of near-duplicates in the window; 0 if it is in none."""
    asked: frozenset[int] = frozenset()
    """Hashed words of the prompt."""
    topic: int = 0
    """Cluster of prompts; 0 without a prompt."""
    band: int = -1
    """Length class of the prompt, see ``length_band``; -1 without a prompt."""
    repeated: bool | None = None
    """True if a neighbor has the same text, see ``mark_repeats``; None if there are too few neighbors."""
    repeated_opening: bool | None = None
    """The same for the first words."""

    @property
    def kind(self) -> tuple[int, int]:
        """Kind of prompt: topic and length class."""
        return self.topic, self.band

    @property
    def setting(self) -> Setting:
        """Model version, temperature, max_tokens, system prompt."""
        return self.row.setting


@dataclass
class WindowSample:
    """The measured sample of a window."""

    start: int
    """Days since 1970, or the number of the first line."""
    rows: int
    """Number of answers in the window; the sample was drawn from them."""
    measured: list[MeasuredAnswer] = field(default_factory=list)


def measure_all(windows: Windows, jobs: int = 1) -> list[WindowSample]:
    """Measure every window, in several processes if there is enough work."""
    parts = [(start, window.rows, window.sample) for start, window in windows]
    if jobs <= 1 or sum(len(sample) for _, _, sample in parts) < 2000:
        return [measure(*part) for part in parts]
    import multiprocessing

    with starting_workers():
        pool = multiprocessing.get_context("spawn").Pool(min(jobs, os.cpu_count() or 1), end_with_parent)
    with pool:
        return pool.starmap(measure, parts, chunksize=4)


def measure(start: int, rows: int, sample: Sequence[Sampled]) -> WindowSample:
    """Measure every sampled answer of a window."""
    near: NearDuplicates[int] = NearDuplicates()
    measured = []
    for number, row in enumerate(sample):
        text = row.output
        found = words(text)
        raw = text.encode("utf-8", "replace")[:FIXED]
        start_words = opening(found, OPENING)
        near.add(number, found[:NEAR])
        measured.append(
            MeasuredAnswer(
                row,
                refusal(text),
                hedge(text),
                looping(text),
                None if row.finish == NOT_LOGGED else row.finish == "length",
                math.log1p(row.characters),
                compression(raw) if len(raw) == FIXED else None,
                text_hash(" ".join(start_words)) if len(start_words) == OPENING else 0,
                0,
                _hashed(row.prompt) if row.prompt else frozenset(),
                band=length_band(row),
            )
        )
    for number, members in enumerate(near.clusters(), 1):
        for member in members:
            measured[member].near = number
    return WindowSample(start, rows, measured)


def length_band(row: Sampled) -> int:
    """Return the length class of a prompt. Each class is four times as long as the one before."""
    return length_bin(len(row.prompt)) // 16 if row.prompt else -1


# --- topics -----------------------------------------------------------------------------------------------------------

TOPICS = 12
_LEARN = 1500
"""Largest number of prompts that the topics are learned from."""
_WORDS = 24


def _hashed(prompt: str) -> frozenset[int]:
    """Return hashes of the longest words of a prompt, which show its topic. All numbers count as one word."""
    found = {("0" if each.isdigit() else each) for each in words(prompt)}
    return frozenset(text_hash(each) for each in sorted(found, key=lambda each: (-len(each), each))[:_WORDS])


def assign_topics(windows: Sequence[WindowSample]) -> int:
    """Give every answer with a prompt a topic, and return the number of topics.

    Spherical k-means over rare words, learned from answers spread evenly over all windows. The result is deterministic.
    """
    rows = [each for window in windows for each in window.measured if each.asked]
    if len({each.asked for each in rows}) < 2:
        return 0
    step = max(1, len(rows) // _LEARN)
    learn = [each.asked for each in rows[::step]]
    weight = _rarity(learn)
    vectors = [_vector(each, weight) for each in learn]
    centers = _spread([each for each in vectors if each])
    for _ in range(6):
        sums: list[dict[int, float]] = [defaultdict(float) for _ in centers]
        for vector in vectors:
            into = sums[_nearest(vector, centers)]
            for key, value in vector.items():
                into[key] += value
        centers = [_unit(each) for each in sums if each]
    cache: dict[frozenset[int], int] = {}
    for row in rows:
        if row.asked not in cache:
            vector = _vector(row.asked, weight)
            cache[row.asked] = 1 + _nearest(vector, centers) if vector else len(centers) + 1
        row.topic = cache[row.asked]
    return len(centers)


def _rarity(learn: Sequence[frozenset[int]]) -> dict[int, float]:
    """Return inverse document frequencies. Words that occur in one prompt only are skipped."""
    counts = Counter(key for each in learn for key in each)
    return {key: math.log(len(learn) / count) + 0.1 for key, count in counts.items() if count > 1}


def _vector(asked: Iterable[int], weight: dict[int, float]) -> dict[int, float]:
    return _unit({key: weight[key] for key in asked if key in weight})


def _unit(vector: dict[int, float]) -> dict[int, float]:
    norm = math.sqrt(math.fsum(value * value for value in vector.values()))
    return {key: vector[key] / norm for key in sorted(vector)} if norm else {}


def _spread(vectors: Sequence[dict[int, float]]) -> list[dict[int, float]]:
    """Return initial centers that are far from each other (k-means++, seeded)."""
    draw = random.Random(0)  # noqa: S311 -- initial centers, not a secret
    centers = [vectors[0]] if vectors else [{}]
    closest = [_dot(each, centers[0]) for each in vectors]
    while len(centers) < TOPICS:
        far = [max(0.0, 1 - near) ** 2 for near in closest]
        if sum(far) <= 0.01 * len(vectors):
            break
        centers.append(vectors[draw.choices(range(len(vectors)), far)[0]])
        closest = [max(near, _dot(each, centers[-1])) for near, each in zip(closest, vectors, strict=True)]
    return centers


def _nearest(vector: dict[int, float], centers: Sequence[dict[int, float]]) -> int:
    scores = [_dot(vector, center) for center in centers]
    return max(range(len(centers)), key=scores.__getitem__)


def _dot(vector: dict[int, float], center: dict[int, float]) -> float:
    return sum(value * center[key] for key, value in vector.items() if key in center)


# --- repeats ----------------------------------------------------------------------------------------------------------

NEIGHBORS = 100
"""Number of answers that an answer is compared with, over as many windows as needed."""


def mark_repeats(windows: Sequence[WindowSample]) -> None:
    """Mark each answer whose text, or whose opening, one of its neighbors has too.

    The neighbors of an answer are the sampled answers to the same kind of prompt that are nearest in time. Each answer
    has the same number of them, so the share of repeats does not depend on the traffic or on the mix of prompts. An
    answer to the same prompt does not count.
    """
    kinds: dict[tuple[int, int], list[MeasuredAnswer]] = defaultdict(list)
    for window in windows:
        for each in window.measured:
            kinds[each.kind].append(each)
    for members in kinds.values():
        if len(members) > NEIGHBORS:
            prompts = [each.row.prompt_hash for each in members]
            texts = _repeats([each.row.output_hash for each in members], prompts)
            openings = _repeats([each.opening for each in members], prompts)
            for each, text, start in zip(members, texts, openings, strict=True):
                each.repeated, each.repeated_opening = text, start


def _repeats(keys: Sequence[int], prompts: Sequence[int]) -> Iterator[bool]:
    """Yield for each place whether a neighbor with another prompt has the same key. Key 0 is never a repeat."""
    pairs = list(zip(keys, prompts, strict=True))
    near, same = Counter(keys[: NEIGHBORS + 1]), Counter(pairs[: NEIGHBORS + 1])
    first = 0
    for place, (key, prompt) in enumerate(pairs):
        while place - first > NEIGHBORS // 2 and first + NEIGHBORS + 1 < len(keys):
            near[keys[first]] -= 1
            same[pairs[first]] -= 1
            near[keys[first + NEIGHBORS + 1]] += 1
            same[pairs[first + NEIGHBORS + 1]] += 1
            first += 1
        yield key != 0 and near[key] > (same[key, prompt] if prompt else 1)
