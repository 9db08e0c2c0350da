"""Spec files: read YAML, JSON or TOML into a validated spec."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from skill_kd.errors import SpecError
from skill_kd.files import open_input, parse_json
from skill_kd.kd.terminal import visible
from skill_kd.spec import Spec
from skill_kd.spec.mistakes import mistakes

MAX_BYTES = 64 * 1024
"""Maximum size of a spec file. A much larger file than a few KiB is probably data, and YAML is slow to parse."""

MAX_BITS = 64
"""Maximum size of a whole number."""

MAX_ALIASES = 16
"""Maximum number of YAML aliases. Nested aliases multiply: a few lines can expand to more nodes than fit in memory."""


# Possessive, and only from the start of a word: otherwise the search itself is quadratic in the length of a word.
_LONG_KEY = re.compile(r"""(?<![\w-])[\w-]++["']?(?:[ \t]*+\.[ \t]*+["']?[\w-]++["']?){16}""", re.ASCII)
"""A TOML key of more than 16 parts. A spec needs three, and tomllib's memory is quadratic in their number."""


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses many aliases, and duplicate keys. YAML would silently keep the last one."""

    aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                raise yaml.composer.ComposerError(None, None, f"more than {MAX_ALIASES} aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # the safe loader refuses it
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_values(path: Path) -> Any:
    """Return the parsed content of a spec file, not yet validated.

    Raises:
        SpecError: the file is missing, unreadable, too large or malformed; the message names the line.
    """
    parse = _PARSERS.get(path.suffix.lower())
    if parse is None:
        raise SpecError(f"spec '{path}' has the suffix '{path.suffix}'; use .yaml, .json or .toml")
    text = _read_text(path)
    try:
        return parse(text)
    except Exception as error:  # PyYAML raises IndexError, KeyError or AttributeError on some scalars
        raise SpecError(f"spec '{path}' is malformed: {_one_line(error)}") from error


def read_value(text: str, where: str) -> Any:
    """Parse one value as in a YAML spec.

    Raises:
        SpecError: the text is malformed; the message starts with ``where``.
    """
    try:
        return _without_huge_numbers(_parse_yaml(text))
    except Exception as error:  # as above
        raise SpecError(f"{where}: the value is malformed: {_one_line(error)}") from error


def _read_text(path: Path) -> str:
    try:
        with open_input(path) as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise SpecError(f"spec '{path}' is larger than {MAX_BYTES // 1024} KiB; is it a data file?")
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(f"cannot read spec '{path}': not UTF-8 text") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"cannot read spec '{path}': {getattr(error, 'strerror', None) or error}") from error


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: the text is malformed, nested too deeply, or has a key of more than 16 parts.
    """
    if found := _LONG_KEY.search(text):
        line = text.count("\n", 0, found.start()) + 1
        raise ValueError(f"line {line}: a key or value of more than 16 parts joined by dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


_PARSERS: dict[str, Callable[[str], Any]] = {
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": parse_json,
    ".toml": parse_toml,
}


def load_spec(path: Path, **overrides: object) -> Spec:
    """Read and validate a spec; ``overrides`` replace top-level keys.

    Raises:
        SpecError: the file is unreadable or invalid; the message names each field, its value and the fix.
    """
    values = read_values(path)
    if not isinstance(values, dict):
        found = "is empty" if values is None else f"contains {type(values).__name__}, not a mapping"
        raise SpecError(f"spec '{path}' {found}; start with 'name: …'")
    return parse_spec({**values, **overrides}, source=str(path))


def parse_spec(values: object, source: str = "spec") -> Spec:
    """Validate ``values``.

    Raises:
        SpecError: the values are invalid; the message has one line for each mistake. Its hidden characters are escapes.
    """
    try:
        return Spec.model_validate(_without_huge_numbers(values))
    except ValidationError as error:
        raise SpecError(visible(f"{source}: " + "\n  ".join(mistakes(error)))) from error
    except ValueError as error:
        raise SpecError(visible(f"{source}: {error}")) from error


def _without_huge_numbers(values: Any) -> Any:
    """Return the values. Refuse whole numbers beyond 64 bits: Python could neither print nor calculate with some.

    Raises:
        ValueError: there is one.
    """
    left, seen = [("", values)], set[int]()
    while left:
        place, each = left.pop()
        if isinstance(each, int) and each.bit_length() > MAX_BITS:
            bits = f"a whole number has {each.bit_length()} bits, and at most {MAX_BITS} are possible"
            raise ValueError(f"{place}: {bits}" if place else bits)
        if isinstance(each, dict | list | tuple | set) and id(each) not in seen:  # YAML can put a list into itself
            seen.add(id(each))
            if isinstance(each, dict):
                left += [(place, key) for key in each]
                left += [(f"{place}.{str(key)[:99]}".lstrip("."), value) for key, value in each.items()]
            else:
                left += [(place, value) for value in each]
    return values


def _one_line(error: Exception) -> str:
    # Python's message on a number of thousands of digits ends with advice for programmers.
    text = " ".join(str(error).partition("; use sys.")[0].split()) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
