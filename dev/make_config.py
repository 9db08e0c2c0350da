"""Generate the dataclasses of a trainer script's CONFIG from the spec, between markers in skill_kd/kd/config.py.

python dev/make_config.py [--check]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import generated
from pydantic.fields import FieldInfo

from skill_kd.spec import Objective, OffPolicyObjective, Section, Spec, Stage
from skill_kd.spec.section import Dtype

ALIASES = {
    get_args(OffPolicyObjective)[0]: "OffPolicyObjective",
    get_args(Objective)[0]: "Objective",
    get_args(Stage)[0]: "Stage",
    Dtype: "Dtype",
}
LINE_LENGTH = 120

READ = '''
    @classmethod
    def read(cls, path: str | Path) -> Config:
        """Read a resolved spec from JSON.

        Raises:
            ValueError: the file is not a JSON object.
        """
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"'{path}' is not a JSON object")
        return cls.of(values)
'''


def classes() -> str:
    """Return the source of every dataclass and alias, each after the ones that it uses."""
    return "\n\n" + "\n".join(_sources(Spec, set())).lstrip() + READ + "\n\n"


def _sources(part: Any, seen: set[Any]) -> Iterator[str]:
    """Yield the source of a section or of a union of sections, after the ones that it uses."""
    part = _bare(part)
    if part in seen or part is Section:
        return
    seen.add(part)
    if isinstance(part, type) and issubclass(part, Section):
        yield from _sources(part.__base__, seen)
        for value in part.model_fields.values():
            yield from _sources(value.annotation, seen)
        yield _class(part)
        return
    for member in get_args(part):
        yield from _sources(member, seen)
    if part in ALIASES:
        yield _alias(ALIASES[part], part)


def _class(section: type[Section]) -> str:
    base = section.__base__
    assert base is not None
    summary = str(section.__doc__).strip().split("\n")[0]
    own = {name: value for name, value in section.model_fields.items() if name in section.__annotations__}
    lines = [f"{name}: {_type(value.annotation)}{_default(value)}" for name, value in own.items()]
    body = "".join(f"    {line}\n" for line in lines)
    return f'\nclass {_name(section)}({_name(base)}):\n    """{summary}"""\n\n{body}'


def _alias(name: str, annotation: Any) -> str:
    """Return the source of an alias, in ruff's format."""
    flat = _spelled(annotation)
    for source in (f"{name}: TypeAlias = {flat}", f"{name}: TypeAlias = (\n    {flat}\n)"):
        if max(map(len, source.split("\n"))) <= LINE_LENGTH:
            return f"\n{source}\n"
    tall = flat.replace(" | ", "\n    | ")
    return f"\n{name}: TypeAlias = (\n    {tall}\n)\n"


def _name(section: type) -> str:
    return "Config" if section is Spec else section.__name__


def _type(annotation: Any) -> str:
    """Return an annotation as Python source. It has no limits, such as ``gt=0``: only the spec checks them."""
    annotation = _bare(annotation)
    return ALIASES.get(annotation) or _spelled(annotation)


def _spelled(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is NoneType:
        return "None"
    if annotation is ...:
        return "..."
    if origin in {Union, UnionType}:
        return " | ".join(map(_type, _folded(arguments)))
    if origin is Literal:
        return f"Literal[{', '.join(map(_quoted, arguments))}]"
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(_type, arguments))}]"
    return _name(annotation)


def _folded(members: Sequence[Any]) -> list[Any]:
    """Return the members of a union. If a smaller union has an alias, it replaces its members."""
    folded = list(members)
    for smaller in ALIASES:
        if set(get_args(smaller)) < set(folded):
            folded = [each for each in folded if each not in get_args(smaller)] + [smaller]
    return folded


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _default(value: FieldInfo) -> str:
    if value.is_required():
        return ""
    if value.default == {}:
        return " = field(default_factory=dict)"
    return f" = {_literal(value.default)}"


def _literal(value: object) -> str:
    if isinstance(value, Section):
        assert value == type(value)(), "a default that is not the section's own"
        return f"{type(value).__name__}()"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' * (len(value) == 1)})"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return f'"{text}"'


if __name__ == "__main__":
    raise SystemExit(generated.main("skill_kd/kd/config.py", "config", classes))
