"""A run is done only if it left a student: a config, and weights whose files are complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from skill_kd import plugins
from skill_kd.cli import main
from skill_kd.errors import ExitCode
from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.run import run
from skill_kd.jobs.student import BrokenStudent, check_student
from skill_kd.spec import Spec
from skill_kd.testing import FakeBackend, minimal_spec


def safetensors(path: Path, header: object = None, body: int = 4) -> None:
    values = {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}} if header is None else header
    text = json.dumps(values).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(body))


@pytest.fixture
def student(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    safetensors(folder / "model.safetensors")
    return folder


def test_a_complete_student_is_accepted_in_one_file_or_in_several(student: Path) -> None:
    check_student(student)
    safetensors(student / "model-2.safetensors", {"__metadata__": {"format": "pt"}}, body=0)
    index = {"weight_map": {"weight": "model.safetensors", "other": "model-2.safetensors"}}
    (student / "model.safetensors.index.json").write_text(json.dumps(index))
    check_student(student)


def shard_lost(student: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (student / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda s: (s / "config.json").unlink(), r"config\.json' is missing"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), r"has no weights"),
    "no tensor": (lambda s: safetensors(s / "model.safetensors", {}, body=0), "holds no tensor"),
    "config cut": (lambda s: (s / "config.json").write_text("{"), r"cannot read '.*config\.json'"),
    "config a list": (lambda s: (s / "config.json").write_text("[]"), "not a JSON object"),
    "empty": (lambda s: (s / "model.safetensors").write_bytes(b""), "not a complete safetensors file"),
    "cut": (lambda s: safetensors(s / "model.safetensors", body=3), r"complete safetensors file: \d+ bytes of \d+"),
    "too long": (lambda s: safetensors(s / "model.safetensors", body=5), "complete safetensors file"),
    "header a list": (lambda s: safetensors(s / "model.safetensors", [1]), "complete safetensors file"),
    "header of text": (lambda s: safetensors(s / "model.safetensors", {"w": "x"}), "complete safetensors file"),
    "another format": (lambda s: (s / "model.safetensors").write_bytes(b"\xff" * 99), "complete safetensors file"),
    "a shard lost": (shard_lost, r"model-2\.safetensors' is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_student_is_named(name: str, student: Path) -> None:
    spoil, words = BROKEN[name]
    spoil(student)
    with pytest.raises(BrokenStudent, match=words):
        check_student(student)


# --- runs -------------------------------------------------------------------------------------------------------------


class Careless(FakeBackend):
    """A backend whose script ends with exit code 0, whatever it leaves."""

    ends = "shutil.rmtree(HERE / 'student')"

    def render(self, spec: Spec) -> str:
        lines = ["", "import shutil", "", f"if __name__ == '__main__':\n    {self.ends}", ""]
        return super().render(spec) + "\n".join(lines)


@pytest.fixture
def careless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Careless:
    backend = Careless()
    monkeypatch.setattr(plugins, "backends", lambda: {"fake": backend})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(json.dumps(minimal_spec("fake").model_dump(mode="json")))
    return backend


@pytest.mark.parametrize(
    "ends",
    [
        "shutil.rmtree(HERE / 'student')",
        "(HERE / 'student' / 'config.json').unlink()",
        "(HERE / 'student' / 'model.safetensors').write_bytes(b'torn')",
    ],
)
def test_a_script_that_leaves_no_student_is_a_failed_run(
    ends: str, careless: Careless, capsys: pytest.CaptureFixture[str]
) -> None:
    careless.ends = ends
    assert main(["run", "spec.yaml"]) == ExitCode.TRAINING
    said = capsys.readouterr()
    assert "error: the script ended without an error, but left no student: 'runs/minimal/student" in said.err
    assert "log: runs/minimal/train.log" in said.err
    assert "is done" not in said.err
    assert said.out == ""
    manifest = Manifest.read(Path("runs/minimal"))
    assert (manifest.status, manifest.exit_code) == ("failed", 6)
    assert "left no student" in str(manifest.reason)


def test_a_run_that_is_done_is_resumed_if_its_student_is_gone(careless: Careless) -> None:
    careless.ends = "(HERE / 'starts').open('a').write('x')"
    folder = run(minimal_spec("fake")).folder
    run(minimal_spec("fake"), resume=True)
    assert (folder / "starts").read_text() == "x"
    (folder / "student" / "model.safetensors").unlink()
    run(minimal_spec("fake"), resume=True)
    assert (folder / "starts").read_text() == "xx"
    check_student(folder / "student")
