"""Refuse a tokenizer that can turn a short text into a huge one, before it reads a text.

A tokenizer.json holds steps that replace, add and repeat text. Two dozen steps that double a text turn a word into
gigabytes. The library cannot be interrupted and ends the process if memory is short, so the steps are checked here.
This module imports no torch.
"""

from __future__ import annotations

import base64
import json
import math
import os
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..files import read_object
from .safe_files import TOKENIZER, cached

MOST_GROWTH = 500
"""Bytes that the steps together may make of one byte. ALBERT's steps, which make the most, count as 139."""
MOST_TEXT = 10_000
"""Characters of one token, or of a text that a step adds to it."""
MOST_TOKENS = 1_000_000
"""Tokens that tokenizer_config.json may ask for. Vocabularies have at most 300,000."""
_COUNTS = ("extra_ids", "offset", "vocab_size")
"""Settings of some families. Each makes that many tokens, and so does the highest id in added_tokens_decoder."""
READING, WRITING = ("normalizer", "pre_tokenizer", "post_processor"), ("decoder",)
_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")
_FORMS = {"NFC": 3.0, "NFD": 3.0, "NFKC": 11.0, "NFKD": 11.0, "Lowercase": 2.0, "StripAccents": 1.0, "Nmt": 1.0}
"""Growth by each step, in bytes of UTF-8. Several in a row grow a text as much as the largest of them."""
_FIX = "put the file back that the tokenizer was saved with"


def refuse_growing_files(place: str, name: str, revision: str | None = None) -> None:
    """Refuse a tokenizer if its files describe too much growth or too many tokens. Loading it may take all memory.

    Args:
        place: folder or hub id.
        name: its name in the message.
        revision: commit, tag or branch of a hub id.

    Raises:
        BadInput: the message names the part of the file, or the file is damaged.
    """
    path = cached(place, TOKENIZER, revision)
    settings = read_object(Path(path)) if path else {}
    _refuse_counts(settings, name)
    named = settings.get("fast_tokenizer_files")  # transformers chooses one of them by its version
    for file in ("tokenizer.json", *(named if isinstance(named, list) else ())):
        path = cached(place, file, revision) if isinstance(file, str) and file == os.path.basename(file) else None
        if path is not None:
            described = read_object(Path(path))
            _refuse_steps(described, f"{file} of '{name}'")
            if (longest := _longest(described)) > MOST_TEXT:
                raise BadInput(
                    f"{file} of '{name}': a text in it has {longest:,} characters, and at most {MOST_TEXT:,} are "
                    f"allowed; {_FIX}"
                )


def _refuse_counts(settings: Mapping[str, Any], name: str) -> None:
    ids = settings.get("added_tokens_decoder")
    counts = [(key, settings.get(key)) for key in _COUNTS]
    # The first digits are enough: Python converts 4300 at most.
    for each in ids if isinstance(ids, dict) else ():
        counts.append(("added_tokens_decoder", int(each[:20]) if each.isdecimal() else None))
    for key, count in counts:
        if isinstance(count, int) and count > MOST_TOKENS:
            raise BadInput(
                f"{TOKENIZER} of '{name}': {key} asks for {reprlib.repr(count)} tokens, and at most {MOST_TOKENS:,} "
                f"are allowed; {_FIX}"
            )


def refuse_growing(tokenizer: Any, name: str) -> None:
    """Refuse a loaded tokenizer with too much growth, whatever files it was made from.

    Raises:
        BadInput: the message names the steps.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = {}
    for part in (*READING, *WRITING):
        with suppress(Exception):  # a step in Python has no description
            steps[part] = json.loads(getattr(backend, part).__getstate__())
    _refuse_steps(steps, f"the tokenizer of '{name}'")


def _refuse_steps(described: Mapping[str, Any], where: str) -> None:
    for parts in (READING, WRITING):
        try:
            grown = math.prod(growth(described.get(part)) for part in parts)
        except (TypeError, ValueError, LookupError, AttributeError, StopIteration):
            continue  # the library refuses such a step, too, and reports it
        if grown > MOST_GROWTH:
            raise BadInput(
                f"{where}: {' and '.join(parts)} can turn one byte into {grown:,.0f}, and at most {MOST_GROWTH} are "
                f"allowed; {_FIX}"
            )


def growth(step: Any) -> float:
    """Return how many bytes a step of tokenizer.json can make from one byte. For steps in a row, these multiply."""
    if step is None:
        return 1.0
    kind = step["type"]
    if kind != "Sequence":
        return _GROWTH[kind](step) if kind in _GROWTH else _FORMS.get(kind, 1.0)
    total, form, mapped = 1.0, 1.0, False
    for each in next(step[name] for name in _LISTS if name in step):
        if each["type"] in _FORMS or (each["type"] == "Precompiled" and not mapped):  # it is a form, too
            form, mapped = max(form, growth(each)), mapped or each["type"] == "Precompiled"
        else:
            total, form, mapped = total * form * growth(each), 1.0, False
    return total * form


def _replace(step: Mapping[str, Any]) -> float:
    old, new = step["pattern"].get("String", ""), step["content"]
    # A regular expression may match nothing, so the content is added at each place.
    return max(1.0, len(new.encode()) / len(old.encode())) if old else 1.0 + len(new.encode())


def _precompiled(step: Mapping[str, Any]) -> float:
    table = base64.b64decode(step["precompiled_charsmap"] or "")
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return float(max(map(len, texts.split(b"\0"))) or 1)


def _template(step: Mapping[str, Any]) -> float:
    most = max(
        sum("Sequence" in piece for piece in step[form]) / inputs for form, inputs in (("single", 1), ("pair", 2))
    )
    added = sum(len(each["ids"]) for each in step["special_tokens"].values())
    return max(1.0, most) * (1.0 + (len(step["single"]) + len(step["pair"]) + added) / 100)


_GROWTH: dict[str, Callable[[Any], float]] = {
    "Replace": _replace,
    "Precompiled": _precompiled,
    "Prepend": lambda step: 1.0 + len(step["prepend"].encode()),
    "BertNormalizer": lambda _: 4.0,
    "ByteLevel": lambda step: 4.0 if step.get("add_prefix_space") else 2.0,
    "Metaspace": lambda _: 4.0,
    "TemplateProcessing": _template,
}


def _longest(described: Mapping[str, Any]) -> int:
    """Return the length of the longest token, or text that is added to a token."""
    model, added = described.get("model"), described.get("added_tokens")
    model = model if isinstance(model, dict) else {}
    vocabulary = model.get("vocab")
    texts: list[object] = [each.get("content") for each in added or () if isinstance(each, dict)]
    texts += [model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token")]
    if isinstance(vocabulary, dict):
        texts += vocabulary
    elif isinstance(vocabulary, list):
        texts += [each[0] for each in vocabulary if isinstance(each, list) and each]
    decoder = described.get("decoder")
    texts += list(decoder.values()) if isinstance(decoder, dict) else []
    return max((len(each) for each in texts if isinstance(each, str)), default=0)
