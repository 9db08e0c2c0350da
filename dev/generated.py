"""Generate the part of a document between two markers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def result(name: str) -> Any:
    """Return the saved result of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _replaced(document: str, name: str, made: str) -> str:
    """Return the text of ``document`` with ``made`` between the markers of ``name``.

    Raises:
        SystemExit: a marker is missing.
    """
    comment = "# --- {} ---" if document.endswith(".py") else "<!-- {} -->"
    begin, end = comment.format(f"generated: {name}") + "\n", comment.format(f"end: {name}")
    before, found, rest = (ROOT / document).read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"error: the markers of '{name}' are not there")
    return before + begin + made + end + after


def main(document: str, name: str, make: Callable[[], str], whole: Mapping[str, Callable[[], str]] = {}) -> int:
    """Write part ``name`` of ``document`` and the files of ``whole``, or with ``--check`` report what has drifted.

    Paths are relative to the repository's root.
    """
    parser = argparse.ArgumentParser(description=f"The generated part '{name}' of {document}.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it has drifted")
    options = parser.parse_args()
    made = {document: _replaced(document, name, make())}
    made |= {file: draw() for file, draw in whole.items()}
    if not options.check:
        for file, text in made.items():
            (ROOT / file).write_text(text, encoding="utf-8")
        return 0
    drifted = [file for file, text in made.items() if (ROOT / file).read_text(encoding="utf-8") != text]
    for file in drifted:
        print(f"{file} has drifted: run python {sys.argv[0]}", file=sys.stderr)  # noqa: T201
    return int(bool(drifted))
