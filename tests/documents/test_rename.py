"""dev/rename.py replaces whole words, and leaves frozen files as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from script_modules import load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rename() -> Any:
    return load_script("dev/rename.py")


def test_whole_words_change_and_others_stay(
    rename: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rename, "ROOT", tmp_path)
    monkeypatch.setattr(rename, "tracked", lambda _paths: sorted(tmp_path.iterdir()))
    (tmp_path / "a.py").write_text("Draw(Drawing, re_Draw, x.Draw)  # `Draw`\n")
    (tmp_path / "b.bin").write_bytes(b"\xff Draw")
    rename.main("Draw", "SampleRequest")
    assert (tmp_path / "a.py").read_text() == "SampleRequest(Drawing, re_Draw, x.SampleRequest)  # `SampleRequest`\n"
    assert (tmp_path / "b.bin").read_bytes() == b"\xff Draw"
    assert capsys.readouterr().out == "a.py\n"


def test_frozen_files_are_not_renamed_in(rename: Any) -> None:
    names = {path.relative_to(ROOT).as_posix() for path in rename.tracked([])}
    assert {"README.md", "dev/rename.py"} <= names
    assert not [name for name in names if name.startswith(rename.FROZEN)]
