"""The prompts and the small data files the repository carries are varied, clean and disjoint."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import skill_kd

Row = dict[str, str]
ROOT = Path(__file__).parents[1]
CATEGORIES = 16


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


def trigrams(text: str) -> set[tuple[str, ...]]:
    sequence = words(text)
    return {tuple(sequence[i : i + 3]) for i in range(len(sequence) - 2)}


def similarity(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    """Jaccard similarity; two texts too short for a trigram share nothing that could be measured."""
    return len(a & b) / max(len(a | b), 1)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read(Path(skill_kd.__file__).with_name("demo_prompts.jsonl"))


@pytest.fixture(scope="module")
def prompts(rows: list[Row]) -> list[str]:
    return [row["prompt"] for row in rows]


def test_every_row_has_an_id_a_category_and_a_prompt(rows: list[Row]) -> None:
    assert all(set(row) == {"id", "category", "prompt"} for row in rows)
    assert [row["id"] for row in rows] == [f"demo-{n:03d}" for n in range(1, len(rows) + 1)]


def test_there_are_at_least_320_distinct_prompts(prompts: list[str]) -> None:
    assert len({" ".join(words(prompt)) for prompt in prompts}) == len(prompts) >= 320


def test_every_block_of_sixteen_holds_each_category_once(rows: list[Row]) -> None:
    """So any prefix mixes the categories, and all of them are equally large."""
    categories = [row["category"] for row in rows]
    assert len(set(categories)) == CATEGORIES
    assert len(rows) % CATEGORIES == 0
    for start in range(0, len(rows), CATEGORIES):
        assert len(set(categories[start : start + CATEGORIES])) == CATEGORIES


def test_prompts_have_4_to_40_words_and_no_stray_blanks(prompts: list[str]) -> None:
    assert [p for p in prompts if not 4 <= len(p.split()) <= 40] == []
    assert [p for p in prompts if p != " ".join(p.split())] == []


def test_prompts_are_printable_ascii(prompts: list[str]) -> None:
    assert [p for p in prompts if not (p.isascii() and p.isprintable())] == []


def test_no_two_prompts_are_near_duplicates(prompts: list[str]) -> None:
    grams = [(prompt, trigrams(prompt)) for prompt in prompts]
    near = [(p, q) for (p, a), (q, b) in combinations(grams, 2) if similarity(a, b) > 0.2]
    assert near == []


def test_no_opening_dominates(prompts: list[str]) -> None:
    bigrams = Counter(tuple(words(prompt)[:2]) for prompt in prompts)
    firsts = Counter(words(prompt)[0] for prompt in prompts)
    assert bigrams.most_common(1)[0][1] <= 0.03 * len(prompts)
    assert firsts.most_common(1)[0][1] <= 0.10 * len(prompts)
    assert len(bigrams) >= 0.7 * len(prompts)


@pytest.mark.parametrize("other", ["prompts.jsonl", "sft.jsonl"])
def test_example_evaluation_prompts_are_not_in_the_training_files(other: str) -> None:
    seen = [trigrams(row["prompt"]) for row in read(ROOT / "examples/data" / other)]
    held_out = [row["prompt"] for row in read(ROOT / "examples/data/eval.jsonl")]
    assert [p for p in held_out if any(similarity(trigrams(p), s) > 0.2 for s in seen)] == []


def test_example_rows_are_complete_and_distinct() -> None:
    failures = []
    for name, count, keys in (
        ("prompts.jsonl", 24, {"prompt"}),
        ("sft.jsonl", 16, {"prompt", "response"}),
        ("eval.jsonl", 12, {"prompt", "response"}),
        ("pretraining.jsonl", 12, {"text"}),
    ):
        example_rows = read(ROOT / "examples/data" / name)
        if len(example_rows) != count:
            failures.append(f"{name}: has {len(example_rows)} rows and not {count}")
        whole = [row for row in example_rows if set(row) == keys and all(value.strip() for value in row.values())]
        failures += [f"{name}: {row} is not complete" for row in example_rows if row not in whole]
        failures += [
            f"{name}: two rows have the same {key}"
            for key in sorted(keys)
            if len({row[key] for row in whole}) != len(whole)
        ]
    assert not failures, "\n".join(failures)


def test_example_chats_alternate_after_a_system_turn_and_end_with_the_assistant() -> None:
    lines = (ROOT / "examples/data/chat.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 8
    for line in lines:
        turns = json.loads(line)["messages"]
        exchanges, rest = divmod(len(turns) - 1, 2)
        assert (exchanges >= 2, rest) == (True, 0)
        assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * exchanges]
        assert all(turn["content"].strip() for turn in turns)
