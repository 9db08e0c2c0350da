"""Damaged files: each verb that reads one takes it, or refuses it with exit code 2 and its name.

This is a sample. ``benchmarks/damaged_files.py`` tries every damage on a run that was trained.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from damage import damages

pytest.importorskip("scipy")

from made_run import EVALUATE, HANDOFF, RUN, made_in

from skill_kd.cli import main
from skill_kd.errors import ExitCode
from skill_kd.evaluate.samples_folder import sealed_line

SAVED = ["evaluate", "--teacher-generations", "T.jsonl", "--student-generations", "S.jsonl", "--set", "resamples=200"]
VERBS = {
    "validate": ["validate", "spec.yaml", "--backend", "transformers"],
    "plan": ["plan", "spec.yaml", "--device", "cpu", "--backend", "transformers"],
    "resume": ["run", "spec.yaml", "--resume", "--json"],
    "script": ["run", f"{RUN}/train.py", "--name", "other", "--dry-run"],
    "evaluate": EVALUATE,
    "saved": [*SAVED, "--harness-results", "teacher.json", "student.json"],
    "handoff": HANDOFF,
    "diagnose": ["diagnose", "log.jsonl", "--spec", "spec.yaml", "--out", "pilot"],
}
READERS = {
    "spec.yaml": ("validate", "plan", "resume", "diagnose"),
    "model/config.json": ("validate", "plan"),
    "train.jsonl": ("validate",),
    f"{RUN}/manifest.json": ("resume", "evaluate", "handoff"),
    f"{RUN}/spec.yaml": ("evaluate", "handoff"),
    f"{RUN}/train.py": ("resume", "script"),
    f"{RUN}/summary.json": ("resume",),
    f"{RUN}/student/config.json": ("resume", "handoff"),
    f"{RUN}/student/model.safetensors": ("resume", "handoff"),
    f"{RUN}/eval/samples/work.json": ("evaluate",),
    f"{RUN}/eval/samples/work.jsonl": ("evaluate",),
    f"{RUN}/eval/samples/measured.json": ("evaluate",),
    f"{RUN}/eval/evaluation.json": ("handoff",),
    f"{RUN}/handoff/manifest.json": ("handoff",),
    "prompts.jsonl": ("evaluate",),
    "T.jsonl": ("saved",),
    "teacher.json": ("saved",),
    "log.jsonl": ("diagnose",),
}
TRIED = 5
"""Damages of a file for each verb."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with every file of ``READERS``."""
    home = tmp_path_factory.mktemp("made")
    with made_in(home):
        yield home


@pytest.mark.parametrize(("file", "verb"), [(file, verb) for file, verbs in READERS.items() for verb in verbs])
def test_a_damaged_file_is_read_or_refused_by_name(
    file: str, verb: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (made / file).read_bytes()
    drawn = random.Random(f"{file} {verb}").sample(list(damages(file, content, yaml.safe_load)), TRIED)
    failures = []
    for number, (damage, new) in enumerate(drawn):
        home = Path(shutil.copytree(made, tmp_path / str(number)))
        monkeypatch.chdir(home)
        (home / file).unlink()
        (home / file).mkdir() if new is None else (home / file).write_bytes(new)
        code = main(VERBS[verb])
        said = capfd.readouterr().err
        kept = code in {ExitCode.OK, ExitCode.NO_GO, ExitCode.INCONCLUSIVE}
        refused = code in {ExitCode.USAGE, ExitCode.ENVIRONMENT} and Path(file).name in said
        if not (kept or refused) or "Traceback" in said or "unexpected " in said:
            failures.append(f"{damage}: {code}, {said[-300:]}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("counts", ["texts", "reasoned", "cut"])
def test_a_line_of_another_evaluation_is_refused(
    counts: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "home"))
    samples = Path(RUN) / "eval" / "samples"
    work, key = samples / "work.jsonl", json.loads((samples / "work.json").read_text())
    first, *others = work.read_bytes().splitlines(keepends=True)
    line = json.loads(first)
    del line[counts]["teacher"]
    work.write_bytes(sealed_line(key, 0, line) + b"".join(others))
    assert main(EVALUATE) == ExitCode.USAGE
    assert "work.jsonl' line 1 and measured.json are not of one evaluation; choose" in capfd.readouterr().err
