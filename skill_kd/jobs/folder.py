"""Write ``train.py`` and ``kd/`` into a folder: completely or not at all, and never over the user's edits."""

from __future__ import annotations

import ast
import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from skill_kd.errors import UsageError
from skill_kd.files import making, read_input, refusing_unwritable
from skill_kd.render import files_hash, is_edited, kd_files, read_requirements, read_stamp

SCRIPT = "train.py"
KD = "kd"
COMPILED = "compiled"
"""Folder next to a script in which Unsloth writes modules and imports them again."""
_CACHE = "__pycache__"
_CODE = {".py", ".pyw", ".pyc", ".so", ".pyd"}
_KNOWN = {SCRIPT, "finetune.py", KD, COMPILED, _CACHE, "student", "checkpoints", "eval", "handoff", "out"}
"""Names of the files and folders that skill-kd and its scripts write next to a script."""


def write_folder(text: str, folder: Path, force: bool = False, others: Mapping[str, str] | None = None) -> None:
    """Write ``text`` as ``train.py`` and our modules as ``kd/`` into ``folder``; create it if needed.

    ``others`` are the texts of files next to them, by name.

    Raises:
        UsageError: ``train.py`` or ``kd/`` has edits and ``force`` is off, or the folder cannot be written. The folder
            is then unchanged.
    """
    if not force and (edited := edited_parts(folder)):
        raise UsageError(f"'{folder}' contains edits in {' and '.join(edited)}; use --force to overwrite them")
    with refusing_unwritable(f"'{folder}'", "fix that, or choose another folder"), making(folder):
        fill_folder(text, folder, others)


def fill_folder(text: str, folder: Path, others: Mapping[str, str] | None = None) -> None:
    """Replace ``train.py``, ``kd/`` and ``others`` in an existing folder; after an OSError the folder is unchanged."""
    with tempfile.TemporaryDirectory(prefix=".skill-kd-", dir=folder) as temporary:
        new = Path(temporary)
        files = {SCRIPT: text, **(others or {})}
        _write_kd(new)
        for name, content in files.items():
            (new / name).write_bytes(content.encode())
        _exchange(new, folder, (KD, *files))


def fill_kd(folder: Path) -> None:
    """Replace only ``kd/`` in an existing folder; after an OSError the folder is unchanged."""
    with tempfile.TemporaryDirectory(prefix=".skill-kd-", dir=folder) as temporary:
        _write_kd(Path(temporary))
        _exchange(Path(temporary), folder, (KD,))


def _write_kd(folder: Path) -> None:
    for name, content in kd_files().items():
        (folder / KD / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / KD / name).write_bytes(content)


def _exchange(new: Path, folder: Path, names: Sequence[str]) -> None:
    """Move ``names`` from ``new`` into ``folder``, and what they replace into ``new``; all of them, or none."""
    for name in names:
        if name != KD and (folder / name).is_dir() and not (folder / name).is_symlink():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
    replaced = new / "replaced"
    replaced.mkdir()
    moved = []
    try:
        for name in names:
            if os.path.lexists(folder / name):
                os.replace(folder / name, replaced / name)
            moved.append(name)
            os.replace(new / name, folder / name)
    except OSError:
        for name in moved:
            if os.path.lexists(folder / name):
                os.replace(folder / name, new / name)
            if os.path.lexists(replaced / name):
                os.replace(replaced / name, folder / name)
        raise


def edited_parts(folder: Path) -> list[str]:
    """Return which of ``train.py`` and ``kd/`` in ``folder`` were edited since skill-kd wrote them."""
    script, written = folder / SCRIPT, None
    text = read_script(script) if os.path.lexists(script) else None
    with contextlib.suppress(UsageError):
        written = read_stamp(text or "").kd
    edited = [SCRIPT] if text is not None and is_edited(text) else []
    return edited + ([f"{KD}/"] if kd_is_edited(folder, written) else [])


def kd_is_edited(folder: Path, written: str | None) -> bool:
    """Return True if ``kd/`` in ``folder`` is neither ours nor the one with the hash ``written``."""
    return os.path.lexists(folder / KD) and kd_hash(folder) not in {written, files_hash(kd_files())}


def refuse_modules(folder: Path) -> None:
    """Refuse modules and packages next to the script of a folder: it would import them instead of installed ones.

    Raises:
        UsageError: there are some. The message names them.
    """
    found = sorted(path.name for path in folder.glob("*") if path.name not in _KNOWN and _is_importable(path))
    if found:
        named = ", ".join(f"'{folder / name}'" for name in found[:3])
        raise UsageError(
            f"the script in '{folder}' would import {named} instead of an installed package of that name; move it "
            f"away; if it is your own code, move it into {KD}/ of a generated folder and start a new run from there"
        )


