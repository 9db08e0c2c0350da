"""The errors of skill_kd, and the exit codes of a trainer script that stand for them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import skill_kd
from skill_kd.errors import (
    ExitCode,
    MissingRequirementError,
    SkillKDError,
    TrainingFailedError,
    UsageError,
    command,
    error_for,
)
from skill_kd.kd.errors import BadInput, Missing, ScriptError, TrainingStopped


@pytest.mark.parametrize(
    ("raised", "reported"),
    [(BadInput, UsageError), (Missing, MissingRequirementError), (TrainingStopped, TrainingFailedError)],
)
def test_what_a_script_raises_is_the_same_error_to_its_parent(
    raised: type[ScriptError], reported: type[SkillKDError]
) -> None:
    error = error_for(raised("why").exit_code, "why")
    assert type(error) is reported
    assert str(error) == "why"
    assert error.exit_code == raised.exit_code


@pytest.mark.parametrize("code", sorted({*ExitCode, -9} - {ExitCode.USAGE, ExitCode.ENVIRONMENT, ExitCode.TRAINING}))
def test_any_other_exit_code_stands_for_no_class(code: int) -> None:
    assert error_for(code, "why") is None


@pytest.mark.parametrize(
    "name", ["a b", "it's", '"', "$(touch broken)", "a; touch broken", "a\nb", "-rf", "*", "~", "ß"]
)
def test_a_shown_command_means_the_same_to_a_shell(name: str, tmp_path: Path) -> None:
    shown = command("printf", "%s|", Path(name), "a", Path("b"))
    done = subprocess.run(["sh", "-c", shown], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{'./' * name.startswith('-')}{name}|a|b|"
    assert list(tmp_path.iterdir()) == []


SAFE = {
    "backends/launch.py": "bash {name}",  # a name without characters of a shell
    "jobs/folder.py": "{requirements}",  # quoted, in a notebook
    "jobs/manifest.py": "kill {",  # a number
    "kd/dataset/not_read.py": "iconv -f {",  # an encoding of our table
    "kd/endpoint/client.py": "pip install {",  # packages that we name
    "kd/model/packaged.py": "pip install --no-deps {",  # as above
    "plugins.py": "skill-kd-{",  # ours, or a name without characters of a shell
}
"""Commands in messages with a value that needs no quotes."""


def test_no_message_puts_a_value_into_a_command_without_quotes() -> None:
    package = Path(skill_kd.__file__).parent
    programs = r"skill-kd [a-z]+|kill|fuser|iconv|pip install|python3? -\w|rm|cd|bash|mv"
    unquoted = re.compile(rf"(?<![\w.'-])(?:{programs}) (?:[\w-]+ )*[\w./-]*\{{(?!command)")
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if unquoted.search(line) and SAFE.get(path.relative_to(package).as_posix(), "\0") not in line
    ]
    assert not found, "use errors.command:\n" + "\n".join(found)
