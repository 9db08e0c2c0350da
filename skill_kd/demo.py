"""A full run with built-in inputs: a packaged teacher and packaged prompts. It needs no model hub and no GPU."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skill_kd.errors import SkillKDError, command
from skill_kd.evaluate import Request, evaluate
from skill_kd.jobs.manifest import RESOLVED
from skill_kd.jobs.run import RunResult, run
from skill_kd.kd.terminal import visible
from skill_kd.render import examples_folder
from skill_kd.spec import Spec
from skill_kd.spec.file import parse_spec, read_values

PROMPTS = Path(__file__).with_name("demo_prompts.jsonl")
JUDGED, SAMPLES = 8, 2
"""Held-out prompts for the gate, and responses per prompt. They take about a minute, and are too few for a verdict."""
_COLUMNS = {
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "held_out_nll": "held-out NLL",
    "length": "length",
    "repetition": "repetition",
    "distinct_2": "distinct-2",
    "ended": "ended",
}
_LEGEND = """\
forward KL: KL(teacher ‖ student) on teacher samples; reverse KL: KL(student ‖ teacher) on student samples;
held-out NLL: of teacher samples; all in nats per token, on held-out prompts, at temperature 1.
length: tokens per response, cut at the rollout limit. repetition: share of repeated 4-grams.
ended: share of responses that end by themselves."""


@dataclass(frozen=True)
class Judged:
    """The gate's result on a small budget, which shows the report but cannot give a firm verdict."""

    sentence: str
    """The verdict and its reason, or the reason why there is none."""
    verdict: str | None = None
    report: Path | None = None
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """Return verdict, sentence and the report's path."""
        report = None if self.report is None else str(self.report)
        return {"verdict": self.verdict, "sentence": self.sentence, "report": report}


@dataclass(frozen=True)
class DemoResult:
    """The demo's measures of the teacher and of the student before, after the warm start and after MiniLLM."""

    run: RunResult
    rows: dict[str, dict[str, float]]
    completions: list[dict[str, str]]
    """Dicts with the keys prompt, teacher, before, after."""
    judged: Judged

    @property
    def seconds(self) -> float:
        """Wall-clock time of training and evaluation."""
        return self.run.seconds + self.judged.seconds

    def to_json(self) -> dict[str, object]:
        """Return the content of ``table`` as data."""
        return {
            "figures": self.rows,
            "completions": self.completions,
            "student": str(self.run.student),
            "evaluation": self.judged.to_json(),
            "seconds": round(self.seconds, 1),
        }

    def table(self) -> str:
        """Return the measures, the completions side by side, and the student's path."""
        width = max(map(len, self.rows))
        lines = ["", " " * width + "".join(f"{title:>14}" for title in _COLUMNS.values())]
        for name, figures in self.rows.items():
            lines.append(f"{name:<{width}}" + "".join(f"{figures[column]:>14.3f}" for column in _COLUMNS))
        lines += ["", _LEGEND]
        for completion in self.completions:
            lines += ["", _paragraph("Prompt", completion["prompt"])]
            lines += [_paragraph(who, completion[who]) for who in ("teacher", "before", "after")]
        lines += ["", _paragraph("Gate", self.judged.sentence)]
        lines += [f"Report   {self.judged.report}"] * (self.judged.report is not None)
        return "\n".join([*lines, f"Student  {self.run.student}  ({self.seconds:.0f} s)"])


def _paragraph(who: str, text: str) -> str:
    return textwrap.fill(visible(" ".join(text.split())), 110, initial_indent=f"{who:<9}", subsequent_indent=" " * 9)


def demo_spec(layers: int, seed: int, name: str) -> Spec:
    """Return ``examples/demo.yaml`` with this package's prompts, for a student of ``layers`` layers.

    Raises:
        SpecError: ``layers`` or ``seed`` is out of range.
    """
    values = read_values(examples_folder() / "demo.yaml")
    student = {**values["student"], "from_teacher": {"layers": layers}}
    changes = {"name": name, "seed": seed, "student": student}
    return parse_spec({**values, **changes, "data": {**values["data"], "train": str(PROMPTS)}}, source="demo")


def demo(
    layers: int = 24,
    seed: int = 42,
    out: Path = Path("runs"),
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> DemoResult:
    """Run the demo in a new folder under ``out`` and evaluate its student. Raises as ``run.run``.

    ``progress`` receives the number of evaluated prompts and their total.
    """
    spec = demo_spec(layers, seed, _free_name(out))
    try:
        result = run(spec, out)
    except SkillKDError as error:
        if (written := out / spec.name / RESOLVED).is_file():  # `demo` has no --resume: it always starts a new run
            resume = command("skill-kd", "run", written, "--runs", out, "--resume")
            error.add_note(f"to resume this demo: {resume}")
        raise
    summary: Any = result.summary
    measures, samples = summary["measures"], summary["samples"]
    moments = {moment.partition(":")[0]: moment for moment in measures}  # the last one of each stage
    before, warm, after = (measures[moments[stage]] for stage in ("before", "warm_start", "distill"))
    teacher = {column: before.get(f"teacher_{column}", 0.0) for column in _COLUMNS}
    completions = [
        {"prompt": first["prompt"], "teacher": first["teacher"], "before": first["student"], "after": last["student"]}
        for first, last in zip(samples[moments["before"]], samples[moments["distill"]], strict=True)
    ]
    rows = {"teacher": teacher, "student before": before, "after warm start": warm, "after MiniLLM": after}
    return DemoResult(result, rows, completions, _judged(result, progress))


def _judged(result: RunResult, progress: Callable[[int, int], None]) -> Judged:
    # The trainer was a separate process, so its models no longer take memory.
    asked = Request(str(result.folder), changes={"samples": SAMPLES}, held_out=JUDGED, latency=False, trust_run=True)
    begun = time.monotonic()
    try:
        found, written = evaluate(asked, progress)
    except SkillKDError as error:  # keep the trained student
        return Judged(f"not evaluated: {error}; to do so later: {command('skill-kd', 'evaluate', result.folder)}")
    return Judged(found.decision.sentence, found.decision.verdict, written.report, time.monotonic() - begun)


def _free_name(out: Path) -> str:
    """Return "demo", or the first free "demo-N"; every demo keeps its run folder."""
    names = ("demo", *(f"demo-{number}" for number in range(2, 10_000)))
    return next(name for name in names if not (out / name).exists())
