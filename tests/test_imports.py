"""Allowed imports: one table for the package, compared with its source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "skill_kd"

# From the ground up: a part imports only from floors below its own. A new part gets its place here.
FLOORS = {
    "skill_kd": (
        ("__init__", "errors"),
        ("kd",),
        ("files",),
        ("spec",),
        ("backend",),
        ("textstats", "hookspecs", "guidance", "report", "render"),
        ("backends",),
        ("plugins",),
        ("jobs",),
        ("handoff", "evaluate", "diagnose", "plan", "prove"),
        ("demo",),
        ("console",),
        ("cli",),
        ("__main__", "testing"),
    ),
    "skill_kd.kd": (
        ("__init__", "errors", "config", "kinds", "seeds", "addresses", "answers", "limits", "signals", "terminal"),
        ("files", "reporting", "children"),
        ("endpoint",),
        ("losses",),
        ("dataset",),
        ("model",),
        ("rollouts",),
        ("teacher",),
        ("train",),
    ),
    "skill_kd.diagnose": (("formats",), ("changes",), ("report",), ("diagnosis",), ("__init__",)),
}

NO_TORCH = (
    "config",
    "kinds",
    "addresses",
    "answers",
    "children",
    "errors",
    "signals",
    "files",
    "reporting",
    "terminal",
    "endpoint",
    "dataset.formats",
    "dataset.reading",
    "model.adapter_folder",
    "model.context",
    "model.families",
    "model.layers",
    "model.safe_files",
)
"""The part of kd that the rest of the package may import when a module is loaded."""

TORCH = ("prove",)
"""Packages that need torch. Others import them inside the function that needs them."""

HTTP = {"httpx", "tenacity"}
HEAVY = {*HTTP, "torch", "transformers", "accelerate", "datasets", "peft", "numpy", "pandas", "gguf"}

IGNORED = {"runs", "data", "models", "logs", "checkpoints", "outputs", "build", "dist", "lib", "env"}
"""Folder names that .gitignore files and rsync rules of users drop."""


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

    def parts(self, package: str) -> set[str]:
        """Return the parts of ``package`` that this imports from: `skill_kd.plan.setup` is in the part `plan`."""
        inside = [name.removeprefix(package) for name in self.names if f"{name}.".startswith(f"{package}.")]
        return {name.split(".")[1] if name else "__init__" for name in inside}

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


def part(path: Path, package: str = "skill_kd") -> str:
    """Return the part of ``package`` that a file belongs to."""
    return path.relative_to(ROOT.joinpath(*package.split("."))).with_suffix("").parts[0]


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


SOURCE = [path for path in sources(PACKAGE) if part(path) not in ("templates", "examples")]
CORE = [path for path in SOURCE if part(path) != "kd"]
LIGHT = [path for path in CORE if part(path) not in TORCH]
LOSSES = sources(PACKAGE / "kd" / "losses")
TEMPLATES = [*sources(ROOT / "templates"), *sorted(ROOT.glob("plugins/*/*/templates/*.py"))]
PLUGINS = [path for path in sources(ROOT / "plugins") if "tests" not in path.parts and path not in TEMPLATES]


def upward(package: str) -> Iterator[str]:
    """Yield the imports inside ``package`` that do not go down."""
    floors = {name: number for number, names in enumerate(FLOORS[package]) for name in names}
    for path in sources(ROOT.joinpath(*package.split("."))):
        here = part(path, package)
        if here in ("templates", "examples"):
            continue
        if here not in floors:
            yield f"{named(path)}: give '{here}' its place in FLOORS"
            continue
        for each in imports(path):
            for other in sorted(each.parts(package) - {here, "__init__"}):
                if floors.get(other, 99) >= floors[here]:
                    yield f"{named(path)}, line {each.line}: {here} imports {other}, which is not below it"


def test_imports_go_down_only() -> None:
    failures = [failure for package in FLOORS for failure in upward(package)]
    assert not failures, "\n".join(failures)


def test_every_floor_is_the_place_of_a_file_or_a_folder() -> None:
    lost = []
    for package, floors in FLOORS.items():
        there = {part(path, package) for path in sources(ROOT.joinpath(*package.split(".")))}
        lost += [f"{package}: {name}" for names in floors for name in names if name not in there]
    assert not lost, "\n".join(lost)


def test_core_loads_nothing_heavy_before_it_is_needed() -> None:
    failures = []
    for path in LIGHT:
        for each in (each for each in imports(path) if each.eager):
            heavy = each.roots & HEAVY | each.parts("skill_kd") & set(TORCH)
            heavy |= {name for name in each.names if name.startswith("skill_kd.kd.") and not without_torch(name)}
            if heavy:
                needs = ", ".join(sorted(heavy))
                failures.append(f"{named(path)}, line {each.line}: import {needs} inside the function that needs it")
    assert not failures, "\n".join(failures)


def without_torch(name: str) -> bool:
    return any(name == f"skill_kd.kd.{free}" or name.startswith(f"skill_kd.kd.{free}.") for free in NO_TORCH)


def strangers(paths: list[Path], package: str, known: set[str]) -> list[str]:
    """Return what files import besides ``package``, which they reach by relative imports, and the ``known`` roots."""
    failures = []
    for path in paths:
        for each in imports(path):
            if each.relative:
                outside = [name for name in each.names if not f"{name}.".startswith(f"{package}.")]
            else:
                outside = sorted(each.roots - known)
            failures += [f"{named(path)}, line {each.line}: imports {name}" for name in outside]
    return failures


def test_losses_need_the_standard_library_and_torch_alone() -> None:
    failures = strangers(LOSSES, "skill_kd.kd.losses", {*sys.stdlib_module_names, "torch"})
    assert not failures, "\n".join(failures)


def test_kd_needs_itself_and_the_train_dependencies_alone() -> None:
    train = {"torch", "transformers", "accelerate", "datasets", "peft", "safetensors", "tqdm", "httpx", "tenacity"}
    others = {"huggingface_hub", "pyarrow", "deepspeed"}
    """The first comes with transformers, the second with datasets. The third is asked for by name where needed."""
    known = {*sys.stdlib_module_names, *train, *others}
    failures = strangers(sources(PACKAGE / "kd"), "skill_kd.kd", known)
    assert not failures, "\n".join(failures)


def test_only_the_endpoint_imports_the_http_client() -> None:
    readers = [*SOURCE, *TEMPLATES, *PLUGINS]
    users = {(named(path), each.eager) for path in readers for each in imports(path) if each.roots & HTTP}
    allowed = {(f"skill_kd/kd/endpoint/{name}.py", False) for name in ("exchange", "retries")}
    assert users == allowed  # inside the functions that need it


def test_the_endpoint_loads_no_torch_and_no_http_client() -> None:
    files = sources(PACKAGE / "kd" / "endpoint")
    names = {name for path in files for each in imports(path) if each.relative for name in each.names}
    below = {f"skill_kd.kd.{name}" for name in ("addresses", "answers", "errors", "files", "signals", "terminal")}
    assert {name for name in names if not name.startswith("skill_kd.kd.endpoint.")} == below
    assert not loaded_by("import skill_kd.kd.endpoint") & HEAVY


def test_a_template_imports_of_ours_only_kd() -> None:
    failures = []
    for path in TEMPLATES:
        for each in imports(path):
            if each.relative or not each.parts("skill_kd") <= {"kd"}:
                failures.append(f"{named(path)}, line {each.line}: imports {', '.join(each.names)}")
    assert not failures, "\n".join(failures)


def test_no_module_imports_a_private_name() -> None:
    failures = []
    for path in (*SOURCE, *PLUGINS, *TEMPLATES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("skill_kd")):
                private = [name for alias in node.names if re.match("_[a-z]", name := alias.name)]
                failures += [f"{named(path)}, line {node.lineno}: imports {name}" for name in private]
    assert not failures, "\n".join(failures)


def test_testing_needs_the_public_contract_alone() -> None:
    used = {name for each in imports(PACKAGE / "testing.py") for name in each.parts("skill_kd")}
    assert used <= {"__init__", "backend", "errors", "hookspecs", "render", "spec"}


def test_there_is_something_to_read() -> None:
    assert {part(path) for path in CORE} >= {"spec", "render", "plugins", "backends", "testing"}
    assert LOSSES
    assert TEMPLATES
    assert PLUGINS


def test_no_folder_of_source_code_has_a_name_that_users_ignore() -> None:
    folders = {folder for path in sources(PACKAGE) for folder in path.relative_to(PACKAGE).parts[:-1]}
    assert folders
    assert not folders & IGNORED


def loaded_by(statements: str) -> set[str]:
    code = f"{statements}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_all_of_core_loads_no_torch() -> None:
    modules = [".".join(dotted(path)).removesuffix(".__init__") for path in LIGHT if part(path) != "__main__"]
    modules += [f"skill_kd.kd.{name}" for name in NO_TORCH]
    assert not loaded_by(f"import {', '.join(modules)}") & HEAVY


def test_rendering_loads_no_torch() -> None:
    ask = """
from skill_kd import plugins
from skill_kd.testing import minimal_spec
backend = plugins.get_backend("transformers")
backend.check(minimal_spec()), backend.render(minimal_spec()), plugins.missing(backend)
"""
    assert not loaded_by(ask) & HEAVY
