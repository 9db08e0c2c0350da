"""Damages files: puts a value of another type, or a nest of brackets, in the place of each of their values.

``damages`` yields a name and the new content, or None for a folder in the place of the file.
"""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

DEPTH = 10_000
"""Levels of a nest of brackets."""
DIGITS = "9" * 5000
"""A whole number with more digits than Python converts at once."""
MOST_PLACES = 60
"""Values of one file that are damaged: of a vocabulary, only some."""


class Raw(str):
    """Text of a file that no encoder would write."""

    __slots__ = ()


VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "negative": -1,
    "float": 0.5,
    "huge": 10**30,
    "digits": Raw(DIGITS),
    "nan": Raw("NaN"),
    "overflow": Raw("1e999"),
    "empty": "",
    "text": "a",
    "long text": "a" * 100_000,
    "long name": "a" * 300,
    "nul": "a\0b",
    "surrogate": Raw(r'"\ud800"'),
    "list": [],
    "list of null": [None],
    "object": {},
    "object of null": {"a": None},
    "deep list": Raw("[" * DEPTH + "]" * DEPTH),
    "deep object": Raw('{"a":' * DEPTH + "1" + "}" * DEPTH),
}
YAML = {
    "nan": Raw(".nan"),
    "overflow": Raw(".inf"),
    "nul": Raw(r'"a\0b"'),
    "hexadecimal": Raw("0x" + "f" * 5000),
    "base 60": Raw("1" + ":59" * 3000),
    "date": Raw("2020-01-01"),
    "set": Raw("!!set {a: null}"),
    "bytes": Raw('!!binary "gICA"'),
    "key that is a number": Raw("{1: a}"),
    "key that is a list": Raw("{? [1] : a}"),
    "contains itself": Raw("&a [*a]"),
}
TOML = {
    **{name: Raw(json.dumps(value)) for name, value in VALUES.items() if name in ("negative", "float", "text", "list")},
    "true": Raw("true"),
    "nan": Raw("nan"),
    "digits": Raw(DIGITS),
    "hexadecimal": Raw("0x" + "f" * 5000),
    "date": Raw("2020-01-01"),
    "object": Raw("{}"),
    "deep list": Raw("[" * DEPTH + "]" * DEPTH),
    "deep object": Raw("{a=" * DEPTH + "1" + "}" * DEPTH),
    "long key": Raw("1\n# " + ".".join("a" * 20_000) + " = 1"),
}
PYTHON = {
    **{name: Raw(repr(value)) for name, value in VALUES.items() if not isinstance(value, Raw)},
    "digits": Raw(DIGITS),
    "hexadecimal": Raw("0x" + "f" * 5000),
    "nan": Raw("1e999 - 1e999"),
    "bytes": Raw("b'a'"),
    "complex": Raw("1j"),
    "ellipsis": Raw("..."),
    "surrogate": Raw(r"'\ud800'"),
    "key that is a list": Raw("{[]: 1}"),
    "call": Raw("open('a')"),
    "deep list": Raw("[" * DEPTH + "]" * DEPTH),
    "deep sign": Raw("-" * DEPTH + "1"),
    "deep sum": Raw("1" + " + 1" * DEPTH),
    "stars": Raw("[*[1]]"),
}
WHOLE: dict[str, bytes | None] = {
    "empty file": b"",
    "binary": bytes(range(256)),
    "null file": b"null",
    "list file": b"[]",
    "text file": b'"a"',
    "number file": b"1",
    "deep file": b"[" * DEPTH + b"]" * DEPTH,
    "deep object file": b'{"a":' * DEPTH + b"1" + b"}" * DEPTH,
    "half a file": b'{"a": [1, ',
    "folder": None,
}


def encoded(values: Any, **options: Any) -> str:
    """Return JSON, with each ``Raw`` as it is."""
    raw: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Raw):
            raw.append(value)
            return f"\x01{len(raw) - 1}\x01"
        if isinstance(value, dict):
            return {key: marked(each) for key, each in value.items()}
        return [marked(each) for each in value] if isinstance(value, list) else value

    text = json.dumps(marked(values), **options)
    return re.sub(r'"\\u0001(\d+)\\u0001"', lambda found: raw[int(found[1])], text)


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return every path to a value inside nested mappings and lists, the whole first."""
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]


def replaced(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy with another value at ``path``."""
    if not path:
        return value
    copy = dict(values) if isinstance(values, dict) else list(values)
    copy[path[0]] = replaced(values[path[0]], path[1:], value)
    return copy


