"""One `evaluation.json` with everything in it, for tests of what is drawn from it, and a check of its types.

Its figures are made up.
"""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

ATTACK = "</scr" + "ipt><img src=x onerror=alert(1)>"
"""A completion that tries to leave every place it is put in."""


def metric(name: str, title: str, unit: str, **fields: Any) -> dict[str, Any]:
    empty = dict.fromkeys(
        ("estimate", "low", "high", "margin", "null", "control", "teacher", "student", "baseline", "reason",
         "detectable", "prompts_needed")
    )  # fmt: skip
    always = {"role": "blocking", "form": "difference", "better": "high", "outcome": "pass", "prompts": 200}
    return {"name": name, "title": title, "unit": unit, **empty, **always, **fields}


def metrics() -> list[dict[str, Any]]:
    low = {"better": "low", "null": 0.0}
    shown = {"role": "advisory", "outcome": "shown"}
    return [
        metric(
            "recall", "Recall of the teacher's responses", "ratio", form="ratio", estimate=0.78, low=0.752, high=0.812,
            margin=0.90, null=1.0, control=0.31, teacher=0.926, student=0.722, baseline=0.55, outcome="fail",
            detectable=0.031,
        ),
        metric(
            "quality", "Quality against references", "score", estimate=-0.011, low=-0.026, high=0.004, margin=-0.02,
            null=0.0, control=-0.15, teacher=0.412, student=0.401, baseline=0.297, outcome="uncertain",
            detectable=0.021, prompts_needed=412,
        ),
        metric(
            "retention", "Diversity retained (Vendi score)", "score", form="retention", estimate=0.93, low=0.88,
            high=0.97, margin=0.80, null=1.0, control=0.0, teacher=5.21, student=5.02, baseline=4.1, detectable=0.05,
        ),
        metric(
            "loops", "Loops", "share", **low, estimate=0.004, low=-0.001, high=0.009, margin=0.01, control=0.11,
            teacher=0.011, student=0.015, baseline=0.09, detectable=0.008,
        ),
        metric(
            "duplicates", "Near-duplicates across prompts", "share", **low, estimate=0.16, low=0.12, high=0.2,
            margin=0.02, control=0.3, teacher=0.02, student=0.18, baseline=0.1, outcome="fail", detectable=0.02,
        ),
        metric(
            "nucleus", "Mass of the teacher inside the student's nucleus", "share", margin=-0.03, null=0.0,
            outcome="not_measured", reason="the tokenizers differ",
        ),
        metric("ece", "Calibration", "share", role="advisory", outcome="not_measured", reason="it needs the models"),
        metric(
            "length", "Length", "words", **shown, form="ratio", estimate=0.92, low=0.89, high=0.95, null=1.0,
            control=1.1, teacher=84.2, student=77.5, baseline=91.0,
        ),
        metric(
            "forward_kl", "Forward KL on teacher samples", "nats/token", **shown, **low, form="value", estimate=0.1042,
            low=0.098, high=0.1105, control=1.22, student=0.1042, baseline=0.61,
        ),
        metric(
            "reverse_kl", "Reverse KL on student samples", "nats/token", **shown, **low, form="value", estimate=0.0311,
            low=0.028, high=0.0342, control=0.8, student=0.0311, baseline=0.4,
        ),
    ]  # fmt: skip


def harness_row(task: str, metric: str, **fields: Any) -> dict[str, Any]:
    numbers = ("teacher", "student", "difference", "difference_low", "difference_high", "retention", "low", "high")
    empty = dict.fromkeys((*numbers, "teacher_error", "student_error", "better", "reason", "samples"))
    return {"task": task, "metric": metric, "filter": "none", **empty, **fields}


def times(median: float) -> dict[str, float]:
    """Quantiles of a latency around a median, in seconds."""
    return {"p50_s": median, "p50_low_s": 0.9 * median, "p50_high_s": 1.2 * median, "p95_s": 1.9 * median}


