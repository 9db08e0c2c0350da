"""not_read: a field or a format that would be dropped is refused by its name, with the way to convert it."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from skill_kd.kd.dataset.not_read import ANSWERS, FIELDS, PACKED, ROLES, TABLES, TURN_FIELDS, WIDE
from skill_kd.kd.dataset.reading import parse_example, read_examples
from skill_kd.kd.errors import BadInput

TOOL = [{"type": "function", "function": {"name": "look_up"}}]
ROW = {"prompt": "hello", "response": "fox"}


def turns(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "fox", **fields}]}


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_a_row_is_refused_by_its_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"^'{field}'"):
        parse_example({**ROW, field: TOOL})
    for nothing in (None, "", []):
        assert parse_example({**ROW, field: nothing}) == parse_example(ROW)


@pytest.mark.parametrize("field", ANSWERS)
def test_another_name_of_the_answer_is_refused_unless_the_row_has_a_response(field: str) -> None:
    with pytest.raises(ValueError, match=rf"'{field}' is not read; rename it to 'response'"):
        parse_example({"prompt": "hello", field: "fox"})
    assert parse_example({**ROW, field: "dog"}) == parse_example(ROW)


@pytest.mark.parametrize("field", TURN_FIELDS)
def test_a_field_of_a_turn_is_refused_by_its_name(field: str) -> None:
    with pytest.raises(ValueError, match=f"'{field}' in a turn"):
        parse_example(turns(**{field: TOOL}))
    assert parse_example(turns(**{field: None})) == parse_example(ROW)


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_refused_by_its_name(role: str) -> None:
    messages = [{"role": role, "content": "x"}, {"role": "user", "content": "hello"}]
    with pytest.raises(ValueError, match=f"role '{role}'"):
        parse_example({"messages": messages})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (turns(content=[{"type": "text", "text": "fox"}]), "'content' is a list of parts"),
        (turns(content=None, tool_calls=TOOL), "'tool_calls'"),
        ({"messages": json.dumps(turns()["messages"])}, "'messages' is text, not a list"),
        ({"text": "<user>hello<assistant>fox"}, "'text' is not split into turns"),
        ({"instruction": "hello", "input": "", "output": "fox"}, "'instruction': Alpaca"),
        (
            {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "x"}]},
            "system turn with empty",
        ),
        ({"prompt": "hello", "response": float("nan")}, "'response' is empty or not text"),
    ],
)
def test_a_form_of_another_tool_is_refused_by_its_name(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_example(row)


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as raised:
        read_examples(str(path), "train", 0.0)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_is_refused_with_its_conversion(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("prompt,response\nhello,fox\n")
    assert "read_csv(" in refused(path)


@pytest.mark.parametrize("start", PACKED)
def test_a_packed_file_is_refused_with_the_program_that_unpacks_it(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(start + b"\x00\xff\n")
    assert f"unpack it with {PACKED[start][1]}" in refused(path)


def test_a_file_of_gzip_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode()))
    assert "gunzip" in refused(path)


@pytest.mark.parametrize("mark", WIDE)
def test_another_encoding_is_refused_by_its_name(mark: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    endian = "le" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE) else "be"
    path.write_bytes(mark + json.dumps(ROW).encode(f"{WIDE[mark]}-{endian}"))
    assert f"iconv -f {WIDE[mark]} -t UTF-8" in refused(path)


def test_a_line_in_another_encoding_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "hello"}\n{"prompt": "caf\xe9"}\n')
    assert "line 2: not UTF-8 text" in refused(path)
    assert len(read_examples(str(path), "train", 0.5)) == 1


@pytest.mark.parametrize("indent", [None, 1])
def test_one_array_is_refused_with_its_conversion(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW, ROW], indent=indent))
    assert "one JSON array" in refused(path)
    assert "jq -c '.[]'" in refused(path)


def test_one_object_over_several_lines_is_refused_with_its_conversion(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": [ROW]}, indent=1))
    assert "one JSON object over several lines" in refused(path)
