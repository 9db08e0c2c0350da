"""Test kit for authors of backends: the contract as assertions, and a fake backend.

A plugin's test only needs to call ``check_backend(YourBackend)``.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from skill_kd import __version__
from skill_kd.backend import Backend
from skill_kd.hookspecs import hookimpl
from skill_kd.render import fill, is_edited, read_config, read_requirements, read_stamp
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec

_HOSTILE = '"""; import os; """ # kd: config {{x}} %s \\n \u202e'


def minimal_spec(backend: str = "transformers") -> Spec:
    """Return the shortest valid spec; its models do not exist."""
    return parse_spec(
        {
            "name": "minimal",
            "backend": backend,
            "teacher": {"model": "organization/teacher"},
            "student": {"model": "organization/student"},
            "data": {"train": "prompts.jsonl"},
        }
    )


def check_backend(backend_class: type[Backend], spec: Spec | None = None) -> None:
    """Assert that a backend fulfills the contract of ``skill_kd.backend.Backend``.

    Args:
        backend_class: a class at module level, because a new process imports it too.
        spec: a spec that the backend accepts; by default the shortest valid one.

    Raises:
        AssertionError: the backend breaks the contract; the message says how.
    """
    backend = backend_class()
    spec = spec if spec is not None else minimal_spec(backend.name)
    _check_names(backend)
    _check_check(backend, spec)
    _check_script(backend, spec)
    _check_values_stay_data(backend, spec)
    _check_command(backend, spec)
    _check_imports(backend_class, spec)


def _check_names(backend: Backend) -> None:
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", backend.name), (
        f"name {backend.name!r}: use lower-case letters and dashes"
    )
    assert _parses(Version, backend.version), f"version {backend.version!r} is not a PEP 440 version"
    assert isinstance(backend.requirements, tuple), "requirements must be a tuple of PEP 508 strings"
    for requirement in backend.requirements:
        assert _parses(Requirement, requirement), f"requirement {requirement!r} is not a PEP 508 requirement"


def _parses(kind: type[Version] | type[Requirement], text: str) -> bool:
    try:
        return text.splitlines() == [str(text)] and bool(str(kind(text)))
    except ValueError:
        return False


def _check_check(backend: Backend, spec: Spec) -> None:
    before = spec.hash
    problems = backend.check(spec)
    assert isinstance(problems, list), f"check returned {type(problems).__name__}, not a list"
    assert problems == [], f"check refuses the spec of this test; pass a spec that it accepts: {problems}"
    assert backend.check(spec) == problems, "check returned something else the second time"
    assert spec.hash == before, "check changed the spec"


def _check_script(backend: Backend, spec: Spec) -> None:
    text = backend.render(spec)
    assert backend.render(spec) == text, "render returned another text the second time"
    for name in _imported(text):
        assert name.split(".")[0] != "skill_kd", f"the script imports {name}, but where it runs there is only kd/"
    assert "# [tool.skill-kd]\n" in text, "the script has no header; create it with skill_kd.render.render"
    stamp = read_stamp(text)
    found = (stamp.backend, stamp.backend_version, stamp.spec, stamp.version)
    assert found == (backend.name, backend.version, spec.hash, __version__), f"the stamp is wrong: {stamp}"
    assert not is_edited(text), "the script was changed after rendering; put all changes into the template"
    assert read_requirements(text) == list(backend.requirements), "the header's dependencies differ from `requirements`"


def _check_values_stay_data(backend: Backend, spec: Spec) -> None:
    hostile = spec.model_copy(update={"data": spec.data.model_copy(update={"train": _HOSTILE})})
    text = backend.render(hostile)
    assert parse_spec(read_config(text)) == hostile, "CONFIG does not contain the spec's values"
    assert _imported(text) == _imported(backend.render(spec)), "a value of the spec became code"


def _check_command(backend: Backend, spec: Spec) -> None:
    script = Path("runs") / "a name with spaces" / "train.py"
    command = backend.command(script, spec)
    assert isinstance(command, list), f"command returned {type(command).__name__}, not a list of arguments"
    assert all(isinstance(part, str) for part in command), f"command {command} contains more than strings"
    assert shutil.which(command[0]), f"command starts with {command[0]!r}, which cannot be run"
    assert str(script) in command, f"command {command} does not contain the script as a separate argument"


_CALL_WITHOUT_TORCH = """\
import importlib, sys
from pathlib import Path
from skill_kd.spec import Spec