def document() -> dict[str, Any]:
    """A NO-GO with every part filled, hostile text in each place that a model or a file can reach."""
    sides = {"teacher": [(0.6, 0.44, 0.70), (0.8, 0.43, 0.81), (1.0, 0.412, 0.926), (1.2, 0.37, 0.95)]}
    sides["student"] = [(0.6, 0.43, 0.5), (0.8, 0.42, 0.6), (1.0, 0.401, 0.722), (1.2, 0.36, 0.79)]
    names = ["story", "poem", ATTACK, "extraction", "code", "translation 翻訳", "summary", "chat"]
    steps = range(16)
    return {
        "format": 1,
        "kind": "evaluation",
        "verdict": "NO-GO",
        "exit_code": 3,
        "sentence": "NO-GO: recall is 0.780 (upper bound 0.812), and the policy requires at least 0.900.",
        "reason_code": "below_margin",
        "binding_metric": "recall",
        "prompts_needed": None,
        "warnings": ["3 prompts had fewer than 8 samples and were left out."],
        "metrics": metrics(),
        "slices": [
            {
                "name": f"category: {name}",
                "prompts": 9 + 7 * (index % 3),
                "figures": {
                    "recall": 0.55 + 0.04 * index,
                    "quality": -0.05 + 0.01 * index,
                    "loops": 0.002 * index,
                    "length": 1.0,
                },
            }
            for index, name in enumerate(names)
        ],
        "lost_modes": [
            {
                "prompt": f"Write two lines about the sea. {ATTACK}",
                "teacher": ["The sea is dark; the gulls are loud,\nand every wave a folded shroud.", f"Salt. {ATTACK}"],
                "student": ["The sea is blue, the sea is wide,\nthe sea is like a gentle tide."] * 2,
                "recall": 0.25,
            },
            {"prompt": "اكتب جملة عن البحر", "teacher": ["البحر واسع وهادئ."], "student": [], "recall": 0.5},
        ],
        "examples": [
            {
                "prompt": "Name three rivers of Europe.",
                "teacher": ["Danube, Rhine, Volga."],
                "student": ["The Danube, " * 40],
                "flags": ["loop"],
            }
        ],
        "lengths": {
            "teacher": {"p10": 21, "p50": 78, "p90": 160, "mean": 84.2},
            "student": {"p10": 18, "p50": 72, "p90": 151, "mean": 77.5},
            "baseline": None,
            "unit": "words",
        },
        "latency": {
            "hardware": f"a machine {ATTACK}",
            "batch": 1,
            "concurrency": 1,
            "responses": 20,
            "load": 0.4,
            "memory": "weights",
            "dtypes": {"teacher": "float32", "student": "bfloat16"},
            "teacher": {
                **times(4.21),
                "tokens_per_s": 31.2,
                "tokens": 130.0,
                "memory_bytes": 15_200_000_000,
                "seconds": [4.21],
            },
            "student": {
                **times(0.83),
                "tokens_per_s": 142.0,
                "tokens": 118.0,
                "memory_bytes": 1_310_000_000,
                "seconds": [0.83],
            },
            "cost_per_1k": {"teacher": 1.2, "student": 0.21, "currency": "EUR"},
        },
        "curves": {
            "exposure": {
                "positions": [8 * step for step in steps],
                "teacher_prefixes": [0.08 + 0.001 * step for step in steps],
                "student_prefixes": [0.09 + 0.006 * step for step in steps],
                "low": [0.08 + 0.005 * step for step in steps],
                "high": [0.1 + 0.007 * step for step in steps],
                "unit": "nats/token",
            },
            "calibration": {
                "confidence": [0.1, 0.3, 0.5, 0.7, 0.9],
                "accuracy": [0.08, 0.27, 0.44, 0.62, 0.85],
                "tokens": [900, 800, 650, 1200, 9000],
                "bins": 10,
                "ece": 0.031,
                "teacher_ece": 0.022,
            },
            "temperature": [
                {"temperature": heat, "quality": quality, "coverage": coverage, "who": who}
                for who, each in sides.items()
                for heat, quality, coverage in each
            ],
        },
        "harness": {
            "teacher": {"model": "a-teacher", "file": "t.json", "sha256": "12" * 32},
            "student": {"model": f"a-student {ATTACK}", "file": "s.json", "sha256": "34" * 32},
            "rows": [
                harness_row("arc_easy", "acc", teacher=0.61, student=0.58, retention=0.951, low=0.93, high=0.972),
                harness_row(f"task {ATTACK}", "exact_match", filter="strict-match", reason="no finite number"),
            ],
            "left_out": ["hellaswag"],
        },
        "judge": {"model": f"judge {ATTACK}", "wins": 61, "losses": 70, "ties": 30, "inconsistent": 34, "unusable": 5},
        "known_not_covered": ["Safety of responses was not tested.", f"What {ATTACK} does."],
        "reproduction": {
            "policy": {"name": "assistant", "margins": {"recall": 0.9, "quality": -0.02}, "note": ATTACK},
            "policy_name": "assistant",
            "policy_hash": "9f" * 32,
            "files": [
                {"role": "teacher generations", "name": f"T{ATTACK}.jsonl", "sha256": "ab" * 32, "rows": 3200},
                {"role": "student generations", "name": "S.jsonl", "sha256": "cd" * 32, "rows": 1600},
            ],
            "teacher": "a-teacher",
            "student": "a-student",
            "baseline": None,
            "tokenizer": "same",
            "decoding": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 256, "control_temperature": 0.3},
            "prompts": 200,
            "samples": 8,
            "seed": 42,
            "resamples": 2000,
            "word_budget": 24,
            "features": "lexical",
            "versions": {"skill_kd": "0.1.0", "python": "3.11.2", "torch": None},
            "time": "2026-11-24T07:40:00Z",
            "seconds": 412.3,
        },
    }


