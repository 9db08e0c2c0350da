"""Rename an identifier, or a module by its dotted name, in every tracked text file.

python dev/rename.py OLD NEW [PATH ...]     for example: python dev/rename.py TeacherView TeacherDistribution

Replaces whole words only, so `Draw` leaves `Drawing` alone. PATHs limit the files. Frozen files stay as they are: run
folders and results of earlier versions. Move a module with `git mv` in a commit of its own first.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FROZEN = ("tests/data/", "benchmarks/results/", "evals/results/", "dev/LOG.md", "CHANGELOG.md")


def renamed(text: str, old: str, new: str) -> str:
    """Return ``text`` with every whole word ``old`` replaced by ``new``. A word ends where an identifier ends."""
    return re.sub(rf"(?<![\w]){re.escape(old)}(?![\w])", lambda _: new, text)


def tracked(paths: list[str]) -> list[Path]:
    """Return the tracked files under ``paths`` that are not frozen."""
    listed = subprocess.run(  # noqa: S603 -- no shell, and git decides what a path is
        ["git", "ls-files", "-z", "--", *paths],  # noqa: S607 -- git from the PATH, as developers have it
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    return [ROOT / name for name in listed if name and not name.startswith(FROZEN)]


def main(old: str, new: str, *paths: str) -> None:
    """Rename, and print each file that changed."""
    for path in tracked(list(paths)):
        try:
            before = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        if (after := renamed(before, old, new)) != before:
            path.write_bytes(after.encode("utf-8"))
            print(path.relative_to(ROOT))  # noqa: T201


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
