"""Put the table of objectives, from ``skill_kd.guidance``, between its markers in SKILL.md.

python scripts/make_skill.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from skill_kd.guidance import objectives_markdown

SKILL = Path(__file__).resolve().parent.parent / "SKILL.md"
BEGIN, END = "<!-- generated: objectives -->\n", "<!-- end: objectives -->"


def document(text: str) -> str:
    """Return SKILL.md with its table made anew."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + objectives_markdown() + END + after


def main() -> int:
    """Write SKILL.md, or with ``--check`` say whether it has drifted."""
    parser = argparse.ArgumentParser(description="The table of objectives in SKILL.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the table has drifted")
    options = parser.parse_args()
    text = SKILL.read_text(encoding="utf-8")
    made = document(text)
    if not options.check:
        SKILL.write_text(made, encoding="utf-8")
        return 0
    if made != text:
        print("SKILL.md has drifted: run python scripts/make_skill.py", file=sys.stderr)  # noqa: T201
    return int(made != text)


if __name__ == "__main__":
    raise SystemExit(main())
