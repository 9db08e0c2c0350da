"""Turn a template and a spec into ``train.py``: fill one marker, point imports at ``kd``, add a stamp.

The script gets the spec as literals of kd.config's frozen dataclasses, escaped to ASCII, so what you read is what runs.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias, TypeGuard, Union

from skill_kd import __version__
from skill_kd import spec as sections
from skill_kd.backend import Backend
from skill_kd.errors import MissingRequirementError, SkillKDError, SpecError, UsageError
from skill_kd.files import checked
from skill_kd.spec import Section, Spec, all_kinds
from skill_kd.spec.file import parse_toml

MARKER = "# kd: config"
"""The comment on the one template line that rendering replaces."""

Value: TypeAlias = Union[  # noqa: UP007 -- forward references
    bool, int, float, str, list["Value"], tuple["Value", ...], Mapping[str, "Value"], Section, None
]

_PACKAGE = Path(__file__).parent
_LINE_LENGTH = 120
_CONFIG = "skill_kd.kd.config"
_SECTIONS = {name for name in sections.__all__ if isinstance(vars(sections)[name], type)} - {"Spec"}
_KINDS = {section.__name__: section.model_fields["kind"].default for section in all_kinds()}
_OUR_IMPORT = re.compile(r"^(\s*(?:from|import)\s+)skill_kd\.kd(?=[.\s])")
_HEADER_START = re.compile(r"^# /// script$", re.MULTILINE)  # PEP 723
_SPEC_LINE = re.compile(r'^# spec = "[0-9a-f]{64}"\n', re.MULTILINE)
_BODY_LINE = re.compile(r'^# body = "[0-9a-f]{64}"\n', re.MULTILINE)


@dataclass(frozen=True)
class Stamp:
    """The origin of a script, from its header. Hashes are hexadecimal SHA-256."""

    version: str
    """Version of skill-kd."""
    backend: str
    backend_version: str
    spec: str
    """Hash of the spec."""
    template: str
    """Hash of the template."""
    kd: str
    """Hash of the files in the ``kd/`` next to the script."""
    body: str
    """Hash of the script without this line; it differs if the user edited the script."""


def templates_folder() -> Path:
    """Return the folder of the built-in templates, in the wheel, an editable checkout or a copied skill folder."""
    return _shipped("templates")


def examples_folder() -> Path:
    """Return the folder of the example specs."""
    return _shipped("examples")


def _shipped(name: str) -> Path:
    # Try the wheel's folder first: next to an installed package, `templates` may belong to another package.
    for folder in (_PACKAGE / name, _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise MissingRequirementError(f"folder '{name}' is missing next to {_PACKAGE}; install skill-kd again")


# --- rendering --------------------------------------------------------------------------------------------------------


def render(template: Path, spec: Spec, backend: Backend) -> str:
    """Return the script of ``spec`` from the file ``template``.

    Raises:
        SkillKDError: the template does not have exactly one marked ``CONFIG = …`` line, or imports more of skill_kd
            than ``skill_kd.kd``.
    """
    return fill(template.read_text(encoding="utf-8"), spec, backend, source=template.name)


def fill(template: str, spec: Spec, backend: Backend, source: str = "template") -> str:
    """Render the text of a template, as ``render`` does; ``source`` names it in errors."""
    tree, lines = ast.parse(template), template.split("\n")
    marked = _marked_line(template, tree, source)
    _import_from_copy(tree, lines)
    lines[marked - 1] = config_literal(spec)
    _import_sections(tree, lines, lines[marked - 1], source)
    script = "\n".join(lines)
    _refuse_skill_kd(script, source)
    return _header(spec, backend, template, script) + script


def fill_standalone(template: str, literal: str, source: str) -> str:
    """Return a template whose ``CONFIG`` has its own class, with ``literal`` at its marked line, and no header."""
    tree, lines = ast.parse(template), template.split("\n")
    _import_from_copy(tree, lines)
    lines[_marked_line(template, tree, source) - 1] = literal
    script = "\n".join(lines)
    _refuse_skill_kd(script, source)
    return script


def _import_from_copy(tree: ast.Module, lines: list[str]) -> None:
    """Change imports of ``skill_kd.kd`` to ``kd``, the copy next to the script."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            lines[node.lineno - 1] = _OUR_IMPORT.sub(r"\1kd", lines[node.lineno - 1])


def _refuse_skill_kd(script: str, source: str) -> None:
    for token in _tokens(script):
        if token.type == tokenize.NAME and token.string == "skill_kd":
            raise SkillKDError(
                f"{source}: '{token.line.strip()}' needs skill_kd, which is missing where the script runs; "
                "import only from skill_kd.kd"
            )


