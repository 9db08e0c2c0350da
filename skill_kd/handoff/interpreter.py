"""Questions about models. A subprocess answers them, so this process does not load torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from skill_kd.errors import ExitCode, MissingRequirementError, SkillKDError, error_for
from skill_kd.files import as_usage_error
from skill_kd.jobs.manifest import Manifest
from skill_kd.kd import children
from skill_kd.kd.errors import ScriptError
from skill_kd.render import kd_files

PROBE = Path(__file__).with_name("probe")
ANSWER_SECONDS = 120.0
"""Longest wait for an interpreter that only looks up a version."""


def with_torch(named: str | None) -> str:
    """Return the interpreter that answers questions about models: this one, or ``named`` if this one has no torch.

    It is never the program in a manifest, because a run folder may come from somebody else.
    """
    return sys.executable if named is None or find_spec("torch") is not None else named


def folder_of(manifest: Manifest) -> Path:
    """Return the folder in which the run was started. The spec's relative paths start there."""
    return Path(manifest.cwd) if Path(manifest.cwd).is_dir() else Path.cwd()


def ask(python: str, question: dict[str, Any], where: Path) -> dict[str, Any]:
    """Run the probe in a subprocess, started in ``where``, and return its answer to ``question``.

    Raises:
        UsageError: data or a model cannot be used; the message comes from the probe. Or the folder of temporary files
            is full.
        MissingRequirementError: a model, a package or the interpreter is missing.
        SkillKDError: the probe crashed.
    """
    with as_usage_error():
        with children.temporary_files():
            temporary = tempfile.TemporaryDirectory(prefix="skill-kd-")
        with temporary as name:
            place = Path(name)
            asked, answered = place / "question.json", place / "answer.json"
            with children.temporary_files():
                _write_packages(place)
                asked.write_text(json.dumps(question), encoding="utf-8")
            # -P: a folder named skill_kd in ``where``, such as our checkout, must not be imported instead.
            _run([python, "-P", "-m", "skill_kd.handoff.probe", str(asked), str(answered)], where, place)
            answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
            return answer


def _write_packages(place: Path) -> None:
    for name, content in {**_kd_files(), **_probe_files()}.items():
        (place / "skill_kd" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "skill_kd" / name).write_bytes(content)


def _kd_files() -> dict[str, bytes]:
    return {f"kd/{name}": content for name, content in kd_files().items()}


def _probe_files() -> dict[str, bytes]:
    files = {f"handoff/probe/{path.name}": path.read_bytes() for path in PROBE.glob("*.py")}
    # Without its own __init__.py, an installed skill_kd of another version would be imported instead.
    return {"__init__.py": b"", "handoff/__init__.py": b"", **files}


def _run(command: list[str], where: Path, packages: Path) -> None:
    # The probe's own temporary files go with the folder, even if the probe is killed.
    environment = {**os.environ, "PYTHONPATH": str(packages), "TMPDIR": str(packages)}
    done = finished(command, cwd=where, env=environment)
    if done.returncode == 0:
        return
    said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    reason = next((line for line in reversed(said) if line.startswith("error: ")), said[-1]).removeprefix("error: ")
    # The probe does not train, so exit code 6 (training failed) is a crash here.
    if done.returncode != ExitCode.TRAINING and (known := error_for(done.returncode, reason)):
        raise known
    children.refuse_full_folder()
    if reason.startswith(("ModuleNotFoundError", "ImportError")):
        raise MissingRequirementError(f"a package is missing in '{command[0]}': {reason}")
    raise SkillKDError(f"'{command[0]}' could not check the student: {reason}")


def finished(command: Sequence[str], seconds: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as ``children.run`` does.

    Raises:
        MissingRequirementError: it cannot be started, or it took longer than the limit.
        UsageError: the limit in the environment is not a number, or the folder of temporary files is full.
    """
    try:
        return children.run(command, seconds, **options)
    except OSError as error:
        raise MissingRequirementError(f"cannot start '{command[0]}': {error.strerror}") from error
    except ScriptError as error:
        raise error_for(error.exit_code, str(error)) or SkillKDError(str(error)) from error


def version(python: str, distribution: str) -> str | None:
    """Return the version of a distribution that ``python`` can import, or None if it has none.

    Raises:
        MissingRequirementError: the interpreter cannot be started, or does not answer.
    """
    code = "import sys; from importlib.metadata import version; print(version(sys.argv[1]))"
    done = finished([python, "-P", "-c", code, distribution], ANSWER_SECONDS)
    return done.stdout.strip() or None if done.returncode == 0 else None
