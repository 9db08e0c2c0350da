"""Generate references/spec.md, the reference of the spec, from the pydantic models.

python dev/make_spec_reference.py > references/spec.md
python dev/make_spec_reference.py --check     # exit code 1 if the file has drifted
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skill_kd.spec import Divergence, Spec

TARGET = Path(__file__).parent.parent / "references" / "spec.md"
COMMAND = "python dev/make_spec_reference.py"

INTRODUCTION = f"""\
<!-- Written by `{COMMAND}`; edit the docstrings in skill_kd/spec/ instead. -->
# The spec

This page lists every key of a spec. A spec is a YAML, JSON or TOML file. `skill-kd validate` names each mistake and its
fix; for an unknown key it suggests the nearest known one. `skill-kd schema` prints the same reference as JSON Schema,
for editors. The [examples](../examples/README.md) are complete specs with reasons.

Units: tokens, seconds, nats. In equations p is the teacher, q the student, y a response, t a position.
`forward_kl` is KL(teacher ‖ student), which covers all modes of the teacher. `reverse_kl` is KL(student ‖ teacher),
which seeks some of them.
"""
OBJECTIVES = "Objectives"
SHARED = "Keys of every divergence"

Schema = dict[str, Any]  # JSON Schema, defined by pydantic


def document() -> str:
    """Return the whole reference."""
    body = "\n".join(_body())
    headings = re.findall(r"^(##+) (.+)$", body, re.MULTILINE)
    contents = [f"{'  ' * (len(level) - 2)}- {link(title)}" for level, title in headings]
    return "\n".join([INTRODUCTION, *contents, "", body])


def _body() -> Iterator[str]:
    spec = Spec.model_json_schema()
    definitions: dict[str, Schema] = spec["$defs"]
    titles = _titles(spec, definitions)
    for value in spec["properties"].values():
        if "$ref" in value:
            value.setdefault("description", definitions[_name(value)]["description"])
    yield from _section("## Top level", spec, spec["properties"], titles)
    for name, title in titles.items():
        if not title.startswith("kind: "):
            yield from _section(f"## {title}", definitions[name], definitions[name]["properties"], titles)

    yield "## stages\n\nA list, in this order. `distill` is required, and each kind occurs at most once.\n"
    for name in _members(spec["properties"]["stages"]["items"]):
        yield from _section(f"### {titles[name]}", definitions[name], _without_kind(definitions[name]), titles)

    yield f"## {OBJECTIVES}\n\nThe `objective` of a stage, by its `kind`. A warm start accepts all except `minillm`.\n"
    shared = Divergence.model_json_schema()
    yield from _section(f"### {SHARED}", shared, shared["properties"], titles)
    for name in _members(definitions["Distill"]["properties"]["objective"]):
        own = _without_kind(definitions[name])
        inherits = shared["properties"].keys() <= own.keys()
        if inherits:
            own = {key: value for key, value in own.items() if value != shared["properties"].get(key)}
        note = (
            f"Has the {link(SHARED, 'keys of every divergence')} too."
            if inherits
            else ""
            if own
            else "No keys besides `kind`."
        )
        yield from _section(f"### {titles[name]}", definitions[name], own, titles, note)


def _titles(part: Schema, definitions: dict[str, Schema], path: str = "") -> dict[str, str]:
    """Return a title per definition: its kind, or its path in a spec."""
    titles: dict[str, str] = {}
    for key, value in part["properties"].items():
        for name in re.findall(r"'\$ref': '#/\$defs/(\w+)'", str(value)):
            kind = definitions[name]["properties"].get("kind")
            titles[name] = f"kind: {kind['const']}" if kind else path + key
            titles |= _titles(definitions[name], definitions, f"{path}{key}.")
    return titles


def _members(union: Schema) -> list[str]:
    return [_name(member) for member in union["oneOf"]]


def _name(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _without_kind(part: Schema) -> dict[str, Schema]:
    return {key: value for key, value in part["properties"].items() if key != "kind"}


def _section(
    heading: str, part: Schema, keys: dict[str, Schema], titles: dict[str, str], note: str = ""
) -> Iterator[str]:
    yield f"{heading}\n\n{markdown(part['description'])}\n"
    if note:
        yield f"{note}\n"
    if keys:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for key, value in keys.items():
            default = f"`{shown(value['default'])}`" if "default" in value else "**required**"
            cells = (f"`{key}`", type_of(value, titles), default, markdown(value["description"]))
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
        yield ""


def type_of(value: Schema, titles: dict[str, str]) -> str:
    """Return the type of a key in words."""
    if "$ref" in value:
        return link(titles[_name(value)])
    if "oneOf" in value:
        return f"one of the {link(OBJECTIVES, 'objectives')}"
    if "anyOf" in value:
        return " or ".join(type_of(member, titles) for member in value["anyOf"])
    if "enum" in value:
        return " or ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if "prefixItems" in value:
        return f"{len(value['prefixItems'])} × {type_of(value['prefixItems'][0], titles)}"
    if "items" in value:
        return f"list of {link('stages') if 'oneOf' in value['items'] else type_of(value['items'], titles)}"
    name = {"boolean": "true or false", "string": "text", "integer": "whole number"}.get(value["type"], value["type"])
    return f"{name}{bounds(value)}"


def bounds(number: Schema) -> str:
    """Return the bounds of a number, such as `` > 0, < 1``."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {number[key]}" for key, sign in signs.items() if key in number)
    return f" {limits}" if limits else ""


def shown(default: object) -> str:
    """Return a default as YAML; of a section, only its ``kind``."""
    if isinstance(default, dict):
        return f"{{kind: {default['kind']}}}" if "kind" in default else "{}"
    if isinstance(default, list):
        return f"[{', '.join(map(shown, default))}]"
    return default if isinstance(default, str) else json.dumps(default)


def markdown(docstring: str) -> str:
    """Turn double backticks of a docstring into single ones for Markdown."""
    return docstring.replace("``", "`").strip()


def link(title: str, text: str = "") -> str:
    """Return a link to a heading by its GitHub anchor."""
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
    return f"[{text or title}](#{anchor})"


def main() -> int:
    """Print the reference, or check the file for drift."""
    parser = argparse.ArgumentParser(description="The reference of the spec, from its models.")
    parser.add_argument("--check", action="store_true", help="compare with references/spec.md instead of printing")
    checking, text = parser.parse_args().check, document()
    if not checking:
        sys.stdout.buffer.write(text.encode())
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"error: references/spec.md has drifted; run: {COMMAND} > references/spec.md\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
