"""Turn pydantic's errors for an invalid spec into plain messages: the key, the value and the fix."""

from __future__ import annotations

import difflib
import reprlib
from datetime import date
from typing import Any

from pydantic import ValidationError

from skill_kd.spec.stages import all_kinds


def mistakes(error: ValidationError) -> list[str]:
    """Return one line for each mistake. A union reports every member that it tried; only the deepest error is kept."""
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
        return f"{prefix}unknown kind '{context['tag']}' here; {hint}"
    if kind == "union_tag_not_found":
        return f"{prefix}needs a 'kind'"
    message = _PLAIN.get(kind) or _OF_PATTERN.get(context.get("pattern")) or _lower_first(details["msg"])
    if kind in {"too_long", "too_short"}:
        return prefix + message
    text = f"{prefix}{message}, not {_shown(details['input'])}"
    if kind == "string_type" and isinstance(details["input"], bool | int | float | date):
        text += "; put it in quotes to keep it text"
    return text


def _is_union_member(part: str) -> bool:
    """Return True if ``part`` of a location is a union member, which pydantic adds, and not a key of the spec."""
    return part in _KINDS or part in {"str", "int", "float"} or part.startswith("constrained-") or "[" in part


_PLAIN = {
    "model_type": "should be a mapping",
    "model_attributes_type": "should be a mapping",
    "tuple_type": "should be a list",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "bool_parsing": "should be true or false",
    "bool_type": "should be true or false",
}
_OF_PATTERN = {
    r"^https?://": "should start with http:// or https://",
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": (
        "should have at most 64 letters, digits, dots, dashes and underscores, and start with a letter or digit"
    ),
    r"^(merged|lora|gguf-[a-z0-9_]+)$": "should be merged, lora or a GGUF format such as gguf-q4_k_m",
}
_KINDS = {model.model_fields["kind"].default for model in all_kinds()}


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def _shown(value: object) -> str:
    """Return the value as Python would write it, cut short, since it can be as large as the file."""
    text = _REPR.repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
