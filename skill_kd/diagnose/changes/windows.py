"""Windows of time or of lines: counts over all answers, and a bounded random sample of them.

Windows can be merged, so processes can share the work, and neighboring windows become one if there are too many. The
content of a window does not depend on how the answers were distributed over processes.
"""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from operator import itemgetter
from typing import NamedTuple

from skill_kd.kd.dataset.formats.conversation import Call

SAMPLE = 256
"""Number of answers per window that the expensive detectors read."""
MOST_WINDOWS = 128
"""Largest number of windows. If there are more, they become twice as wide."""
MOST_HASHES = 4096
"""Largest number of distinct answers counted per window. If there are more, a random share is counted, by hash."""
TEXT, PROMPT = 2000, 400
"""Number of characters kept of a sampled answer, and of its prompt."""
LONGEST_KEPT = 100_000
"""Longest system prompt whose hash is kept, in characters. That of a longer one is computed for each answer."""
SETTINGS = ("model version", "temperature", "max_tokens", "system prompt")
NOT_LOGGED = "not logged"
"""Value of a setting or a finish reason that the log does not have."""

Setting = tuple[str, str, str, str]
"""The settings of an answer as text, in the order of ``SETTINGS``."""


class Sampled(NamedTuple):
    """A sampled answer: truncated texts, and hashes of the whole texts."""

    output: str
    prompt: str | None
    output_hash: int
    prompt_hash: int
    """0 if the log has no prompt."""
    finish: str
    setting: Setting
    characters: int


class Window:
    """The counts and the sample of one window."""

    def __init__(self) -> None:
        self.rows = 0
        self.finishes: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()
        """Number of answers by ``length_bin``."""
        self.hashes: dict[int, list[int]] = {}
        """For each hash of an answer below ``limit``: number of answers, hash of one prompt, True if prompts differ."""
        self.limit = 1 << 64
        self._heap: list[tuple[float, Sampled]] = []

    def add(self, call: Call, setting: Setting, priority: float) -> None:
        """Count an answer, and keep it if its priority, random in [0, 1), is among the smallest."""
        self.rows += 1
        finish = _FINISHES.get(call.finish or "", "other")
        self.finishes[finish] += 1
        output, prompt = call.output, call.prompt
        characters = len(output)
        self.lengths[length_bin(characters)] += 1
        output_hash, prompt_hash = text_hash(output), _exact_hash(prompt) if prompt else 0
        if output_hash < self.limit:
            self._count(output_hash, 1, prompt_hash, False)
            self._shrink()
        heap = self._heap
        if len(heap) < SAMPLE or -heap[0][0] > priority:
            kept = Sampled(
                output[:TEXT],
                prompt[:PROMPT] if prompt else None,
                output_hash,
                prompt_hash,
                finish,
                setting,
                characters,
            )
            push = heapq.heappush if len(heap) < SAMPLE else heapq.heappushpop
            push(heap, (-priority, kept))

    def _count(self, output_hash: int, rows: int, prompt: int, differ: bool) -> None:
        entry = self.hashes.get(output_hash)
        if entry is None:
            self.hashes[output_hash] = [rows, prompt, differ]
        else:
            entry[2] = entry[2] or differ or entry[1] != prompt or not prompt
            entry[0] += rows
            entry[1] = min(entry[1], prompt)

    def _shrink(self) -> None:
        while len(self.hashes) > MOST_HASHES:
            self.limit >>= 1
            self.hashes = {key: entry for key, entry in self.hashes.items() if key < self.limit}

    def merge(self, other: Window) -> None:
        """Add the content of another window."""
        self.rows += other.rows
        self.finishes += other.finishes
        self.lengths += other.lengths
        self.limit = min(self.limit, other.limit)
        self.hashes = {key: entry for key, entry in self.hashes.items() if key < self.limit}
        for key, (rows, prompt, differ) in other.hashes.items():
            if key < self.limit:
                self._count(key, rows, prompt, bool(differ))
        self._shrink()
        self._heap = heapq.nlargest(SAMPLE, self._heap + other._heap, key=itemgetter(0))
        heapq.heapify(self._heap)

    @property
    def sample(self) -> list[Sampled]:
        """The sampled answers, in an order that does not depend on the order of adding."""
        return [row for _, row in sorted(self._heap, key=itemgetter(0), reverse=True)]

    def repeated(self) -> tuple[int, int]:
        """Return the number of answers that also answer another prompt, and the number of all answers checked.

        Digits are folded. Both numbers are exact up to ``MOST_HASHES`` distinct answers.
        """
        return sum(rows for rows, _, differ in self.hashes.values() if differ), sum(
            rows for rows, _, _ in self.hashes.values()
        )


