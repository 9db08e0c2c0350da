"""Spec files: read YAML, JSON or TOML, and say in plain words what is wrong with one."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from skill_kd.errors import SpecError
from skill_kd.spec import Spec, all_kinds


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, refusing a key given twice: YAML would let the last one win without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_values(path: Path) -> Any:
    """Return what a spec file holds, not yet validated.

    Raises:
        SpecError: the file is missing, unreadable or malformed; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError(f"cannot read spec '{path}': {reason}") from error
    try:
        match path.suffix.lower():
            case ".yaml" | ".yml":
                return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 -- a SafeLoader
            case ".json":
                return json.loads(text)
            case ".toml":
                return tomllib.loads(text)
            case suffix:
                raise SpecError(f"spec '{path}' ends in '{suffix}'; use .yaml, .json or .toml")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError(f"spec '{path}' is malformed: {_one_line(error)}") from error


def load_spec(path: Path, **overrides: object) -> Spec:
    """Read and validate a spec; ``overrides`` replace top-level keys.

    Raises:
        SpecError: naming each field, its value and the mend.
    """
    values = read_values(path)
    if not isinstance(values, dict):
        raise SpecError(f"spec '{path}' holds {type(values).__name__}, not a mapping; start with 'name: …'")
    return parse_spec({**values, **overrides}, source=str(path))


def parse_spec(values: object, source: str = "spec") -> Spec:
    """Validate ``values`` and turn pydantic's report into one plain message."""
    try:
        return Spec.model_validate(values)
    except ValidationError as error:
        raise SpecError(f"{source}: " + "\n  ".join(_lines(error))) from error


def _lines(error: ValidationError) -> list[str]:
    """One line a mistake. A union reports each member it tried: the deepest report is the one that was meant."""
    reports: dict[str, str] = {}
    for details in error.errors(include_url=False):
        where = ".".join(str(part) for part in details["loc"] if not _is_union_member(str(part)))
        reports.setdefault(where, _describe(details, f"{where}: " if where else ""))
    return [line for where, line in reports.items() if not any(other.startswith(where + ".") for other in reports)]


def _describe(details: Any, prefix: str) -> str:
    kind, context = details["type"], details.get("ctx", {})
    if kind == "refused":
        return prefix + str(details["msg"])
    if kind == "missing":
        return f"{prefix}is missing"
    if kind == "union_tag_invalid":
        known = [tag.strip("' ") for tag in str(context["expected_tags"]).split(",")]
        near = difflib.get_close_matches(str(context["tag"]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(known)
        return f"{prefix}unknown kind '{context['tag']}'; {hint}"
    if kind == "union_tag_not_found":
        return f"{prefix}needs a 'kind'"
    return f"{prefix}{_lower_first(details['msg'])}, not {_shown(details['input'])}"


def _is_union_member(part: str) -> bool:
    """Pydantic names the chosen union member in a location; people wrote no such key."""
    return part in _KINDS or part in {"str", "int", "float"} or "[" in part


_KINDS = {model.model_fields["kind"].default for model in all_kinds()}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
