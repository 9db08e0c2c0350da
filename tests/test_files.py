"""One rule for every file we write: whole or not at all, with nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from skill_kd import files as checked_files
from skill_kd.errors import UsageError
from skill_kd.files import making, read_checked, refuse_skill_folder, skill_folder, write_or_refuse
from skill_kd.kd import files
from skill_kd.kd.errors import BadInput, RefusedPath
from skill_kd.kd.files import (
    open_descriptor,
    open_input,
    read_object,
    record,
    refuse_unsafe,
    replacing,
    write_atomically,
    write_json,
)

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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UsageError("no")], ids=repr)
@pytest.mark.parametrize("written", [[], ["a.txt"]])
def test_of_folders_that_a_failure_leaves_only_those_with_files_stay(
    written: list[str], error: BaseException, tmp_path: Path
) -> None:
    def fail() -> None:
        with making(tmp_path / "new" / "deep"):
            for name in written:
                (tmp_path / "new" / name).write_text("kept")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", *written][: 2 * len(written)]


def test_nobody_else_renames_a_file_into_place() -> None:
    """The rule has one home; what is left renames folders, or what another program wrote into a folder of ours."""
    folder = Path(files.__file__).parent.parent
    renames = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if "os.replace(" in (text := path.read_text(encoding="utf-8")) or "mkstemp" in text or "draft.replace" in text
    }
    assert renames == {"kd/files.py", "jobs/folder.py"}


# --- pipes, sockets and devices ---------------------------------------------------------------------------------------


@pytest.fixture(params=["a pipe", "a pipe with a writer", "a socket", "a device"])
def special(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path that is not a file. Nothing ends the reading of it, and a rename would replace it."""
    path = tmp_path / "special"
    with contextlib.ExitStack() as cleanup:
        if request.param.startswith("a pipe"):
            os.mkfifo(path)
            if "writer" in request.param:
                cleanup.callback(os.close, os.open(path, os.O_RDWR))
        elif request.param == "a socket":
            monkeypatch.chdir(tmp_path)  # the path of a socket is short
            cleanup.enter_context(socket.socket(socket.AF_UNIX)).bind(path.name)
        else:
            path = Path("/dev/zero")
        yield path


@posix
@pytest.mark.usefixtures("at_once")
def test_a_pipe_a_socket_or_a_device_is_neither_read_nor_replaced(special: Path) -> None:
    before, beside = special.lstat(), sorted(special.parent.iterdir())

    def attempts() -> Iterator[Callable[[], object]]:
        yield lambda: open_input(special)
        yield lambda: open_descriptor(special, os.O_RDONLY)
        yield lambda: open_descriptor(special, os.O_RDWR | os.O_CREAT)
        yield lambda: refuse_unsafe(special)
        yield lambda: write_atomically(special, "new")

    for attempt in attempts():
        with pytest.raises(RefusedPath, match="is a pipe, a socket or a device") as refused:
            attempt()
        assert refused.value.filename == str(special)
    with pytest.raises(UsageError, match=rf"^'{special}' is a pipe, a socket or a device; use a file$"):
        write_or_refuse(special, "new")
    with pytest.raises(UsageError, match=rf"cannot read '{special}': is a pipe, a socket or a device; use a file; fix"):
        read_checked(special, Facts, "fix it")
    assert special.lstat() == before
    assert sorted(special.parent.iterdir()) == beside


@posix
@pytest.mark.usefixtures("at_once")
def test_a_pipe_that_appears_after_the_check_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(files, "refuse_unsafe", lambda *_: None)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with pytest.raises(RefusedPath, match="is a pipe, a socket or a device"):
            open_descriptor(tmp_path / "pipe", flags)


# --- the installed skill ----------------------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed skill, the folder ``skill``. The code believes that it runs from there."""
    skill = tmp_path / "skill"
    (skill / "skill_kd").mkdir(parents=True)
    (skill / "SKILL.md").touch()
    monkeypatch.setattr(checked_files, "__file__", str(skill / "skill_kd" / "files.py"))
    monkeypatch.chdir(tmp_path)
    return skill


