"""The kit for plugin authors: the fake keeps the contract and its word, and each broken backend is caught."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skill_kd.backend import Backend
from skill_kd.jobs.folder import write_folder
from skill_kd.render import fill
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec
from skill_kd.testing import FakeBackend, check_backend, minimal_spec

TEMPLATE = "from skill_kd.kd.config import Config\n\nCONFIG = Config.of({})  # kd: config\n"


def test_the_fake_keeps_the_contract() -> None:
    check_backend(FakeBackend)


def test_a_spec_of_ones_own_is_used() -> None:
    check_backend(FakeBackend, fake_spec("any"))
    with pytest.raises(AssertionError, match="pass a spec that it accepts"):
        check_backend(FakeBackend, fake_spec("fake:refuse"))


class BadName(FakeBackend):
    name = "Bad Name"


class BadVersion(FakeBackend):
    version = "one"


class BadRequirement(FakeBackend):
    requirements = ("torch 2.13",)


class ListedRequirements(FakeBackend):
    requirements = ["torch"]  # type: ignore[assignment]  # noqa: RUF012


class TwoLineRequirement(FakeBackend):
    requirements = ("torch\n# ///",)


class CheckReturnsNone(FakeBackend):
    def check(self, spec: Spec) -> list[str]:
        return None  # type: ignore[return-value]


class Moody(FakeBackend):
    def check(self, spec: Spec) -> list[str]:
        self.asked = getattr(self, "asked", 0) + 1
        return ["student.model: not today"] * (self.asked - 1)


class Unsteady(FakeBackend):
    def render(self, spec: Spec) -> str:
        return fill(f"{TEMPLATE}TIME = {time.perf_counter_ns()}\n", spec, self)


class Patched(FakeBackend):
    def render(self, spec: Spec) -> str:
        return super().render(spec) + "print()\n"


class Unstamped(FakeBackend):
    def render(self, spec: Spec) -> str:
        return "CONFIG = 1\n"


class Dependent(FakeBackend):
    def render(self, spec: Spec) -> str:
        return "import skill_kd.render\n" + super().render(spec)


class Impostor(FakeBackend):
    name = "impostor"

    def render(self, spec: Spec) -> str:
        return fill(TEMPLATE, spec, FakeBackend())


class Formatting(FakeBackend):
    """Puts a value into the template by hand."""

    def render(self, spec: Spec) -> str:
        return fill(f'{TEMPLATE}DATA = """{spec.data.train}"""\n', spec, self)


class Forgetful(FakeBackend):
    def render(self, spec: Spec) -> str:
        return fill(TEMPLATE, spec.model_copy(update={"data": minimal_spec().data}), self)


class NoLauncher(FakeBackend):
    def command(self, script: Path, spec: Spec) -> list[str]:
        return ["no-such-launcher", str(script)]


class OneString(FakeBackend):
    def command(self, script: Path, spec: Spec) -> list[str]:
        return f"{sys.executable} {script}"  # type: ignore[return-value]


class WithoutScript(FakeBackend):
    def command(self, script: Path, spec: Spec) -> list[str]:
        return [sys.executable, "-c", f"exec({str(script)!r})"]


class Heavy(FakeBackend):
    def check(self, spec: Spec) -> list[str]:
        import numpy  # noqa: F401

        return []


class Crashes(FakeBackend):
    def __init__(self) -> None:
        if sys.argv[0] == "-c" and "execnet" not in sys.modules:  # which starts the workers of pytest by -c too
            raise RuntimeError("only here")


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        (BadName, "name 'Bad Name'"),
        (BadVersion, "version 'one'"),
        (BadRequirement, "requirement 'torch 2.13' is not a PEP 508"),
        (ListedRequirements, "requirements"),
        (TwoLineRequirement, "is not a PEP 508"),
        (CheckReturnsNone, "check returned NoneType"),
        (Moody, "the second time"),
        (Unsteady, "another text"),
        (Patched, "changed after rendering"),
        (Unstamped, "header"),
        (Dependent, "imports skill_kd"),
        (Impostor, "stamp"),
        (Formatting, "a value of the spec became code"),
        (Forgetful, "CONFIG|stamp"),
        (NoLauncher, "no-such-launcher"),
        (OneString, "command returned str"),
        (WithoutScript, "does not contain the script"),
        (Heavy, "imports numpy"),
        (Crashes, "only here"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_backend_is_refused_with_the_reason(backend: type[Backend], reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        check_backend(backend)


def test_a_backend_inside_a_function_is_refused_with_the_fix() -> None:
    class Local(FakeBackend):
        pass

    with pytest.raises(AssertionError, match="move it to the top"):
        check_backend(Local)


# --- the fake's script ------------------------------------------------------------------------------------------------


def fake_spec(student: str) -> Spec:
    return parse_spec({**minimal_spec("fake").model_dump(mode="json"), "student": {"model": student}})


def start(folder: Path, student: str, *arguments: str) -> subprocess.Popen[str]:
    spec, backend = fake_spec(student), FakeBackend()
    write_folder(backend.render(spec), folder)
    command = [*backend.command(folder / "train.py", spec), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_fake_trains_to_the_end(tmp_path: Path) -> None:
    assert start(tmp_path, "any").wait() == 0
    assert events(tmp_path) == ["update", "done"]
    assert (tmp_path / "student" / "config.json").exists()
    assert json.loads((tmp_path / "summary.json").read_text()) == {"updates": 1}


@pytest.mark.parametrize(
    ("student", "code", "last"),
    [("fake:fail", 6, "error: loss is nan at update 1"), ("fake:crash", 1, "RuntimeError: crashed on request")],
)
def test_the_fake_fails_on_request(tmp_path: Path, student: str, code: int, last: str) -> None:
    process = start(tmp_path, student)
    _, errors = process.communicate()
    assert (process.returncode, errors.splitlines()[-1]) == (code, last)
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_fake_stops_by_a_signal_and_resumes(tmp_path: Path, number: int, code: int) -> None:
    process = start(tmp_path, "fake:sleep")
    deadline = time.monotonic() + 30
    metrics = tmp_path / "metrics.jsonl"
    # The file exists before its first line is written.
    while not (metrics.exists() and metrics.read_text().endswith("\n")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert events(tmp_path) == ["update", "checkpoint"]
    assert start(tmp_path, "fake:sleep", "--resume").wait(timeout=30) == 0
    assert events(tmp_path)[-1] == "done"
