"""Fields and file formats that training data may have and that are not read yet. Each names how to convert it."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import BadInput

NO_TOOLS = "data with tools is not read; leave such rows out"
NO_REASONING = "reasoning is not read from a field of its own; put it into the response as the model would write it"

FIELDS = {
    "tools": NO_TOOLS,
    "functions": NO_TOOLS,
    "reasoning_content": NO_REASONING,
    "reasoning": NO_REASONING,
    "thinking": NO_REASONING,
    "system": "add it to 'messages' as a first turn with role system",
    "system_prompt": "add it to 'messages' as a first turn with role system",
    "conversations": (
        "ShareGPT's form is not read; write 'messages' with role for from (user for human, assistant for gpt) and "
        "content for value"
    ),
    "instruction": "Alpaca's form is not read; write instruction and input as 'prompt', and output as 'response'",
    "input": "Alpaca's form is not read; write it into 'prompt'",
    "body": "requests of a batch API are not read; write the body alone (jq -c .body)",
}
"""Fields of a row, and what to do about each."""
ANSWERS = ("completion", "answer", "output", "chosen")
"""Names of the answer in other tools. A row that has 'response' may hold them too."""
TURN_FIELDS = {
    "tool_calls": NO_TOOLS,
    "function_call": NO_TOOLS,
    "reasoning_content": NO_REASONING,
    "reasoning": NO_REASONING,
    "thinking": NO_REASONING,
    "from": "ShareGPT's form is not read; write role for from (user for human, assistant for gpt), content for value",
}
ROLES = {
    "tool": NO_TOOLS,
    "function": NO_TOOLS,
    "developer": "write the role as system",
}
PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"PK\x03\x04": ("zip", "unzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
"""First bytes of packed files: the format, and the program that unpacks it."""
WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""Byte order marks of other encodings. UTF-32 comes first, because its mark begins with that of UTF-16."""
TABLES = {".csv": ("CSV", ""), ".tsv": ("TSV", ", sep='\\t'")}
"""Tables, by suffix, with the option that pandas needs to read them."""


def refuse_fields(row: Mapping[str, object]) -> None:
    """Refuse a row with a field that would be dropped although the conversation depends on it.

    Raises:
        ValueError: the row has such a field. The message names it.
    """
    for name, fix in FIELDS.items():
        if row.get(name):
            raise ValueError(f"'{name}': {fix}")
    if row.get("response") is None:
        for name in ANSWERS:
            if row.get(name):
                raise ValueError(f"'{name}' is not read; rename it to 'response', or delete it if no answer is needed")
    if row.get("text") and not (row.get("prompt") or row.get("messages")):
        raise ValueError("'text' is not split into turns; write 'prompt' and 'response', or 'messages'")


def refuse_turn(turn: Mapping[str, object]) -> None:
    """Refuse a turn with a field or a role that is not read.

    Raises:
        ValueError: the turn has one. The message names it.
    """
    for name, fix in TURN_FIELDS.items():
        if turn.get(name):
            raise ValueError(f"'{name}' in a turn: {fix}")
    role = turn.get("role")
    if isinstance(role, str) and role in ROLES:
        raise ValueError(f"role '{role}': {ROLES[role]}")
    if isinstance(turn.get("content"), list):
        raise ValueError("'content' is a list of parts, which is not read; write the text of the parts as one text")


def refuse_file(path: Path, content: bytes) -> None:
    """Refuse a file that is not JSON Lines in UTF-8, as far as its name and its content show that.

    Raises:
        BadInput: it is packed, in another encoding, a table, or one JSON value. The message says how to convert it.
    """
    if path.suffix in TABLES:
        name, option = TABLES[path.suffix]
        raise BadInput(
            f"'{path}' is a {name} table; convert it to JSONL, for example with pandas: "
            f"read_csv(FILE{option}).to_json('rows.jsonl', orient='records', lines=True)"
        )
    for start, (name, program) in PACKED.items():
        if content.startswith(start):
            raise BadInput(f"'{path}' is packed with {name}; unpack it with {program}")
    for start, name in WIDE.items():
        if content.startswith(start):
            raise BadInput(f"'{path}' is {name} text; convert it with iconv -f {name} -t UTF-8")
    body = content.removeprefix(codecs.BOM_UTF8).strip()
    if body.startswith(b"[") and body.endswith(b"]") and _is_json(body):
        raise BadInput(f"'{path}' is one JSON array; write one object on each line with jq -c '.[]'")
    if body.startswith(b"{") and not _is_json(body.split(b"\n", 1)[0]) and _is_json(body):
        raise BadInput(
            f"'{path}' is one JSON object over several lines; write the list of rows in it with jq -c '.NAME[]'"
        )


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