spec = Spec.model_validate_json(sys.stdin.read())
backend = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])()
backend.check(spec), backend.render(spec), backend.command(Path("train.py"), spec)
print(*sorted({"torch", "transformers", "numpy"} & set(sys.modules)))
"""


def _check_imports(backend_class: type[Backend], spec: Spec) -> None:
    module, name = backend_class.__module__, backend_class.__qualname__
    assert "<locals>" not in name, f"{name} is defined inside a function; move it to the top of {module}"
    called = subprocess.run(  # noqa: S603 -- our own code, and the caller's class
        [sys.executable, "-c", _CALL_WITHOUT_TORCH, module, name],
        input=spec.model_dump_json(),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert called.returncode == 0, f"{name} fails in a new process: {called.stderr}"
    assert not called.stdout.strip(), f"{name} imports {called.stdout.strip()}; import it in the script only"


def _imported(text: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


# --- a fake -----------------------------------------------------------------------------------------------------------


_FAKE_TEMPLATE = '''\
"""Train nothing, and report it as a trainer script does."""

import json
import signal
import sys
import time
from pathlib import Path
from skill_kd.kd.config import Config

CONFIG = Config.read(sys.argv[1])  # kd: config
HERE = Path(__file__).parent


def event(name: str, **values: object) -> None:
    """Append one line to metrics.jsonl."""
    with (HERE / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"event": name, **values}) + "\\n")


def stop(number: int, frame: object) -> None:
    """Exit as a trainer script does after a checkpoint."""
    (HERE / "checkpoints").mkdir(exist_ok=True)
    event("checkpoint", update=1)
    print("error: stopped by a signal; resume with --resume", file=sys.stderr)
    sys.exit(128 + number)


def export() -> None:
    """Write a student of one weight."""
    (HERE / "student").mkdir(exist_ok=True)
    (HERE / "student" / "config.json").write_text("{}")
    header = b'{"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (HERE / "student" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def main() -> None:
    """Finish, wait or fail, as student.model says."""
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    event("update", stage="distill", update=1, loss=1.0)
    model = CONFIG.student.model
    while model == "fake:sleep" and "--resume" not in sys.argv:
        time.sleep(0.02)
    if model == "fake:crash":
        raise RuntimeError("crashed on request")
    if model == "fake:fail":
        print("error: loss is nan at update 1", file=sys.stderr)
        sys.exit(6)
    export()
    event("done", update=1)
    (HERE / "summary.json").write_text(json.dumps({"updates": 1}))


if __name__ == "__main__":
    main()
'''


class FakeBackend(Backend):
    """Backend that trains nothing, takes a tenth of a second, and follows the contract of a trainer script.

    ``student.model`` sets how its script ends: ``fake:fail`` with exit code 6, ``fake:crash`` with a traceback,
    ``fake:sleep`` by a signal, after which ``--resume`` finishes. Any other model finishes at once.
    """

    name = "fake"
    version = __version__
    requirements = ()

    def check(self, spec: Spec) -> list[str]:
        """Refuse only ``student.model: fake:refuse``."""
        return ["student.model: 'fake:refuse' is refused; use another"] if spec.student.model == "fake:refuse" else []

    def render(self, spec: Spec) -> str:
        """Fill the template above. A real backend keeps its template in a file and calls ``render.render``."""
        return fill(_FAKE_TEMPLATE, spec, self, source="fake template")

    def command(self, script: Path, spec: Spec) -> list[str]:  # noqa: ARG002 -- part of the contract
        """Start one process."""
        return [sys.executable, str(script)]


@hookimpl
def register_backends(register: Callable[[type[Backend]], None]) -> None:
    """Register the fake backend; only tests use this module as an entry point."""
    register(FakeBackend)
