"""The decision page: an evaluation as one HTML file, from the verdict to the facts for reproducing it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from skill_kd.report.evaluation_document import (
    EvaluationDocument,
    FlaggedExample,
    Lengths,
    LostMode,
    MetricRow,
    Verdict,
)
from skill_kd.report.harness import harness
from skill_kd.report.markup import Child, Markup, join, tag
from skill_kd.report.metrics import metric_parts, shown
from skill_kd.report.numbers import MISSING, finite, number, percent, size
from skill_kd.report.page import (
    PageSection,
    bullets,
    folded,
    page,
    pairs,
    paragraph,
    sample,
    side_by_side,
    verdict,
)
from skill_kd.report.plots import Line, Spot, line_plot, scatter_plot
from skill_kd.report.shown_document import (
    SIDES,
    SIDES_AND_BASELINE,
    CalibrationCurve,
    ExposureCurve,
    JudgeCounts,
    Latency,
)
from skill_kd.report.tables import Cell, Column, table

TONES: dict[Verdict, str] = {"GO": "pass", "NO-GO": "fail", "INCONCLUSIVE": "uncertain"}


def decision_page(evaluation: EvaluationDocument) -> str:
    """Return the page of one evaluation (the document of ``evaluation.json``, format 1)."""
    word, reproduction = evaluation["verdict"], evaluation["reproduction"]
    student, teacher = reproduction["student"] or "the student", reproduction["teacher"] or "its teacher"
    title = f"May {student} replace {teacher}?"
    banner = verdict(word, TONES[word], _sentence(evaluation))
    head = join([tag("h1", title), banner, *_warnings(evaluation["warnings"])])
    sections = [
        PageSection("metrics", "Metrics behind the verdict", metric_parts(evaluation["metrics"]), "Metrics"),
        PageSection("trade", "Quality against coverage, by temperature", _trade(evaluation), "By temperature"),
        *harness(evaluation["harness"]),
        PageSection("speed", "Speed and memory", _speed(evaluation["latency"]), "Speed"),
        PageSection("slices", "Worst slices", _slices(evaluation), "Slices"),
        PageSection("lost", "Lost modes", _lost(evaluation["lost_modes"]), "Lost modes"),
        PageSection("flagged", "Flagged responses", _flagged(evaluation["examples"]), "Flagged"),
        PageSection("curves", "Lengths and curves", _curves(evaluation), "Curves"),
        PageSection("uncovered", "What is not covered", [_or_none(evaluation["known_not_covered"])], "Not covered"),
        PageSection("repeat", "Reproduction", _reproduction(evaluation)),
    ]
    made = f"skill-kd {reproduction['versions'].get('skill_kd', '')}, {reproduction['time']}"
    foot = f"{made}. This file loads nothing from the network."
    return page(f"{word}: {title}", head, sections, data=evaluation, foot=foot)


def _sentence(evaluation: EvaluationDocument) -> str:
    words = str(evaluation["sentence"]).removeprefix(f"{evaluation['verdict']}: ")
    return words[:1].upper() + words[1:]


def _warnings(warnings: Sequence[str]) -> list[Markup]:
    return [tag("div", tag("strong", "Warnings"), bullets(warnings), class_="notice")] if warnings else []


def _or_none(items: Sequence[Child]) -> Markup:
    return bullets(items) if items else paragraph("None.")


# --- quality, speed, slices -------------------------------------------------------------------------------------------


def _trade(evaluation: EvaluationDocument) -> list[Markup]:
    spots = [
        Spot(each["who"], each["coverage"], each["quality"], f"T = {each['temperature']:g}")
        for each in evaluation["curves"]["temperature"] or ()
        if finite(each["coverage"]) is not None and finite(each["quality"]) is not None
    ]
    if not spots:
        return [paragraph("Not drawn: the curve needs samples at several temperatures."), *_judge(evaluation["judge"])]
    spots.sort(key=lambda spot: spot.series != "teacher")
    about = "Each point is one sampling temperature. Up and to the right is better. The axes do not start at zero."
    return [
        scatter_plot("Quality against coverage", about, spots, x="coverage", y="quality"),
        *_judge(evaluation["judge"]),
    ]


def _judge(judge: JudgeCounts | None) -> list[Markup]:
    if judge is None:
        return []
    text = (
        f"The judge {judge['model']} preferred the student {judge['wins']} times and the teacher {judge['losses']} "
        f"times, with {judge['ties']} ties. {judge['inconsistent']} answers changed with the order of the two "
        "responses; each of them counts as a tie. On "
        f"{judge.get('unusable', 0)} prompts its answers could not be used; those do not count."
    )
    return [paragraph(text)]


def _speed(latency: Latency | None) -> list[Markup]:
    if latency is None:
        return [paragraph("Not measured.")]
    cost = latency["cost_per_1k"]
    columns = [
        Column("Model"),
        *(Column(name, numeric=True) for name in ("p50, s", "Low", "High", "p95, s", "Tokens/s", "Memory")),
    ]
    columns += [Column(f"Cost per 1k requests, {cost['currency']}", numeric=True)] if cost else []
    rows = [
        [
            who,
            side["p50_s"],
            side["p50_low_s"],
            side["p50_high_s"],
            side["p95_s"],
            side["tokens_per_s"],
            Cell(size(memory), finite(memory)),
            *price,
        ]
        for who in SIDES
        for side, price in [(latency[who], [cost[who]] if cost else [])]
        for memory in [side["memory_bytes"]]
    ]
    costs = [] if cost else [paragraph("Cost was not measured.")]
    about = "Low and high are the 95% bounds of the median (p50). The two models took turns."
    return [table(f"Latency per request on {setting(latency)}", columns, rows), paragraph(about), *costs]


def setting(latency: Latency) -> str:
    """Return the hardware and the settings of the latency measurement, as text."""
    load = "" if latency["load"] is None else f", load {number(latency['load'], 1)} before the evaluation"
    dtypes = latency["dtypes"]
    return (
        f"{latency['hardware']}, batch {latency['batch']}, {latency['concurrency']} at a time, "
        f"{latency['responses']} responses each, student in {dtypes['student']}, teacher in {dtypes['teacher']}{load}"
    )


def _slices(evaluation: EvaluationDocument) -> list[Markup]:
    slices, metrics = evaluation["slices"], {metric["name"]: metric for metric in evaluation["metrics"]}
    if not slices:
        return [paragraph("No slice has enough prompts.")]
    names = [name for name in metrics if any(finite(each["figures"].get(name)) is not None for each in slices)]
    names = [name for name in names if metrics[name]["role"] == "blocking"] or names
    columns = [
        Column("Slice"),
        Column("Prompts", numeric=True),
        *(Column(metrics[name]["title"], numeric=True) for name in names),
    ]
    rows = [[each["name"], each["prompts"], *_slice_cells(each["figures"], names, metrics)] for each in slices]
    return [
        table(
            "Slices, worst first. Slices with few prompts are noisy, so no intervals are shown.",
            columns,
            rows,
            filtered=True,
        )
    ]


def _slice_cells(
    figures: Mapping[str, float | None], names: Iterable[str], metrics: Mapping[str, MetricRow]
) -> list[Cell]:
    return [Cell(shown(figures.get(name), metrics[name]), finite(figures.get(name))) for name in names]


# --- texts ------------------------------------------------------------------------------------------------------------


def _lost(modes: Sequence[LostMode]) -> list[Markup]:
    if not modes:
        return [paragraph("No lost modes were found.")]
    about = paragraph("Teacher responses that are far from every student response, and the student's responses.")
    return [about, *_first_three([_pair(mode, f"recall {percent(mode['recall'], 0)}") for mode in modes])]


def _flagged(examples: Sequence[FlaggedExample]) -> list[Markup]:
    return _first_three([_pair(each, ", ".join(each["flags"])) for each in examples]) or [paragraph("None.")]


def _first_three(parts: Sequence[Markup]) -> list[Markup]:
    rest = parts[3:]
    return [*parts[:3], *([folded(f"{len(rest)} more", *rest)] if rest else [])]


def _pair(each: LostMode | FlaggedExample, note: str) -> Markup:
    sides = [(who.capitalize(), [sample(text) for text in each[who]] or [paragraph("None.")]) for who in SIDES]
    return tag("article", sample(each["prompt"], f"Prompt ({note})"), side_by_side(*sides))


# --- lengths, curves --------------------------------------------------------------------------------------------------


def _curves(evaluation: EvaluationDocument) -> list[Markup]:
    curves = evaluation["curves"]
    return [_lengths(evaluation["lengths"]), *_exposure(curves["exposure"]), *_calibration(curves["calibration"])]


def _lengths(lengths: Lengths | None) -> Markup:
    if lengths is None:
        return paragraph("Lengths were not measured.")
    columns = [Column("Model"), *(Column(name, numeric=True, digits=1) for name in ("10%", "Median", "90%", "Mean"))]
    rows = [
        [who, each["p10"], each["p50"], each["p90"], each["mean"]]
        for who in SIDES_AND_BASELINE
        if (each := lengths[who])
    ]
    return table(f"Length of responses, {lengths['unit']}", columns, rows)


def _exposure(curve: ExposureCurve | None) -> list[Markup]:
    if curve is None:
        return [paragraph("Exposure bias was not measured: it needs both models.")]
    lines = [
        Line("teacher's prefixes", curve["positions"], curve["teacher_prefixes"]),
        Line("student's own prefixes", curve["positions"], curve["student_prefixes"], curve["low"], curve["high"]),
    ]
    about = "Forward KL of the next token by position. If only the student's own prefixes rise, its errors accumulate."
    return [line_plot("Exposure bias", about, lines, x="position, tokens", y=f"excess KL, {curve['unit']}", zero=True)]


def _calibration(curve: CalibrationCurve | None) -> list[Markup]:
    if curve is None:
        return []
    about = (
        "Accuracy of the student's likeliest next token, by its confidence. On the diagonal, both are equal. "
        f"Expected calibration error: student {number(curve['ece'])}, teacher {number(curve['teacher_ece'])}."
    )
    line = Line("student", curve["confidence"], curve["accuracy"])
    plot = line_plot("Calibration", about, [line], x="confidence", y="accuracy", zero=True, diagonal=True)
    columns = [Column(name, numeric=True) for name in ("Confidence", "Accuracy", "Tokens")]
    counts = table(
        "Tokens behind each point",
        columns,
        list(zip(curve["confidence"], curve["accuracy"], curve["tokens"], strict=True)),
    )
    return [plot, folded("Tokens behind each point", counts)]


# --- reproduction -----------------------------------------------------------------------------------------------------


def _reproduction(evaluation: EvaluationDocument) -> list[Markup]:
    facts = evaluation["reproduction"]
    decoding = facts["decoding"].items() if facts["decoding"] else ()
    items: list[tuple[Child, Child]] = [
        ("Policy", join([facts["policy_name"], " ", tag("code", facts["policy_hash"])])),
        (
            "Models",
            ", ".join(f"{who} {facts[who] or MISSING}" for who in SIDES_AND_BASELINE),
        ),
        ("Tokenizers", facts["tokenizer"]),
        ("Decoding", ", ".join(f"{key} {value}" for key, value in decoding) or "not recorded"),
        (
            "Samples",
            f"{facts['prompts']} prompts, {facts['samples']} student responses each, {facts['word_budget']} words "
            "compared",
        ),
        ("Seed", f"{facts['seed']}, {facts['resamples']} resamples"),
        ("Features", facts["features"]),
        ("Versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items() if version)),
        ("Created", f"{facts['time']}, {number(facts['seconds'])} s"),
        ("Reason code", tag("code", evaluation["reason_code"])),
    ]
    files = [[each["role"], each["name"], each["rows"], Cell(tag("code", each["sha256"]))] for each in facts["files"]]
    policy = sample(json.dumps(facts["policy"], indent=2))
    return [
        pairs(items),
        table("Files read", ["Role", "Name", Column("Rows", numeric=True), "SHA-256"], files),
        folded("Full policy", policy),
    ]
