"""The part of a document that a script makes, between its two markers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _replaced(text: str, name: str, made: str) -> str:
    """Return ``text`` with ``made`` between the markers of ``name``.

    Raises:
        SystemExit: a marker is not there.
    """
    begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"error: the markers of '{name}' are not there")
    return before + begin + made + end + after


def main(document: str, name: str, make: Callable[[], str]) -> int:
    """Write that part of ``document``, a path from the repository's root, or with ``--check`` say if it has drifted."""
    parser = argparse.ArgumentParser(description=f"The generated part '{name}' of {document}.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it has drifted")
    options = parser.parse_args()
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    made = _replaced(text, name, make())
    if not options.check:
        path.write_text(made, encoding="utf-8")
        return 0
    if made != text:
        print(f"{document} has drifted: run python {sys.argv[0]}", file=sys.stderr)  # noqa: T201
    return int(made != text)
