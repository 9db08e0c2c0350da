"""One rule for every file we write: whole or not at all, with nothing left behind."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from skill_kd.errors import UsageError
from skill_kd.files import write_or_refuse
from skill_kd.kd import files
from skill_kd.kd.files import replacing, write_atomically, write_json

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX file modes and folders")


@pytest.mark.parametrize("content", ["new\nß\n", b"\x00\xff"])
def test_the_content_is_written_as_it_is(content: str | bytes, tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", content)
    assert (tmp_path / "a.txt").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
@pytest.mark.parametrize("owner_and_step", [(Path, "write_bytes"), (os, "fsync"), (os, "replace")], ids=str)
def test_a_failure_at_any_step_leaves_the_old_content_and_no_litter(
    owner_and_step: tuple[object, str], error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(*owner_and_step, fail)
    with pytest.raises(type(error)):
        write_atomically(path, "new", sync=True)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_not_unicode_leaves_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.txt", "\ud800")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_body_that_fails_leaves_no_draft(tmp_path: Path) -> None:
    with pytest.raises(TypeError), replacing(tmp_path / "a.txt") as draft, draft.open("w") as file:
        file.writelines(["half", None])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    """Two writers and a reader at once: whatever is read is one writer's whole text."""
    path, texts = tmp_path / "a.txt", ["a" * 200_000, "b" * 100_000]
    write_atomically(path, texts[0])
    writers = [threading.Thread(target=lambda t=text: [write_atomically(path, t) for _ in range(50)]) for text in texts]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    assert seen <= {*texts}
    assert list(tmp_path.iterdir()) == [path]


@posix
@pytest.mark.parametrize(("private", "mode"), [(True, 0o600), (False, 0o644)])
def test_a_private_file_is_its_owners_alone_from_its_first_byte(private: bool, mode: int, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "a.txt", private=private) as draft:
            modes = [stat.S_IMODE(draft.stat().st_mode)]
    finally:
        os.umask(before)
    assert [*modes, stat.S_IMODE((tmp_path / "a.txt").stat().st_mode)] == [mode, mode]


@posix
@pytest.mark.parametrize("sync", [True, False])
def test_content_is_forced_to_the_disk_before_the_name_where_asked(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[object] = []
    fsync, replace = os.fsync, os.replace

    def forced(descriptor: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    def renamed(old: Path, new: Path) -> None:
        steps.append("rename")
        replace(old, new)

    monkeypatch.setattr(files.os, "fsync", forced)
    monkeypatch.setattr(files.os, "replace", renamed)
    write_atomically(tmp_path / "a.txt", "new", sync=sync)
    assert steps == ([3, "rename", "folder"] if sync else ["rename"])


def test_json_ends_with_a_newline_and_keeps_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ß": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ß": 1\n}\n'


def test_a_refusal_names_the_file_not_the_draft(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "a.txt"
    with pytest.raises(UsageError) as refused:
        write_or_refuse(target, "new")
    assert str(refused.value).startswith(f"cannot write '{target}': ")


def test_a_missing_folder_is_made_for_a_file_of_a_person(tmp_path: Path) -> None:
    write_or_refuse(tmp_path / "new" / "deep" / "a.txt", "new")
    assert (tmp_path / "new" / "deep" / "a.txt").read_text() == "new"


def test_nobody_else_renames_a_file_into_place() -> None:
    """The rule has one home; what is left renames folders, or what another program wrote into a folder of ours."""
    folder = Path(files.__file__).parent.parent
    renames = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if "os.replace(" in (text := path.read_text(encoding="utf-8")) or "mkstemp" in text or "draft.replace" in text
    }
    assert renames == {"kd/files.py", "jobs/folder.py"}