@posix
@pytest.mark.parametrize("place", ["skill", "skill/new", "skill/../skill/new", "linked/new", "linked-file", "inside"])
def test_nothing_is_written_into_the_installed_skill(
    place: str, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linked").symlink_to(installed)
    (tmp_path / "linked-file").symlink_to(installed / "SKILL.md")
    if place == "inside":
        monkeypatch.chdir(installed / "skill_kd")
    with pytest.raises(RefusedPath, match="is in the skill's folder, which every update replaces"):
        refuse_skill_folder(Path(place))
    with pytest.raises(UsageError, match="is in the skill's folder, which every update replaces"):
        write_or_refuse(Path(place) / "a.txt", "new")
    assert sorted(installed.rglob("*")) == [installed / "SKILL.md", installed / "skill_kd"]
    refuse_skill_folder(tmp_path / "skill-kd-of-somebody")


def test_a_checkout_is_an_installed_skill_only_for_its_launcher(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["pytest"])
    assert skill_folder() == installed
    (installed / ".git").mkdir()
    assert skill_folder() is None
    monkeypatch.setattr("sys.argv", [str(installed / "scripts" / "kd.py")])
    assert skill_folder() == installed
    (installed / "SKILL.md").unlink()  # a package on the import path
    assert skill_folder() is None


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """A schema."""

    name: str
    numbers: tuple[int, ...]
    share: float | None = None
    kind: Literal["a", "b"] = "a"
    more: dict[str, list[float]] = field(default_factory=dict)


WHOLE = {"name": "x", "numbers": [1, 2], "share": 1, "kind": "b", "more": {"k": [0.5]}}
ODD_JSON = {
    "not JSON": ("{", "it is not JSON: Expecting"),
    "nothing": ("", "it is not JSON: Expecting value"),
    "UTF-16": ("{}".encode("utf-16"), "it is not UTF-8 text"),
    "a key twice": ('{"name": "x", "name": "y"}', "duplicate key 'name'"),
    "a deep list": ("[" * 10_000 + "]" * 10_000, "it is nested"),
    "a list that is too deep": ("[" * 70 + "]" * 70, "it is nested more than 64 deep"),
    "a deep object": ('{"a":' * 10_000 + "1" + "}" * 10_000, "it is nested"),
    "many digits": ('{"name": ' + "9" * 5000 + "}", "a number of 5000 digits"),
}
MISFITS = {
    "a list": ([], "object|dictionary"),
    "null": (None, "object|dictionary"),
    "another type": ({**WHOLE, "name": 1}, "name"),
    "a truth value": ({**WHOLE, "numbers": [True]}, "numbers"),
    "a float": ({**WHOLE, "numbers": [1.5]}, "numbers"),
    "a text that looks like a number": ({**WHOLE, "share": "1"}, "share"),
    "another choice": ({**WHOLE, "kind": "c"}, "kind"),
    "a list as a choice": ({**WHOLE, "kind": []}, "kind"),
    "deeper": ({**WHOLE, "more": {"k": ["x"]}}, "more"),
    "too little": ({"name": "x"}, "numbers is missing"),
}


@pytest.mark.parametrize("name", ODD_JSON)
def test_json_that_is_not_strict_is_refused_with_its_file_and_the_reason(name: str, tmp_path: Path) -> None:
    content, reason = ODD_JSON[name]
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=reason) as refused:
        read_object(path)
    assert str(refused.value).startswith(f"cannot read '{path}': ")
    with pytest.raises(UsageError, match=reason) as refused_too:
        read_checked(path, Facts, "put it back")
    assert str(refused_too.value).endswith("; put it back")


@pytest.mark.parametrize("name", MISFITS)
def test_json_that_does_not_fit_its_schema_is_refused_with_the_field(name: str, tmp_path: Path) -> None:
    value, field_name = MISFITS[name]
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(UsageError, match=field_name) as refused:
        read_checked(tmp_path / "a.json", Facts, "put it back")
    assert str(refused.value).startswith(f"cannot read '{tmp_path / 'a.json'}': ")
    with pytest.raises(ValueError, match=field_name):
        record(Facts, value)


def test_json_that_fits_is_read_alike_with_and_without_pydantic(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(WHOLE))
    assert read_checked(tmp_path / "a.json", Facts, "") == Facts("x", (1, 2), 1.0, "b", {"k": [0.5]})
    assert record(Facts, WHOLE) == Facts("x", [1, 2], 1, "b", {"k": [0.5]})  # type: ignore[arg-type]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_fits_no_schema(number: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(WHOLE).replace('"share": 1', f'"share": {number}'))
    assert "share" in read_object(tmp_path / "a.json")  # other programs write such configs
    with pytest.raises(UsageError, match=f"the number '{number}'"):
        read_checked(tmp_path / "a.json", Facts, "")


@pytest.mark.parametrize("key", ["missing", "folder"])
def test_what_is_not_a_file_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for read in (read_object, lambda path: read_checked(path, Facts, "")):
        with pytest.raises((BadInput, UsageError), match=f"cannot read '{tmp_path / key}': (No such|Is a)"):
            read(tmp_path / key)
