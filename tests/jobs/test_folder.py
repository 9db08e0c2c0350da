"""The generated folder: whole or not at all, never over a person's edits, and the same files as a notebook."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from skill_kd import render
from skill_kd.errors import UsageError
from skill_kd.jobs import folder as folders
from skill_kd.jobs.folder import drift, edited_parts, to_notebook, write_folder
from skill_kd.spec import Spec
from skill_kd.testing import FakeBackend

BACKEND = FakeBackend()


@pytest.fixture
def text(spec: Spec) -> str:
    return BACKEND.render(spec)


@pytest.fixture
def target(text: str, tmp_path: Path) -> Path:
    """A generated folder."""
    write_folder(text, tmp_path / "out")
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another(spec: Spec) -> str:
    return BACKEND.render(spec.model_copy(update={"seed": 7}))


def test_the_folder_holds_the_script_and_kd_and_nothing_else(text: str, target: Path) -> None:
    kd = {f"kd/{name}": content for name, content in render.kd_files().items()}
    assert contents(target) == {"train.py": text.encode(), **kd}
    assert drift(target, text) == []
    assert edited_parts(target) == []


def test_an_unedited_folder_is_written_over(spec: Spec, target: Path) -> None:
    write_folder(another(spec), target)
    assert drift(target, another(spec)) == []


def test_a_folder_of_an_older_version_is_not_an_edit(
    spec: Spec, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {"__init__.py": b"", "train/gone.py": b"OLD = 1\n"}
    with monkeypatch.context() as patch:
        patch.setattr(render, "kd_files", lambda: old)
        patch.setattr(folders, "kd_files", lambda: old)
        write_folder(BACKEND.render(spec), tmp_path)
    assert "kd/train/gone.py: extra" in drift(tmp_path, text)
    assert "train.py: outdated, another kd" in drift(tmp_path, text)
    assert edited_parts(tmp_path) == []
    write_folder(text, tmp_path)
    assert drift(tmp_path, text) == []


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("train.py", "# mine\n", "train.py"),
        ("kd/__init__.py", "# mine\n", "kd/"),
        ("kd/mine.py", "# mine\n", "kd/"),
        ("kd/notes.txt", "mine", "kd/"),
    ],
)
def test_edits_are_refused_by_name_and_force_writes_over_them(
    spec: Spec, target: Path, name: str, content: str, part: str
) -> None:
    (target / name).write_text(content)
    before = contents(target)
    assert edited_parts(target) == [part]
    with pytest.raises(UsageError, match=rf"contains edits in {part}; use --force"):
        write_folder(another(spec), target)
    assert contents(target) == before
    write_folder(another(spec), target, force=True)
    assert drift(target, another(spec)) == []


def test_an_edit_inside_the_rendered_script_is_refused(spec: Spec, text: str, target: Path) -> None:
    (target / "train.py").write_text(text.replace("seed=42", "seed=43"))
    assert drift(target, text) == ["train.py: edited"]
    with pytest.raises(UsageError, match=r"contains edits in train\.py;"):
        write_folder(another(spec), target)


def test_somebody_elses_kd_is_not_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "kd").mkdir()
    (tmp_path / "kd" / "kd.py").write_text("theirs")
    with pytest.raises(UsageError, match=r"contains edits in kd/;"):
        write_folder(text, tmp_path)
    assert contents(tmp_path) == {"kd/kd.py": b"theirs"}


def test_other_files_of_the_folder_stay(spec: Spec, target: Path) -> None:
    (target / "notes.md").write_text("mine")
    write_folder(another(spec), target, force=True)
    assert (target / "notes.md").read_text() == "mine"


def test_caches_are_neither_edits_nor_drift(text: str, target: Path) -> None:
    for name in ("kd/__pycache__/a.pyc", "kd/.ruff_cache/b", "kd/train/.DS_Store"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_bytes(b"x")
    assert edited_parts(target) == []
    assert drift(target, text) == []


def test_drift_names_each_file_and_why(spec: Spec, text: str, target: Path) -> None:
    kept = sorted(path for path in target.rglob("kd/*/*.py"))
    kept[0].unlink()
    kept[1].write_text("changed")
    (target / "kd" / "extra.py").write_text("")
    names = [path.relative_to(target).as_posix() for path in kept[:2]]
    expected = {
        "train.py: outdated, another spec",
        "kd/extra.py: extra",
        f"{names[0]}: missing",
        f"{names[1]}: changed",
    }
    assert set(drift(target, another(spec))) == expected


def test_drift_of_an_empty_folder_misses_everything(text: str, tmp_path: Path) -> None:
    assert drift(tmp_path, text) == [
        "train.py: missing",
        *(f"kd/{name}: missing" for name in sorted(render.kd_files())),
    ]


def test_a_failure_leaves_the_old_folder_as_it_was(spec: Spec, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(target)
    write = Path.write_bytes
    room = [3]

    def full_after_three(path: Path, content: bytes) -> int:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_after_three)
    with pytest.raises(UsageError, match="No space left on device"):
        write_folder(another(spec), target)
    assert contents(target) == before


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("new", [True, False])
def test_all_files_are_replaced_or_none(
    step: int, new: bool, spec: Spec, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the renames fails in turn; a new folder needs three of them, and a replaced one six."""
    target, replace, done = tmp_path / "out", os.replace, []
    if not new:
        write_folder(text, target, others={"launch.sh": "old"})
    before = contents(tmp_path)

    def fail_at_step(source: Path, destination: Path) -> None:
        done.append(source)
        if len(done) == step + 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail_at_step)
    if step >= (3 if new else 6):
        write_folder(another(spec), target, others={"launch.sh": "new"})
        assert drift(target, another(spec)) == []
        assert (target / "launch.sh").read_text() == "new"
        assert len(done) == (3 if new else 6)
    else:
        with pytest.raises(UsageError, match=r"cannot write '.*/out': Input/output error"):
            write_folder(another(spec), target, others={"launch.sh": "new"})
        assert contents(tmp_path) == before
        assert target.exists() is not new