class Windows:
    """All windows, in order. ``unit`` is ``day``, or the number of lines per window."""

    def __init__(self, unit: str | int) -> None:
        self.unit = unit
        self.shift = 0
        """Each window spans 2 ** shift units."""
        self._windows: dict[int, Window] = {}
        self._systems: dict[str, str] = {}

    def add(self, call: Call, line: int, priority: float) -> None:
        """Count an answer; for windows of days it must have a time."""
        if isinstance(self.unit, int):
            place = line // self.unit
        else:
            assert call.time is not None
            place = int(call.time // 86400)
        place >>= self.shift
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window()
            while len(self._windows) > MOST_WINDOWS:
                self._widen(self.shift + 1)
            window = self._windows.get(place, window)
            if place not in self._windows:  # the windows became wider
                return self.add(call, line, priority)
        window.add(call, self._setting(call), priority)
        return None

    def _setting(self, call: Call) -> Setting:
        system = call.system or ""
        known = self._systems.get(system)
        if known is None:
            known = f"{text_hash(system):016x}" if system else "none"
            if len(self._systems) < 256 and len(system) < LONGEST_KEPT:
                self._systems[system] = known
        return (
            call.model or NOT_LOGGED,
            NOT_LOGGED if call.temperature is None else f"{call.temperature:g}",
            NOT_LOGGED if call.max_tokens is None else f"{call.max_tokens:g}",
            known,
        )

    def _widen(self, shift: int) -> None:
        old, self._windows, by = self._windows, {}, shift - self.shift
        self.shift = shift
        for place in sorted(old):
            if (kept := self._windows.get(place >> by)) is None:
                self._windows[place >> by] = old[place]
            else:
                kept.merge(old[place])

    def merge(self, other: Windows) -> None:
        """Add the windows of another process."""
        for each, shift in ((self, other.shift), (other, self.shift)):
            if each.shift < shift:
                each._widen(shift)
        for place, window in other._windows.items():
            if place in self._windows:
                self._windows[place].merge(window)
            else:
                self._windows[place] = window
        while len(self._windows) > MOST_WINDOWS:
            self._widen(self.shift + 1)

    @property
    def width(self) -> int:
        """Days or lines per window."""
        return (self.unit if isinstance(self.unit, int) else 1) << self.shift

    def __len__(self) -> int:
        return len(self._windows)

    def __iter__(self) -> Iterator[tuple[int, Window]]:
        """Yield the first unit of each window (days since 1970, or the line's number) and the window."""
        width = self.width
        return ((place * width, self._windows[place]) for place in sorted(self._windows))


_FINISHES = {
    **dict.fromkeys(("", "none", "null"), NOT_LOGGED),
    **dict.fromkeys(("stop", "end_turn", "eos", "eos_token", "stop_sequence", "end", "complete", "completed"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length", "token_limit"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool call"),
    **dict.fromkeys(("content_filter", "safety", "refusal", "content_filtered"), "content filter"),
}

_FOLD = bytes.maketrans(b"0123456789", b"0" * 10)
_ZEROS = re.compile(rb"00+")


def _exact_hash(text: str) -> int:
    """Return 64 bits of a prompt. Prompts that differ only in a number have different hashes."""
    return int.from_bytes(blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest(), "little")


def text_hash(text: str) -> int:
    """Return 64 bits of a text. Numbers, white space at the ends and Unicode normalization do not change them."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    folded = text.strip().encode("utf-8", "replace").translate(_FOLD)
    if b"00" in folded:
        folded = _ZEROS.sub(b"0", folded)
    return int.from_bytes(blake2b(folded, digest_size=8).digest(), "little")


def length_bin(characters: int) -> int:
    """Return the bin of a length: exact below 16 characters, then eight bins per doubling."""
    if characters < 16:
        return characters
    octave = characters.bit_length() - 5
    return 16 + 8 * octave + ((characters >> (octave + 1)) & 7)


def bin_length(index: int) -> float:
    """Return the middle of a bin, in characters."""
    if index < 16:
        return float(index)
    octave, step = divmod(index - 16, 8)
    return (8.5 + step) * float(1 << (octave + 1))
