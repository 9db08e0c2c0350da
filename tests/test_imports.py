"""Who may import whom: one table for the package, read against its source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "skill_kd"

# From the ground up; a module imports only from floors below its own. A new module gets its place here.
FLOORS = (
    ("skill_kd", "errors"),
    ("files",),
    ("spec", "modelconfig", "devices", "textstats", "process", "manifest"),
    ("specfile", "backend", "models", "launch"),
    ("hookspecs", "render", "report", "guidance"),
    ("folder", "backends"),
    ("plugins",),
    ("job",),
    ("run", "handoff", "evaluate", "diagnose", "plan", "prove"),
    ("demo",),
    ("console",),
    ("cli",),
    ("__main__", "testing"),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

TORCH = ("prove",)
"""Rooms that need torch; what is outside imports them inside the function that asks for them."""

COPIED = ("kd",)
"""What a generated folder carries as kd/; it knows nothing of the rest."""

TORCH_FREE = ("skill_kd.kd.errors", "skill_kd.kd.files")
"""Modules of kd/ that core may load at once."""

HEAVY = {"torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pandas", "gguf"}


class Import:
    """One import: the absolute dotted names it may stand for, and whether it happens when its module is loaded."""

    def __init__(self, node: ast.Import | ast.ImportFrom, module: tuple[str, ...], eager: bool) -> None:
        self.line, self.eager = node.lineno, eager
        self.relative = isinstance(node, ast.ImportFrom) and node.level > 0
        if isinstance(node, ast.Import):
            self.names = [alias.name for alias in node.names]
            return
        base = module[: len(module) - node.level] if node.level else ()
        source = ".".join([*base, *([node.module] if node.module else [])])
        # `from skill_kd import plugins` imports a module, `from skill_kd import __version__` does not.
        self.names = [f"{source}.{a.name}" if is_module(f"{source}.{a.name}") else source for a in node.names]

    @property
    def rooms(self) -> set[str]:
        """Parts of our package this imports from: `skill_kd.plan.plan_result` is in the room `plan`."""
        ours = [name.split(".") for name in self.names if name.split(".")[0] == "skill_kd"]
        return {parts[1] if len(parts) > 1 else "skill_kd" for parts in ours}

    @property
    def roots(self) -> set[str]:
        return {name.split(".")[0] for name in self.names}


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def dotted(path: Path) -> tuple[str, ...]:
    """The module's name in parts; a package counts its __init__ so that one dot always means one level up."""
    return path.relative_to(ROOT).with_suffix("").parts


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "skill_kd" if parts == ("__init__",) else parts[0]


def imports(path: Path) -> list[Import]:
    return list(_imports(ast.parse(path.read_text(encoding="utf-8")), dotted(path), eager=True))


def _imports(node: ast.AST, module: tuple[str, ...], eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield Import(child, module, eager)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        else:
            yield from _imports(child, module, eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


CORE = [path for path in sources(PACKAGE) if room(path) not in (*COPIED, "templates", "examples")]
LIGHT = [path for path in CORE if room(path) not in TORCH]
TEMPLATES = [*sources(ROOT / "templates"), *ROOT.glob("plugins/*/*/templates/*.py")]
PLUGINS = [path for path in sources(ROOT / "plugins") if "tests" not in path.parts and path not in TEMPLATES]


@pytest.mark.parametrize("path", CORE, ids=named)
def test_core_imports_downwards_only(path: Path) -> None:
    here = room(path)
    assert here in FLOOR, f"give '{here}' its place in FLOORS"
    for each in imports(path):
        for other in each.rooms - {here, *COPIED}:
            assert FLOOR.get(other, 99) < FLOOR[here], (
                f"line {each.line}: {here} imports {other}, which is not below it"
            )


@pytest.mark.parametrize("path", LIGHT, ids=named)
def test_core_loads_nothing_heavy_before_it_is_needed(path: Path) -> None:
    for each in imports(path):
        if each.eager:
            rooms = set() if set(each.names) <= {*TORCH_FREE} else each.rooms
            heavy = each.roots & HEAVY | rooms & {*COPIED, *TORCH}
            assert not heavy, f"line {each.line}: import {', '.join(heavy)} inside the function that needs it"


@pytest.mark.parametrize("path", sources(PACKAGE / "kd" / "losses"), ids=named)
def test_losses_need_the_standard_library_and_torch_alone(path: Path) -> None:
    for each in imports(path):
        if each.relative:
            assert all(name.startswith("skill_kd.kd.losses") for name in each.names), f"line {each.line}: leaves losses"
        else:
            strangers = each.roots - sys.stdlib_module_names - {"torch"}
            assert not strangers, f"line {each.line}: imports {strangers}"


@pytest.mark.parametrize("path", sources(PACKAGE / "kd"), ids=named)
def test_kd_reaches_our_code_by_relative_imports_to_itself(path: Path) -> None:
    for each in imports(path):
        if each.relative:
            assert each.rooms <= set(COPIED), f"line {each.line}: reaches {each.rooms}"
        else:
            assert "skill_kd" not in each.roots, f"line {each.line}: a copy in kd/ has no skill_kd"


@pytest.mark.parametrize("path", TEMPLATES, ids=named)
def test_a_template_imports_of_ours_what_is_copied_beside_it(path: Path) -> None:
    for each in imports(path):
        assert not each.relative, f"line {each.line}: a script is no package"
        assert each.rooms <= set(COPIED), f"line {each.line}: imports {each.names}"


def test_plugins_use_public_names_alone() -> None:
    for path in PLUGINS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "skill_kd":
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                assert not private, f"{named(path)}, line {node.lineno}: imports {private}"


def test_there_is_something_to_read() -> None:
    assert {room(path) for path in CORE} >= {"spec", "render", "plugins", "backends", "testing"}
    assert sources(PACKAGE / "kd" / "losses")
    assert TEMPLATES


def loaded_by(statements: str) -> set[str]:
    code = f"{statements}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_all_of_core_loads_no_torch() -> None:
    modules = [".".join(dotted(path)).removesuffix(".__init__") for path in LIGHT if room(path) != "__main__"]
    assert not loaded_by(f"import {', '.join(modules)}") & HEAVY


def test_rendering_loads_no_torch() -> None:
    ask = """
from skill_kd import plugins
from skill_kd.testing import minimal_spec
backend = plugins.get_backend("transformers")
backend.check(minimal_spec()), backend.render(minimal_spec()), plugins.missing(backend)
"""
    assert not loaded_by(ask) & HEAVY
