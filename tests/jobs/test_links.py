"""A verb opens no file of a run folder through a symbolic link: whatever the link names stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from skill_kd import plugins
from skill_kd.cli import main
from skill_kd.errors import ExitCode
from skill_kd.jobs.run import run
from skill_kd.kd import files
from skill_kd.kd.files import open_descriptor, open_unlinked
from skill_kd.testing import FakeBackend, minimal_spec

RUN = (
    *(".lock", "manifest.json", "spec.yaml", "train.py", "train.log", "metrics.jsonl", "summary.json"),
    *("kd", "checkpoints", "student", "eval", "handoff", "teacher_states", "self_train.json"),
)
HANDOFF = (
    *("manifest.json", "data.jsonl", "finetune.py", "finetune.ipynb", "unsloth.yaml", "Modelfile"),
    *("finetune.log", "metrics.jsonl", "out", "compiled", "student.Q8_0.gguf"),
)
EVAL = ("evaluation.json", "report.html", "MODEL_CARD.md", "samples")
SAMPLES = ("work.json", "work.jsonl", "measured.json", "prompts.jsonl", "teacher.jsonl", "student.jsonl")

CASES = [
    *((verb, name) for verb in ("run", "evaluate", "handoff") for name in RUN),
    *(("handoff", f"handoff/{name}") for name in HANDOFF),
    *(("evaluate", f"eval/{name}") for name in EVAL),
    *(("evaluate", f"eval/samples/{name}") for name in SAMPLES),
]
ARGUMENTS = {
    "run": ["run", "spec.yaml", "--resume"],
    "evaluate": ["evaluate", "runs/minimal"],
    "handoff": ["handoff", "runs/minimal"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec and its finished run."""
    home = tmp_path_factory.mktemp("home")
    (home / "spec.yaml").write_text(json.dumps(minimal_spec("fake").model_dump(mode="json")))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plugins, "backends", lambda: {"fake": FakeBackend()})
        run(minimal_spec("fake"), home / "runs")
    return home


@pytest.mark.parametrize("target", ["theirs", "nowhere"])
@pytest.mark.parametrize(("verb", "name"), CASES)
def test_a_link_in_a_run_folder_is_refused_by_name(
    verb: str,
    name: str,
    target: str,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(plugins, "backends", lambda: {"fake": FakeBackend()})
    monkeypatch.chdir(finished)
    theirs, link = tmp_path / "theirs", finished / "runs" / "minimal" / name
    theirs.write_text("precious")
    aside = link.with_name("aside")
    created = [parent for parent in link.parents if not parent.exists()]
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        link.rename(aside)
    link.symlink_to(tmp_path / target)
    try:
        assert main(ARGUMENTS[verb]) == ExitCode.USAGE
    finally:
        link.unlink()
        if aside.exists():
            aside.rename(link)
        for folder in created:
            folder.rmdir()
    assert f"error: 'runs/minimal/{name}' is a symbolic link" in capsys.readouterr().err
    assert theirs.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("mode", ["a", "ab", "w", "rb+", "rb"])
def test_a_file_is_not_opened_through_a_link_that_appears_later(mode: str, tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.write_text("precious")
    link.symlink_to(theirs)
    with pytest.raises(OSError, match="is a symbolic link") as caught:
        open_unlinked(link, mode)
    assert caught.value.filename == str(link)
    assert theirs.read_text() == "precious"


def test_the_system_refuses_what_the_check_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.write_text("precious")
    link.symlink_to(theirs)
    monkeypatch.setattr(files, "refuse_unsafe", lambda *_: None)
    with pytest.raises(OSError, match="is a symbolic link") as caught:
        open_descriptor(link, 0)
    assert caught.value.filename == str(link)


def test_a_file_that_is_not_a_link_is_opened_as_usual(tmp_path: Path) -> None:
    with open_unlinked(tmp_path / "file", "w", encoding="utf-8") as file:
        file.write("ß")
    with open_unlinked(tmp_path / "file", "a", encoding="utf-8") as file:
        file.write("ß")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "ßß"
    with pytest.raises(FileNotFoundError):
        open_unlinked(tmp_path / "absent", "rb")
