"""The metrics of an evaluation on the decision page: a plot of all metrics against their margins, and tables."""

from __future__ import annotations

from collections.abc import Sequence

from skill_kd.report.drawing import Mark
from skill_kd.report.evaluation_document import Form, MetricRow, Outcome
from skill_kd.report.markup import Markup, join, tag
from skill_kd.report.numbers import finite, number, percent, points
from skill_kd.report.page import badge, bullets, folded
from skill_kd.report.rowplots import Interval, forest_plot
from skill_kd.report.shown_document import SIDES_AND_BASELINE
from skill_kd.report.tables import Cell, Column, table

_OUTCOMES: dict[Outcome, tuple[str, str]] = {
    "pass": ("pass", "passed"),
    "fail": ("fail", "failed"),
    "uncertain": ("uncertain", "uncertain"),
    "insensitive": ("uncertain", "insensitive"),
    "not_measured": ("uncertain", "not measured"),
    "shown": ("plain", "shown only"),
}
_FORMS: dict[Form, str] = {
    "retention": "0 = collapsed control, 1 = teacher",
    "ratio": "1 = like the teacher",
    "difference": "0 = like the teacher",
    "value": "",
}


def shown(value: object, metric: MetricRow) -> str:
    """Return a value of ``metric`` with its unit."""
    unit = f" {metric['unit']}" if _has_unit(metric) and finite(value) is not None else ""
    return _bare(value, metric) + unit


def _has_unit(metric: MetricRow) -> bool:
    return metric["form"] not in ("retention", "ratio") and metric["unit"] in ("nats/token", "words")


def _bare(value: object, metric: MetricRow) -> str:
    difference = metric["form"] == "difference"
    if metric["unit"] == "share" and metric["form"] not in ("retention", "ratio"):
        return points(value) if difference else percent(value)
    return number(value, 3, sign=difference)


def _mean(value: object, metric: MetricRow) -> str:
    """Return a mean behind a metric, in the unit of measurement."""
    return percent(value) if metric["unit"] == "share" else number(value)


def metric_parts(metrics: Sequence[MetricRow]) -> list[Markup]:
    """Return the forest plot and the tables of all metrics."""
    rows = [row for metric in metrics if (row := _against_margin(metric))]
    plot = forest_plot(
        "Every metric against its margin",
        "Each metric is scaled so that 0 is like the teacher and −1 is its margin; right is better. A line joins the "
        "two one-sided 95% bounds. A metric passes if its whole line is to the right of the margin.",
        rows, axis="0 = like the teacher, −1 = at the margin",
        lines=[Mark(-1.0, "margin"), Mark(0.0, "like the teacher")], limits=(-4.0, 1.5),
    )  # fmt: skip
    absent = [each for each in metrics if each["outcome"] == "not_measured" and each["role"] == "advisory"]
    measured = [each for each in metrics if each not in absent]
    return [
        *([plot] if rows else []),
        _verdict_table(measured),
        folded("Means behind these metrics", _means_table(measured)),
        *([folded(f"Not measured ({len(absent)})", bullets(list(map(_absence, absent))))] if absent else []),
    ]


def _absence(metric: MetricRow) -> str:
    return f"{metric['title']}: {metric['reason'] or 'no reason given'}"


def _against_margin(metric: MetricRow) -> Interval | None:
    """Return the metric's row, scaled to 0 for a perfect student and -1 at the margin; None if either is missing."""
    null, margin = finite(metric["null"]), finite(metric["margin"])
    way = 1.0 if metric["better"] == "high" else -1.0
    if null is None or margin is None or way * (null - margin) <= 0 or finite(metric["estimate"]) is None:
        return None

    def place(value: float | None) -> float | None:
        return None if value is None else way * (value - null) / abs(margin - null)

    low, high = place(finite(metric["low"])), place(finite(metric["high"]))
    low, high = (low, high) if way > 0 else (high, low)
    words = f"{shown(metric['estimate'], metric)}, margin {shown(margin, metric)}"
    label = metric["title"] + (" (advisory)" if metric["role"] == "advisory" else "")
    tone, _ = _OUTCOMES[metric["outcome"]]
    return Interval(label, place(finite(metric["estimate"])), low, high, words, tone)


def _verdict_table(metrics: Sequence[MetricRow]) -> Markup:
    numeric = ("Estimate", "Low", "High", "Margin", "Perfect student", "Control")
    columns = [Column("Metric"), Column("Outcome"), *(Column(title, numeric=True) for title in numeric)]
    about = "Low and high are one-sided 95% bounds. The control is a teacher that lost diversity on purpose."
    return table(about, columns, [_verdict_row(metric) for metric in metrics], filtered=len(metrics) > 8)


def _verdict_row(metric: MetricRow) -> list[object]:
    tone, word = _OUTCOMES[metric["outcome"]]
    unit = metric["unit"] if _has_unit(metric) else ""
    reads = ", ".join(filter(None, (metric["role"], unit, _FORMS[metric["form"]], f"{metric['better']} is better")))
    name = join([metric["title"], tag("br"), tag("small", reads)])
    reason = [tag("br"), tag("small", metric["reason"])] if metric["reason"] else []
    bounded = (metric["estimate"], metric["low"], metric["high"])
    values = (*bounded, metric["margin"], metric["null"], metric["control"])
    cells = [Cell(_bare(value, metric), finite(value)) for value in values]
    return [Cell(name), Cell(join([badge(word, tone), *reason])), *cells]


def _means_table(metrics: Sequence[MetricRow]) -> Markup:
    sides = [side for side in SIDES_AND_BASELINE if any(metric[side] is not None for metric in metrics)]
    numeric = (*(side.capitalize() for side in sides), "Prompts", "Detectable change", "Prompts needed")
    rows = [
        [
            Cell(join([metric["title"], tag("br"), tag("small", metric["unit"])])),
            *(Cell(_mean(metric[side], metric), finite(metric[side])) for side in sides),
            metric["prompts"],
            Cell(_bare(metric["detectable"], metric).lstrip("+"), finite(metric["detectable"])),
            metric["prompts_needed"],
        ]
        for metric in metrics
    ]
    about = "Means of each model, and the smallest change that this number of prompts can detect"
    return table(about, [Column("Metric"), *(Column(title, numeric=True) for title in numeric)], rows)
