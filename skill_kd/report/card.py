"""The model card: the student's ``README.md``, with its metrics in the format of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from skill_kd.files import read_input, refuse_skill_folder, write_atomically
from skill_kd.kd.terminal import visible
from skill_kd.report.evaluation import setting
from skill_kd.report.evaluation_document import EvaluationDocument, MetricRow, Reproduction
from skill_kd.report.metrics import shown
from skill_kd.report.numbers import finite, number, size
from skill_kd.report.shown_document import SIDES, SIDES_AND_BASELINE, Latency, ModelSpeed, Side

_SPECIAL = re.compile(r"([\\`*_\[\]<>&|~$@]|:(?=//)|\.(?<=www\.))", re.IGNORECASE)
_FIRST = re.compile(r"^(\d*)([#+\-=.)])(?=[#+\-=.)]*(?:\s|$))")
"""Characters that start a heading, a list or a horizontal rule at the beginning of a line."""


@dataclass(frozen=True)
class TrainingFacts:
    """The card's facts about the training; None is skipped."""

    teacher: str | None = None
    base_model: str | None = None
    """Hub id, which the hub turns into a link; never a folder."""
    objective: str | None = None
    """As text, for example "warm start with forward kl, then distill with minillm"."""
    dataset: str | None = None
    license: str | None = None
    language: Sequence[str] = ()
    spec_hash: str | None = None


def model_card(evaluation: EvaluationDocument, name: str, training: TrainingFacts | None = None) -> str:
    """Return the card of the student ``name``: YAML front matter with a ``model-index``, then text."""
    made = training or TrainingFacts()
    front = yaml.safe_dump(_front_matter(evaluation, name, made), sort_keys=False, allow_unicode=True, width=10**6)
    parts = [
        f"# {plain(name)}",
        _origin(made),
        "## Verdict",
        _verdict(evaluation),
        "\n".join(f"- {plain(each)}" for each in evaluation["warnings"]),
        "## Coverage and quality",
        _metrics(evaluation),
        "## Speed",
        _speed(evaluation["latency"]),
        "## What is not covered",
        "\n".join(f"- {plain(each)}" for each in evaluation["known_not_covered"])
        or "Nothing is listed here. This does not mean that the evaluation covers everything.",
        "## How this was measured",
        _measured(evaluation["reproduction"]),
    ]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def plain(text: object) -> str:
    """Return ``text`` as one line of Markdown with all markup escaped."""
    return _FIRST.sub(r"\1\\\2", _SPECIAL.sub(r"\\\1", _one_line(text)))


def _one_line(text: object) -> str:
    return " ".join(visible(text).split())


def _front_matter(evaluation: EvaluationDocument, name: str, made: TrainingFacts) -> dict[str, object]:
    fields: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": made.license,
        "language": [*made.language],
        "base_model": made.base_model,
        "tags": ["knowledge-distillation", "skill-kd"],
    }
    known = {key: _one_line(value) if isinstance(value, str) else value for key, value in fields.items() if value}
    if results := _results(evaluation):
        known["model-index"] = [{"name": _one_line(name), "results": [results]}]
    return known


def _results(evaluation: EvaluationDocument) -> dict[str, object] | None:
    metrics = [
        {
            "type": _one_line(metric["name"]),
            "value": value,
            "name": _one_line(f"{metric['title']} ({metric['form']})"),
        }
        for metric in evaluation["metrics"]
        if (value := finite(metric["estimate"])) is not None and metric["outcome"] != "insensitive"
    ]
    if not metrics:
        return None
    dataset = {"name": f"{evaluation['reproduction']['prompts']} private prompts", "type": "private"}
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _verdict(evaluation: EvaluationDocument) -> str:
    policy = plain(evaluation["reproduction"]["policy_name"])
    return f"**{plain(evaluation['verdict'])}** with the policy {policy}. {plain(evaluation['sentence'])}"


def _origin(made: TrainingFacts) -> str:
    facts = [
        made.teacher and f"It was distilled from {plain(made.teacher)}",
        made.base_model and f"it started as {plain(made.base_model)}",
        made.objective and f"the objective was {plain(made.objective)}",
        made.dataset and f"the prompts came from {plain(made.dataset)}",
        made.spec_hash and f"the hash of the spec is `{plain(made.spec_hash)}`",
    ]
    words = "; ".join(each for each in facts if each)
    about = "A language model made by knowledge distillation with skill-kd."
    return f"{about} {words[0].upper()}{words[1:]}." if words else about


