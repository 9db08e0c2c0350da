"""Saved generations: reading, refusing invalid rows, and pairing teacher and student."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from skill_kd.errors import UsageError
from skill_kd.evaluate.generations import (
    LONGEST_LINE,
    prompt_key,
    read_generations,
    read_rows,
    refuse_overlap,
    write_rows,
)
from skill_kd.evaluate.samples import pair


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def rows_of(prompts: int, responses: int, **more: object) -> list[dict[str, object]]:
    return [{"prompt": f"p{n}", "response": f"r{k}", **more} for n in range(prompts) for k in range(responses)]


def test_rows_are_grouped_by_prompt_ignoring_spacing_and_order(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.jsonl",
        {"prompt": "a  b", "response": "1"},
        {"prompt": "c", "response": "2", "category": "x"},
        {"prompt": "a b\n", "response": "3", "reference": ["r", "s"]},
    )
    found = read_generations(path, most=8)
    assert [(p.text, p.responses, p.references, p.category) for p in found.prompts.values()] == [
        ("a  b", ["1", "3"], ("r", "s"), None),
        ("c", ["2"], (), "x"),
    ]
    assert found.rows == 3


def test_prompt_text_equals_one_user_turn() -> None:
    bare = prompt_key({"prompt": "hi there"})
    assert prompt_key({"messages": [{"role": "user", "content": "hi  there"}]}) == bare
    answered = [{"role": "user", "content": "hi there"}, {"role": "assistant", "content": "hello"}]
    assert prompt_key({"messages": answered}) == bare
    assert prompt_key({"messages": [{"role": "system", "content": "be brief"}, *answered]}) != bare


def test_surplus_rows_are_counted_and_ignored(tmp_path: Path) -> None:
    found = read_generations(written(tmp_path / "t.jsonl", *rows_of(2, 5)), most=3)
    assert found.rows == 10
    assert [len(p.responses) for p in found.prompts.values()] == [3, 3]


def test_empty_response_is_kept(tmp_path: Path) -> None:
    found = read_generations(written(tmp_path / "t.jsonl", {"prompt": "p", "response": ""}), most=3)
    assert found.prompts[prompt_key({"prompt": "p"})].responses == [""]


def test_line_separators_bom_and_lone_surrogates_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "p", "response": "a\xe2\x80\xa8b"}\r\n\n{"prompt": "p", "response": "\\ud800x"}'
    )
    [prompt] = read_generations(path, most=3).prompts.values()
    assert prompt.responses == ["a\u2028b", "?x"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b'{"prompt": "p", "response": "r"}\n{"prompt": "p", "resp', "line 2 is not JSON"),
        (b'{"prompt": "p"}\n', "line 1: 'response' is missing"),
        (b'{"prompt": "p", "response": null}\n', "'response' is missing or not a string"),
        (b'{"prompt": "p", "response": NaN}\n', "'response' is missing or not a string"),
        (b'{"prompt": " ", "response": "r"}\n', "'prompt' is missing, empty"),
        (b'{"response": "r"}\n', "'prompt' is missing"),
        (b'{"messages": "hi", "response": "r"}\n', "each turn of 'messages' needs 'role' and 'content'"),
        (b'{"messages": [{"role": "assistant", "content": "x"}], "response": "r"}\n', "no turn before the answer"),
        (b'{"prompt": "p", "response": "r", "reference": [1]}\n', "'reference' is not a string"),
        (b'{"prompt": "p", "response": "r", "reference": " "}\n', "'reference' is not a string"),
        (b"\xff\xfe{\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON|nested too deeply"),
    ],
)
def test_invalid_row_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=said):
        read_generations(path, most=3)


def test_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with path.open("w") as file:
        for number in range(100):
            file.write(json.dumps({"prompt": "p", "response": f"{number} " + "x" * 2**20}) + "\n")
    tracemalloc.start()
    found = read_generations(path, most=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.rows == 100
    assert peak < 16 * 2**20


def test_endless_line_is_refused_before_it_is_read_completely(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    with path.open("wb") as file:
        file.truncate(LONGEST_LINE + 2)
    with pytest.raises(UsageError, match="line 1 is longer"):
        next(read_rows(path))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none\.jsonl"):
        read_generations(tmp_path / "none.jsonl", most=3)


def test_overlap_with_training_prompts_is_refused(tmp_path: Path) -> None:
    training = written(
        tmp_path / "train.jsonl",
        {"messages": [{"role": "user", "content": "p1 "}, {"role": "assistant", "content": "x"}]},
        {"text": "no prompt"},
    )
    keys = [prompt_key(row) for row in rows_of(3, 1)]
    with pytest.raises(UsageError, match=r"1 of 3 evaluation prompts are also in .*'p1'"):
        refuse_overlap(keys, training)
    refuse_overlap(keys[::2], training)


# --- pairing ----------------------------------------------------------------------------------------------------------


def sides(folder: Path, teacher: list[dict[str, object]], student: list[dict[str, object]]):
    return (
        read_generations(written(folder / "t.jsonl", *teacher), most=16),
        read_generations(written(folder / "s.jsonl", *student), most=16),
    )


def test_student_gets_k_responses_and_teacher_2k(tmp_path: Path) -> None:
    samples = pair(*sides(tmp_path, rows_of(3, 10), rows_of(3, 9)), samples=8)
    assert samples.count == 5
    assert [len(row) for row in samples.teacher] == [10] * 3
    assert "is 5 and not 8" in samples.notes[0]


def test_student_without_some_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'s\.jsonl' lacks 2 of the 4 prompts of 't\.jsonl' \('p2'; 'p3'\)"):
        pair(*sides(tmp_path, rows_of(4, 2), rows_of(2, 1)), samples=1)


def test_extra_student_prompts_are_ignored_with_a_note(tmp_path: Path) -> None:
    samples = pair(*sides(tmp_path, rows_of(2, 2), rows_of(4, 1)), samples=1)
    assert len(samples.student) == 2
    assert samples.notes == ("2 prompts of 's.jsonl' are not in 't.jsonl' and are ignored",)


def test_one_teacher_response_per_prompt_gives_k_0(tmp_path: Path) -> None:
    assert pair(*sides(tmp_path, rows_of(2, 1), rows_of(2, 4)), samples=4).count == 0


def test_rows_are_written_atomically(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", {"old": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_rows(path, [{"new": 1}, {"bad": float("nan")}])
    assert json.loads(path.read_text()) == {"old": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["t.jsonl"]