def test_a_folder_in_the_place_of_a_file_is_found_before_anything_is_replaced(
    spec: Spec, target: Path, text: str
) -> None:
    (target / "launch.sh").mkdir()
    with pytest.raises(UsageError, match=r"cannot write '.*/out': Is a directory"):
        write_folder(another(spec), target, force=True, others={"launch.sh": "new"})
    assert drift(target, text) == []
    assert (target / "launch.sh").is_dir()


def test_a_file_where_the_folder_belongs_is_one_plain_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        write_folder(text, tmp_path / "out")


def test_a_binary_train_py_is_one_plain_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        write_folder(text, tmp_path)


# --- as a notebook ----------------------------------------------------------------------------------------------------


class Needy(FakeBackend):
    requirements = ("pluggy>=1", 'odd; python_version < "3"')


def test_the_notebook_is_valid_and_its_cells_are_the_same_files(spec: Spec) -> None:
    text = Needy().render(spec)
    notebook = nbformat.reads(to_notebook(text), as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source == "Train nothing, and report it as a trainer script does."
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert cells[0] == """%pip install --quiet "pluggy>=1" "odd; python_version < '3'\""""
    assert f"%%writefile train.py\n{text}" in cells
    assert cells.index(f"%%writefile train.py\n{text}") == len(cells) - 2
    files = dict(cell.removeprefix("%%writefile ").split("\n", 1) for cell in cells if cell.startswith("%%writefile "))
    full = {f"kd/{name}": content.decode() for name, content in render.kd_files().items() if content}
    assert files == {**full, "train.py": text}


def test_lines_that_look_like_magics_survive(spec: Spec, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = b"%%bash\n%cd /\n!ls\n{x} $y\n"
    monkeypatch.setattr(folders, "kd_files", lambda: {"odd.py": odd})
    cells = [cell.source for cell in nbformat.reads(to_notebook(BACKEND.render(spec)), as_version=4).cells]
    assert f"%%writefile kd/odd.py\n{odd.decode()}" in cells


def test_the_cells_rebuild_the_folder(text: str, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "kd_files", lambda: {**render.kd_files(), "train/empty.py": b""})
    (target / "kd" / "train" / "empty.py").write_bytes(b"")
    rebuilt = tmp_path / "rebuilt"
    rebuilt.mkdir()
    for cell in json.loads(to_notebook(text))["cells"]:
        source = "".join(cell["source"])
        if source.startswith("%%writefile "):
            name, content = source.removeprefix("%%writefile ").split("\n", 1)
            (rebuilt / name).write_text(content, encoding="utf-8")
        elif source.startswith("import"):
            subprocess.run([sys.executable, "-c", source], cwd=rebuilt, check=True)
    assert contents(rebuilt) == contents(target)
