"""A trainer writes nothing through a symbolic link in its run folder, and reads no checkpoint through one."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator
from tiny import tiny_config

from skill_kd.kd.reporting import reporting
from skill_kd.kd.teacher.state_cache import TeacherStateCache
from skill_kd.kd.train.checkpoint_files import flaw, seal
from skill_kd.kd.train.journal import Journal
from skill_kd.kd.train.setup import WRITTEN, open_accelerator


@pytest.mark.parametrize("name", WRITTEN)
def test_a_run_is_refused_at_its_start(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "run"
    theirs.mkdir()
    folder.mkdir()
    (folder / name).symlink_to(theirs)
    with pytest.raises(SystemExit) as ended, reporting():
        open_accelerator(tiny_config(), folder)
    assert ended.value.code == 2
    assert f"error: '{folder / name}' is a symbolic link" in capsys.readouterr().err
    assert list(theirs.iterdir()) == []


def test_metrics_are_not_written_or_cut_through_a_link(tmp_path: Path) -> None:
    theirs, folder = tmp_path / "theirs", tmp_path / "run"
    theirs.write_text("a line without an end")
    folder.mkdir()
    journal = Journal(folder, Accelerator(cpu=True), tiny_config())
    (folder / "metrics.jsonl").symlink_to(theirs)
    with pytest.raises(OSError, match="is a symbolic link"):
        journal.event("note", text="x")
    with pytest.raises(OSError, match="is a symbolic link"):
        Journal(folder, Accelerator(cpu=True), tiny_config())
    assert theirs.read_text() == "a line without an end"


def test_the_teachers_states_are_not_kept_behind_a_link(tmp_path: Path) -> None:
    from torch import nn

    model = nn.Linear(1, 1)
    inner = TeacherStateCache(tmp_path / "states", model, 1.0).folder
    (tmp_path / "theirs").mkdir()
    inner.parent.mkdir()
    inner.symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match="is a symbolic link"):
        TeacherStateCache(tmp_path / "states", model, 1.0)


def test_a_checkpoint_or_a_file_of_one_behind_a_link_is_not_whole(tmp_path: Path) -> None:
    whole, linked = tmp_path / "0-00000001", tmp_path / "0-00000002"
    whole.mkdir()
    (whole / "progress.json").write_text("{}")
    seal(whole)
    assert flaw(whole) is None
    linked.symlink_to(whole)
    assert flaw(linked) == "it is a symbolic link"
    (whole / "progress.json").rename(tmp_path / "theirs")
    (whole / "progress.json").symlink_to(tmp_path / "theirs")
    assert str(flaw(whole)).startswith("progress.json cannot be read (is a symbolic link")