def _found(values: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        values = values[key]
    return values


def _without(values: Any, path: tuple[Any, ...]) -> Any:
    parent = _found(values, path[:-1])
    rest = (
        {key: value for key, value in parent.items() if key != path[-1]}
        if isinstance(parent, dict)
        else [value for index, value in enumerate(parent) if index != path[-1]]
    )
    return replaced(values, path[:-1], rest)


def _some(everything: list[Any]) -> list[Any]:
    """Return at most ``MOST_PLACES`` of the values, evenly spread, the first ones always."""
    if len(everything) <= MOST_PLACES:
        return everything
    head, tail = everything[: MOST_PLACES // 2], everything[MOST_PLACES // 2 :]
    step = len(tail) / (MOST_PLACES - len(head))
    return head + [tail[int(number * step)] for number in range(MOST_PLACES - len(head))]


def damages_of_values(values: Any, others: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a name and JSON with one value replaced, removed, or given twice."""
    for path in _some(places(values)):
        where = ".".join(map(str, path)) or "all"
        for name, value in {**VALUES, **others}.items():
            yield f"{where}: {name}", encoded(replaced(values, path, value))
        if path:
            yield f"{where}: removed", encoded(_without(values, path))
        if path and isinstance(path[-1], str):
            again = Raw(f"{encoded(_found(values, path))}, {json.dumps(path[-1])}: null")
            yield f"{where}: twice", encoded(replaced(values, path, again))
        if isinstance(_found(values, path), dict):
            more = {**_found(values, path), "unknown": 1}
            yield f"{where}: unknown key", encoded(replaced(values, path, more))


def damages(name: str, content: bytes, load: Any = None) -> Iterator[tuple[str, bytes | None]]:
    """Yield every damage of a file. ``name`` decides its format; ``load`` parses YAML."""
    yield from WHOLE.items()
    if name.endswith((".yaml", ".yml")):
        yield from _encoded_with(damages_of_values(load(content), YAML))
        return
    if name.endswith(".json"):
        yield "UTF-16", content.decode().encode("utf-16")
        yield "Latin-1", b'{"\xe9": 1}'
        yield from _encoded_with(damages_of_values(json.loads(content), {}))
    elif name.endswith(".jsonl"):
        yield from _of_lines(content)
    elif name.endswith(".safetensors"):
        yield from _of_header(content)
    elif name.endswith("train.py"):
        yield from _of_script(content.decode())
    elif name.endswith(".lock"):
        yield from (
            (kind, value.encode("utf-8", "replace")) for kind, value in VALUES.items() if isinstance(value, str)
        )


def _encoded_with(texts: Iterator[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    yield from ((name, text.encode()) for name, text in texts)


def _of_lines(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Damage the first line and the last, and keep the others."""
    lines = content.splitlines()
    for number in sorted({0, len(lines) - 1}):
        for name, text in damages_of_values(json.loads(lines[number]), {}):
            new = [*lines[:number], text.encode(), *lines[number + 1 :]]
            yield f"line {number + 1}: {name}", b"\n".join(new) + b"\n"
    yield "a line less", b"\n".join(lines[:-1]) + b"\n"
    yield "a line twice", b"\n".join([*lines, lines[-1]]) + b"\n"
    yield "a binary line", b"\n".join([*lines, bytes(range(128, 256))]) + b"\n"


def _of_header(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Damage the header of a safetensors file, with the right length before it."""
    length = int.from_bytes(content[:8], "little")
    for name, text in damages_of_values(json.loads(content[8 : 8 + length]), {}):
        yield name, len(text.encode()).to_bytes(8, "little") + text.encode() + content[8 + length :]
    for name, number in (("no length", 0), ("largest length", 2**64 - 1), ("longer than the file", len(content))):
        yield name, number.to_bytes(8, "little") + content[8:]


def _of_script(text: str) -> Iterator[tuple[str, bytes]]:
    """Damage the header of a script, and each literal of its CONFIG."""
    for found in re.finditer(r'^# (\w[\w-]*) = (".*"|\[)$', text, re.MULTILINE):
        for name, value in TOML.items():
            yield f"header {found[1]}: {name}", (text[: found.start(2)] + value + text[found.end(2) :]).encode()
        yield f"header {found[1]}: removed", (text[: found.start()] + "#" + text[found.end() :]).encode()
    config = next(
        node for node in ast.parse(text).body if isinstance(node, ast.Assign) and "CONFIG" in ast.unparse(node)
    )
    keywords = [node for node in ast.walk(config.value) if isinstance(node, ast.keyword)]
    starts = [0, *itertools.accumulate(len(line) for line in text.encode().splitlines(keepends=True))]
    data = text.encode()
    for each in _some(keywords):
        value = each.value
        assert value.end_lineno is not None
        assert value.end_col_offset is not None
        start, end = starts[value.lineno - 1] + value.col_offset, starts[value.end_lineno - 1] + value.end_col_offset
        for name, other in PYTHON.items():
            yield f"CONFIG {each.arg}, line {value.lineno}: {name}", data[:start] + other.encode() + data[end:]
