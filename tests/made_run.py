"""A run with its evaluation and its hand-off, made in a second without torch: no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from skill_kd import plugins
from skill_kd.backends.transformers import TransformersBackend
from skill_kd.cli import main
from skill_kd.errors import ExitCode
from skill_kd.evaluate import sampling
from skill_kd.evaluate.opened_models import summarized
from skill_kd.handoff import interpreter
from skill_kd.testing import FakeBackend

RUN = "runs/tiny"
SPEC = {
    "name": "tiny",
    "backend": "fake",
    "teacher": {"model": "./model", "dtype": "float32"},
    "student": {"from_teacher": {"layers": [0, 2]}, "lora": {"r": 4, "targets": ["q_proj"]}},
    "data": {"train": "train.jsonl", "held_out": 0.2, "chat_template_options": {"enable_thinking": False}},
    "stages": [{"kind": "warm_start", "objective": {"kind": "sft"}}, {"kind": "distill", "updates": 3}],
    "training": {"betas": [0.9, 0.95], "learning_rate": 1e-5},
    "evaluation": {"prompts": "prompts.jsonl", "samples": 2},
    "handoff": {"data": "train.jsonl"},
}
SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
}
HARNESS = {
    "model_name": "a",
    "results": {"arc": {"acc,none": 0.5, "acc_stderr,none": 0.1}},
    "higher_is_better": {"arc": {"acc": True}},
    "n-samples": {"arc": {"effective": 9}},
    "versions": {"arc": 1},
}
METRICS = (
    *("forward_kl", "reverse_kl", "coverage", "coverage_own", "precision", "precision_own"),
    *(f"{who}_{what}" for who in ("student", "teacher") for what in ("entropy", "confidence", "right")),
)
ANSWER = {
    "checks": [],
    "has_template": True,
    "parts": {"instruction_part": "<u>", "after_user": "", "response_part": "<a>", "after_assistant": ""},
    "targets": ["q_proj"],
    "positions": 1024,
    "teachers": [],
    "student": [],
    "metrics": {},
    "rows": [{"messages": []}],
    "longest": 9,
}
EVALUATE = ["evaluate", RUN, "--set", "resamples=200", "--set", "samples=2"]
HANDOFF = ["handoff", RUN, "--force"]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sampled(_task: object, _policy: object, folder: Path, examples: list[object], *_: object) -> dict[str, Any]:
    """Stand for two models that were sampled, and return the record of that."""
    sums = summarized({name: [[0.5, 0.25]] for name in METRICS}, 256)
    texts = {"teacher": ["a b", "c d"] * 2, "student": ["a b", "c"], "control": ["a", "a"]}
    read = {"teacher": sums, "student": sums}
    none = dict.fromkeys(texts, 0)
    line = {"texts": texts, "reasoned": none, "cut": none, "read": read, "read_baseline": {}}
    write_lines(folder / "work.jsonl", [line for _ in examples])
    decoding = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 256, "control_temperature": 0.3}
    about = {
        "teacher": "t",
        "student": "s",
        "baseline": "b",
        "tokenizer": "same",
        "decoding": decoding,
        "device": "cpu",
    }
    return {"unread": None, "latency": None, "about": about}


@contextmanager
def made_in(home: Path) -> Iterator[None]:
    """Fill a folder with a spec, its data, its run, an evaluation and a hand-off.

    In the block the folder is the working folder. There ``evaluate`` and ``handoff`` load no model either.
    """
    (home / "model").mkdir()
    (home / "model" / "config.json").write_text(json.dumps(SHAPE))
    (home / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    write_lines(home / "train.jsonl", [{"prompt": f"q{number}", "response": "r"} for number in range(10)])
    write_lines(home / "prompts.jsonl", [{"prompt": p, "reference": "a", "category": "c"} for p in ("p1", "p2")])
    for name, texts in (("T", ["a b", "c d", "e f", "g h"]), ("S", ["a b", "c"])):
        write_lines(home / f"{name}.jsonl", [{"prompt": p, "response": text} for p in ("p1", "p2") for text in texts])
    for name in ("teacher", "student"):
        (home / f"{name}.json").write_text(json.dumps({**HARNESS, "model_name": name}))
    message = {"role": "assistant", "content": "an answer"}
    call = {"messages": [{"role": "user", "content": "q"}], "response": {"choices": [{"message": message}]}}
    write_lines(home / "log.jsonl", [{"timestamp": f"2026-01-{day:02}T00:00:00Z", **call} for day in range(1, 29)])
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(home)
        known = {"fake": FakeBackend(), "transformers": TransformersBackend()}
        patched.setattr(plugins, "backends", lambda: known)
        patched.setattr(sampling, "_work", sampled)
        patched.setattr(interpreter, "ask", lambda *_: ANSWER)
        assert main(["run", "spec.yaml"]) == ExitCode.OK
        student = home / RUN / "student"
        (student / "config.json").write_text('{"dtype": "float32"}')
        for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            (student / name).write_text("{}")
        assert main(EVALUATE) == ExitCode.INCONCLUSIVE
        assert main(HANDOFF) == ExitCode.OK
        yield
