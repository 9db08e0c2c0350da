"""The input files of a case. They are small and generated, and the known truth is not among them.

Tiny models come from ``tests/tiny.py``, logs with a planted cause from ``benchmarks/diagnose_logs.py``, generations
with planted damage from ``benchmarks/synthetic_teacher.py``. Nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
ON_DAY = 9
"""Day of a log on which its change begins, counted from 0."""
WRONG_LOSS = '''\
import torch


def reverse_kl_loss(student_logits, teacher_logits, mask):
    """Reverse KL: mode-covering, keeps the diversity of the teacher."""
    teacher_probs = torch.softmax(teacher_logits, dim=-1)
    student_log_probs = torch.log_softmax(student_logits, dim=-1)
    return -(teacher_probs * student_log_probs).sum(dim=-1).mean()
'''
"""A cross-entropy to the teacher's distribution, without its mask, with the name of the other direction."""


def make(kind: str, folder: Path, **options: Any) -> None:
    """Write the files of one kind into ``folder``."""
    KINDS[kind](folder, **options)


def _import(folder: str, name: str) -> Any:
    place = str(REPOSITORY / folder)
    if place not in sys.path:
        sys.path.insert(0, place)
    return __import__(name)


def _jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def models(folder: Path, sharper: float = 1.0) -> None:
    """``teacher/`` and ``student/``, random Llamas of one tokenizer, and prompts to train on.

    ``sharper`` scales the teacher's logits. Far from 1, the two directions of KL differ clearly.
    """
    from safetensors.torch import load_file, save_file

    tiny = _import("tests", "tiny")
    tiny.make_model(folder / "teacher", layers=2, seed=0)
    tiny.make_model(folder / "student", layers=1, seed=1)
    file = folder / "teacher" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"] *= sharper
    save_file(weights, file, metadata={"format": "pt"})
    prompts(folder)


def prompts(folder: Path) -> None:
    """Write ``prompts.jsonl``: 24 rows that have only a prompt."""
    source = REPOSITORY / "examples" / "data" / "prompts.jsonl"
    (folder / "prompts.jsonl").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def responses(folder: Path) -> None:
    """Write ``heldout.jsonl``: prompts with responses, to measure on."""
    source = REPOSITORY / "examples" / "data" / "eval.jsonl"
    (folder / "heldout.jsonl").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


def wrong_loss(folder: Path) -> None:
    """Write ``losses.py``. Its loss has the wrong name."""
    (folder / "losses.py").write_text(WRONG_LOSS, encoding="utf-8")


def logs(folder: Path, damage: str | None = None, twin: str | None = None, seed: int = 0) -> None:
    """Write ``logs.jsonl``: 15 days of answers that change on day 9."""
    maker = _import("benchmarks", "diagnose_logs")
    _jsonl(folder / "logs.jsonl", maker.rows(maker.Log(seed, 15, 120, damage, twin, ON_DAY)))


def since() -> str:
    """Return the ISO date on which the change of every log begins."""
    return str((_import("benchmarks", "diagnose_logs").START + timedelta(days=ON_DAY)).date())


def generations(folder: Path, condition: str, count: int = 200, seed: int = 0) -> None:
    """Write ``teacher.jsonl`` with 16 and ``student.jsonl`` with 8 answers to each of ``count`` prompts."""
    maker = _import("benchmarks", "synthetic_teacher")
    world = maker.SyntheticTeacher(seed, prompts=count)
    for stream, (name, how, samples) in enumerate((("teacher", "null", 16), ("student", condition, 8))):
        texts = world.responses(maker.CONDITIONS[how], samples, stream)
        rows = [
            {"prompt": f"Tell me about subject {number}.", "response": text}
            for number, each in enumerate(texts)
            for text in each
        ]
        _jsonl(folder / f"{name}.jsonl", rows)


KINDS: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (models, prompts, responses, wrong_loss, logs, generations)
}