def _is_importable(path: Path) -> bool:
    """Return True for a module, and for a folder with one in it: a package needs no ``__init__.py``."""
    waiting = [path]
    while waiting:
        each = waiting.pop()
        if each.suffix in _CODE and each.name.partition(".")[0].isidentifier():
            return True
        if each.name.isidentifier() and each.is_dir():
            if each.is_symlink():
                return True
            waiting += each.iterdir()
    return False


def remove_compiled(folder: Path) -> None:
    """Remove compiled modules next to a script. No hash covers them, and they run instead of their sources."""
    for place, folders, _ in os.walk(folder / KD):
        if _CACHE in folders:
            folders.remove(_CACHE)
            cache = Path(place, _CACHE)
            cache.unlink() if cache.is_symlink() else shutil.rmtree(cache)
    for place, folders, files in os.walk(folder / COMPILED):
        for path in (Path(place, name) for name in (*files, *folders)):
            if path.suffix in _CODE or path.is_symlink():
                path.unlink()


def script_hash(folder: Path, name: str = SCRIPT) -> str:
    """Return the SHA-256 of the script in ``folder``, in hexadecimal."""
    return hashlib.sha256(read_input(folder / name)).hexdigest()


def text_hash(text: str) -> str:
    """Return the hash that ``script_hash`` returns for a script with this text."""
    return hashlib.sha256(text.encode()).hexdigest()


def kd_hash(folder: Path) -> str:
    """Return the hash of the ``kd/`` in ``folder``, as the stamp of a script has it."""
    return files_hash(_files(folder / KD))


def drift(folder: Path, text: str) -> list[str]:
    """Return one line for each file in ``folder`` that differs from what ``write_folder(text, folder)`` writes."""
    expected, found = kd_files(), _files(folder / KD)
    lines = []
    if (script := _script_drift(folder / SCRIPT, text)) is not None:
        lines.append(f"{SCRIPT}: {script}")
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            state = "missing" if name not in found else "extra" if name not in expected else "changed"
            lines.append(f"{KD}/{name}: {state}")
    return lines


def _script_drift(script: Path, expected: str) -> str | None:
    if not script.exists():
        return "missing"
    found = read_script(script)
    if found == expected:
        return None
    if is_edited(found):
        return "edited"
    old, new = asdict(read_stamp(found)), asdict(read_stamp(expected))
    return "outdated, another " + ", ".join(key for key in new if key != "body" and old[key] != new[key])


LONGEST_SCRIPT = 1_000_000
"""Bytes of a script. Those that skill-kd writes have about 10,000."""


def read_script(script: Path) -> str:
    """Return the text of a script.

    Raises:
        UsageError: it cannot be read, or is too long.
    """
    try:
        content = read_input(script)
        if len(content) > LONGEST_SCRIPT:
            raise UsageError(f"script '{script}' has {len(content)} bytes, and at most {LONGEST_SCRIPT} are read")
        return content.decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"cannot read script '{script}': {reason}") from error


def _files(kd: Path) -> dict[str, bytes]:
    """Return the files under ``kd`` by path inside it, without caches and hidden files."""
    return {
        path.relative_to(kd).as_posix(): path.read_bytes()
        for path in kd.rglob("*")
        if path.is_file() and not any(part == _CACHE or part[0] == "." for part in path.relative_to(kd).parts)
    }


# --- as a notebook ----------------------------------------------------------------------------------------------------

_SETUP = """\
import sys
from pathlib import Path

for name in {folders}:
    Path(name).mkdir(parents=True, exist_ok=True)
for name in {empty}:
    Path(name).write_text("")  # %%writefile refuses an empty cell
"""


def to_notebook(text: str) -> str:
    """Return an .ipynb (nbformat 4.5) whose cells write the same files and then run ``train.py``.

    The cells write files instead of running statements, because the script needs ``__file__``, which a notebook lacks.
    """
    files = {f"{KD}/{name}": content.decode() for name, content in kd_files().items()} | {SCRIPT: text}
    setup = _SETUP.format(
        folders=sorted({str(PurePosixPath(name).parent) for name in files}),
        empty=[name for name, content in files.items() if not content],
    )
    # Markers may contain quotes; PEP 508 accepts single and double ones.
    requirements = " ".join('"' + each.replace('"', "'") + '"' for each in read_requirements(text))
    cells = [
        _cell("markdown", ast.get_docstring(ast.parse(text)) or SCRIPT),
        _cell("code", f"%pip install --quiet {requirements}"),
        _cell("code", setup),
        *(_cell("code", f"%%writefile {name}\n{content}") for name, content in files.items() if content),
        _cell("code", f'!"{{sys.executable}}" {SCRIPT}'),
    ]
    notebook = {
        "cells": [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells)],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1) + "\n"


def _cell(kind: str, source: str) -> dict[str, object]:
    outputs: dict[str, object] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True), **outputs}