def _import_sections(tree: ast.Module, lines: list[str], literal: str, source: str) -> None:
    """Replace the import of ``Config`` by an import of all sections in ``literal``, formatted as ruff does."""
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == _CONFIG]
    found = [node for node in imports if "Config" in {alias.name for alias in node.names}]
    if not found:
        raise SkillKDError(f"{source}: there is no line 'from {_CONFIG} import Config'; add it")
    if taken := sorted(_bound(tree) & _SECTIONS):
        raise SkillKDError(
            f"{source}: binds {', '.join(taken)}, which CONFIG needs for sections of the spec; use another name"
        )
    called = {ast.unparse(node.func) for node in ast.walk(ast.parse(literal)) if isinstance(node, ast.Call)}
    names = sorted(called | {ast.unparse(alias) for alias in found[0].names}, key=_place_in_import)
    start, end = found[0].lineno - 1, found[0].end_lineno or found[0].lineno
    flat = f"from kd.config import {', '.join(names)}"
    tall = "\n".join(["from kd.config import (", *(f"    {name}," for name in names), ")"])
    lines[start:end] = [flat if len(flat) <= _LINE_LENGTH else tall]


def _bound(tree: ast.Module) -> set[str]:
    """Return the names that the template binds at its top level, without those from kd.config."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", None) != _CONFIG:
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


def _place_in_import(name: str) -> tuple[int, str]:
    """Return ruff's sort key of a name: constants, then classes, then the rest."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name.lower()


def _marked_line(template: str, tree: ast.Module, source: str) -> int:
    """Return the number of the marked line. The tokenizer ignores strings that look like the comment."""
    marks = [token.start[0] for token in _tokens(template) if token.type == tokenize.COMMENT and token.string == MARKER]
    statements = [node.lineno for node in tree.body if _assigns_config(node) and node.end_lineno == node.lineno]
    if len(marks) != 1 or marks[0] not in statements:
        raise SkillKDError(f"{source}: expected exactly one line 'CONFIG = …  {MARKER}', found {len(marks)}")
    return marks[0]


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(source).readline)


def config_literal(spec: Spec) -> str:
    """Return ``CONFIG = Config(…)`` for ``spec``, formatted as ruff does."""
    parts = "\n".join(_laid_out(f"{key}=", value, 4) for key, value in _keywords(spec))
    return f"CONFIG = Config(  {MARKER}\n{parts}\n)"


def _laid_out(prefix: str, value: Value, indent: int) -> str:
    """Return ``value`` on one line if it fits, else one part per line."""
    pad = " " * indent
    flat = f"{pad}{prefix}{literal(value)},"
    if len(flat) <= _LINE_LENGTH or not value or not isinstance(value, Section | Mapping | tuple):
        return flat
    if isinstance(value, Section):
        ends, parts = f"{_name(value)}()", [_laid_out(f"{key}=", part, indent + 4) for key, part in _keywords(value)]
    elif isinstance(value, Mapping):
        ends, parts = "{}", [_laid_out(f"{_quoted(key)}: ", part, indent + 4) for key, part in value.items()]
    else:
        ends, parts = "()", [_laid_out("", part, indent + 4) for part in value]
    return "\n".join([f"{pad}{prefix}{ends[:-1]}", *parts, f"{pad}{ends[-1]},"])


def literal(value: Value) -> str:
    """Return ``value`` as Python source on one line; a section becomes a call of its class.

    Raises:
        SpecError: a number is inf or nan.
    """
    if isinstance(value, Section):
        return f"{_name(value)}({', '.join(f'{key}={literal(part)}' for key, part in _keywords(value))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_quoted(key)}: {literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(literal, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"{value} is not a finite number; use a finite one")
        return repr(value).replace("e+", "e")
    return repr(value)


def _keywords(section: Section) -> list[tuple[str, Value]]:
    """Return keys and values without ``kind``, which the class name implies."""
    return [(key, value) for key, value in section if key != "kind"]


def _name(section: Section) -> str:
    return type(section).__name__


def _quoted(text: str) -> str:
    """Return an ASCII string literal, so that invisible and look-alike characters appear as escapes."""
    quote = "'" if text.count('"') > text.count("'") else '"'
    escaped = text.encode("unicode_escape").decode("ascii").replace(quote, "\\" + quote)
    return f"{quote}{escaped}{quote}"


# --- the header -------------------------------------------------------------------------------------------------------


def _header(spec: Spec, backend: Backend, template: str, script: str) -> str:
    """Return the PEP 723 block: dependencies, and the stamp as its tool table."""
    stamp = Stamp(
        version=__version__,
        backend=backend.name,
        backend_version=backend.version,
        spec=spec.hash,
        template=_hash(template.encode()),
        kd=files_hash(kd_files()),
        body="",
    )
    # A JSON string in ASCII is also a TOML string.
    dependencies = [f"    {json.dumps(requirement)}," for requirement in backend.requirements]
    stamped = [f"{key} = {json.dumps(value)}" for key, value in asdict(stamp).items() if key != "body"]
    block = ['requires-python = ">=3.11"', "dependencies = [", *dependencies, "]", "", "[tool.skill-kd]", *stamped]
    opening = "# /// script\n" + "".join(f"# {line}".rstrip() + "\n" for line in block)
    closing = "# ///\n\n"
    return f'{opening}# body = "{_hash((opening + closing + script).encode())}"\n{closing}'


