"""Read a question from the first file, and write the answer to the second. Both are JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .finetuned import finetuned, gguf
from .held_out import measure
from .model_folder import Answer
from .student import student

QUESTIONS: dict[str, Callable[[Any], Answer]] = {
    "student": student,
    "finetuned": finetuned,
    "gguf": gguf,
    "measure": measure,
}


def main() -> None:
    """Write the answer, or end with one ``error:`` line and an exit code, as a trainer script does."""
    from skill_kd.kd.reporting import reporting

    with reporting():
        question = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        answer = QUESTIONS[question["ask"]](question)
        Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