def bare() -> dict[str, Any]:
    """The least an evaluation can hold: nothing was measured."""
    whole = document()
    unmeasured = metric("recall", "Recall", "ratio", outcome="not_measured", reason="one prompt", prompts=1)
    return {
        **whole,
        "verdict": "INCONCLUSIVE",
        "exit_code": 4,
        "sentence": "INCONCLUSIVE: there is one prompt.",
        "binding_metric": None,
        "reason_code": "too_few_prompts",
        "warnings": [],
        "metrics": [unmeasured],
        "slices": [],
        "lost_modes": [],
        "examples": [],
        "latency": None,
        "curves": {"exposure": None, "calibration": None, "temperature": []},
        "judge": None,
        "harness": None,
        "known_not_covered": [],
        "lengths": None,
        "reproduction": {**whole["reproduction"], "decoding": None, "teacher": None, "student": None, "files": []},
    }


def problems(value: object, kind: Any, place: str = "document") -> list[str]:
    """Yield each place in which ``value`` does not have the annotated type ``kind``."""
    origin, parts = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        return _key_problems(value, kind, place)
    if origin in (list, dict):
        if not isinstance(value, origin):
            return [f"{place}: {value!r} is not {kind}"]
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [each for key, item in items for each in problems(item, parts[-1], f"{place}[{key!r}]")]
    if origin is Literal:
        return [] if value in parts else [f"{place}: {value!r} is not in {parts}"]
    if origin in (Union, UnionType):
        return min((problems(value, part, place) for part in parts), key=len)
    fits = isinstance(value, int | float if kind is float else kind)
    return [] if fits else [f"{place}: {value!r} is not {kind}"]


def _key_problems(value: object, kind: Any, place: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{place}: {value!r} is not {kind}"]
    kinds = get_type_hints(kind)
    missing = [f"{place}: no '{key}'" for key in sorted(kind.__required_keys__ - value.keys())]
    unknown = [f"{place}: unknown '{key}'" for key in sorted(value.keys() - kinds.keys())]
    found = [each for key in kinds.keys() & value.keys() for each in problems(value[key], kinds[key], f"{place}.{key}")]
    return missing + unknown + found