def read_stamp(text: str, source: str = "train.py") -> Stamp:
    """Return the stamp of a rendered script. ``source`` names it in errors.

    Raises:
        UsageError: there is no stamp, or it is incomplete.
    """
    tool = _read_header(text, source).get("tool")
    table = tool.get("skill-kd") if isinstance(tool, dict) else None
    try:
        return checked(table, Stamp)
    except ValueError as error:
        raise UsageError(
            f"the header of {source} has no complete [tool.skill-kd] table: {error}; generate it again"
        ) from error


def read_requirements(text: str) -> list[str]:
    """Return the PEP 723 dependencies of a rendered script."""
    dependencies = _read_header(text, "train.py").get("dependencies")
    return [str(each) for each in dependencies] if isinstance(dependencies, list) else []


def _read_header(text: str, source: str) -> dict[str, object]:
    found = _HEADER_START.search(text)
    lines, end, _ = text[found.end() if found else len(text) :].partition("\n# ///\n")
    header = lines.split("\n")[1:]
    if not end or not header or any(line != "#" and not line.startswith("# ") for line in header):
        raise UsageError(f"{source} has no '# /// script' header; write it with 'skill-kd generate'")
    try:
        return parse_toml("".join(f"{line[2:]}\n" for line in header))
    except ValueError as error:
        raise UsageError(f"the header of {source} is malformed: {error}; generate it again") from error


def is_edited(text: str) -> bool:
    """Return True if the user edited the script since it was rendered, or if it has no stamp."""
    try:
        stamp = read_stamp(text)
    except UsageError:
        return True
    return _hash(_BODY_LINE.sub("", text, count=1).encode()) != stamp.body


def read_config(text: str, source: str = "train.py") -> dict[str, object]:
    """Return the values in a script's ``CONFIG``, not yet validated, without running the script.

    Raises:
        UsageError: there is no such statement, or it contains more than literals.
    """
    try:
        statements = [node for node in ast.parse(text).body if _assigns_config(node)]
        if len(statements) != 1:
            raise ValueError(f"{len(statements)} statements 'CONFIG = …', expected 1")
        return _config_values(statements[0].value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:  # those of ast
        raise UsageError(f"cannot read CONFIG in {source}: {error}; use only literals there") from error


def with_last_updates(text: str, updates: int, spec_hash: str) -> str:
    """Return a script with another number of ``updates`` in its last stage, and with the stamp of the new spec.

    An edited script stays edited; its other text is unchanged.

    Raises:
        UsageError: ``CONFIG`` does not write that number.
    """
    config = next((node.value for node in ast.parse(text).body if _assigns_config(node)), None)
    stages = _argument(config, "stages")
    stage = stages.elts[-1] if isinstance(stages, ast.Tuple) and stages.elts else None
    number = _argument(stage, "updates")
    if not isinstance(number, ast.Constant) or number.end_col_offset is None:
        raise UsageError("CONFIG in the script does not write the updates of its last stage; put the number there")
    edited, lines = is_edited(text), text.encode().split(b"\n")
    line = lines[number.lineno - 1]
    lines[number.lineno - 1] = line[: number.col_offset] + str(updates).encode() + line[number.end_col_offset :]
    changed = _SPEC_LINE.sub(f'# spec = "{spec_hash}"\n', b"\n".join(lines).decode(), count=1)
    if edited:
        return changed
    body = _hash(_BODY_LINE.sub("", changed, count=1).encode())
    return _BODY_LINE.sub(f'# body = "{body}"\n', changed, count=1)


def _argument(call: ast.expr | None, name: str) -> ast.expr | None:
    """Return the value of a keyword argument, or None if ``call`` is not a call that has it."""
    keywords = call.keywords if isinstance(call, ast.Call) else []
    return next((each.value for each in keywords if each.arg == name), None)


def _assigns_config(node: ast.stmt) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CONFIG"


def _config_values(call: ast.expr) -> dict[str, object]:
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Config" or call.args:
        raise ValueError(f"line {call.lineno}: not Config(key=value, …)")
    return _section_values(call)


def _section_values(call: ast.Call) -> dict[str, object]:
    """Return the values of one section. In scripts of version 0.1 every section is a ``Config`` with its ``kind``."""
    name = ast.unparse(call.func)
    if name not in {"Config", *_SECTIONS} or call.args:
        raise ValueError(f"line {call.lineno}: not a section of a spec, such as Config(key=value, …)")
    kind = {"kind": _KINDS[name]} if name in _KINDS else {}
    return kind | {str(each.arg): _evaluated(each.value) for each in call.keywords}


def _evaluated(node: ast.expr) -> object:
    if isinstance(node, ast.Call):
        return _section_values(node)
    if isinstance(node, ast.Tuple):
        return [_evaluated(part) for part in node.elts]
    return ast.literal_eval(node)


# --- kd/ --------------------------------------------------------------------------------------------------------------


def kd_files() -> dict[str, bytes]:
    """Return the files of ``kd/``, by path inside it: ``skill_kd/kd``, byte for byte."""
    source = _PACKAGE / "kd"
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in sorted(source.rglob("*.py"))}


def files_hash(files: dict[str, bytes]) -> str:
    """Return one hash over names and contents."""
    return _hash("".join(f"{_hash(content)} {name}\n" for name, content in sorted(files.items())).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