def _metrics(evaluation: EvaluationDocument) -> str:
    rows = [
        f"| {plain(metric['title'])} | {_cell(metric, metric['estimate'])} "
        f"| {_cell(metric, metric['low'])} to {_cell(metric, metric['high'])} | {_cell(metric, metric['margin'])} "
        f"| {_levels(metric)} | {plain(metric['outcome'].replace('_', ' '))} |"
        for metric in evaluation["metrics"]
        if finite(metric["estimate"]) is not None
    ]
    names = ("Metric", "Estimate", "One-sided 95% bounds", "Margin", "Teacher", "Student", "Undistilled", "Outcome")
    head = f"| {' | '.join(names)} |\n| --- | {'---: | ' * 6}--- |"
    absent = [metric for metric in evaluation["metrics"] if metric["outcome"] == "not_measured"]
    absent = [metric for metric in absent if metric["role"] == "blocking"]
    missing = [f"- Not measured: {plain(metric['title'])}. {plain(metric['reason'])}." for metric in absent]
    table = "\n".join([head, *rows]) if rows else "Not measured."
    return "\n\n".join([table, *(["\n".join(missing)] if missing else [])])


def _levels(metric: MetricRow) -> str:
    """Return the means of both sides and of the undistilled student; a ratio of two metrics has none."""
    if metric["name"] in ("kl_ratio", "exposure"):
        return "– | – | –"
    return " | ".join(plain(number(metric[side])) for side in SIDES_AND_BASELINE)


def _cell(metric: MetricRow, value: float | None) -> str:
    return plain(shown(value, metric))


def _speed(latency: Latency | None) -> str:
    if latency is None:
        return "Latency was not measured."
    return plain(f"On {setting(latency)}: {'; '.join(_pace(who, latency[who]) for who in reversed(SIDES))}.")


def _pace(who: Side, side: ModelSpeed) -> str:
    bounds = f"({number(side['p50_low_s'])} to {number(side['p50_high_s'])}, 95%)"
    times = f"p50 {number(side['p50_s'])} s {bounds}, p95 {number(side['p95_s'])} s"
    return f"{who} {times}, {number(side['tokens_per_s'])} tokens/s, {size(side['memory_bytes'])}"


def _measured(facts: Reproduction) -> str:
    setup = f"{facts['prompts']} prompts, {facts['samples']} samples each, seed {facts['seed']}, {facts['time']}."
    where = "The full report is `report.html` in the evaluation's folder."
    return f"{plain(setup)} Policy hash `{plain(facts['policy_hash'])}`. {where}"


# --- on disk ----------------------------------------------------------------------------------------------------------

_MARK = "<!-- Written by skill-kd evaluate. It replaces this file, unless you edit it. SHA-256 of the text above: "
_OLD_MARK = (
    "<!-- Written by skill-kd evaluate, which replaces it; edited, it is left alone. SHA-256 of what stands above: "
)


def write_card(card: str, student: Path, other: Path) -> Path | None:
    """Write the card as ``README.md`` in the student's folder, and return its path.

    A file that a person wrote or edited is never replaced. The card is then ``MODEL_CARD.md`` next to it. If that is
    taken too, or the student's folder cannot be written, it is ``MODEL_CARD.md`` in ``other``. The result is None if
    the card cannot be written anywhere.
    """
    whole = f"{card}\n{_MARK}{_sha256(card)} -->\n"
    for path in (student / "README.md", student / "MODEL_CARD.md", other / "MODEL_CARD.md"):
        with contextlib.suppress(OSError):
            refuse_skill_folder(path)
            if not os.path.lexists(path) or _ours(path):
                write_atomically(path, whole)
                return path
    return None


def _ours(path: Path) -> bool:
    try:
        text = read_input(path).decode()
    except UnicodeDecodeError:
        return False
    parts = (text.rpartition(f"\n{mark}") for mark in (_MARK, _OLD_MARK))
    return any(found and rest == f"{_sha256(card)} -->\n" for card, found, rest in parts)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
