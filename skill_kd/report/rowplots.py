"""Plots with one row per item, as inline SVG: forest plots and bars.

Labels are above their rows, so that long ones have room and narrow windows still show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from skill_kd.report.axes import Scale, scale, seconds
from skill_kd.report.drawing import WIDTH, Mark, Number, arrow, box, figure, known, line, point, words, x_axis
from skill_kd.report.markup import Markup
from skill_kd.report.numbers import finite, number
from skill_kd.report.tables import Column, table

_ROW, _EDGE = 42, 16


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot, in the units of its axis. ``shown`` is the text at the right end of the row."""

    label: str
    estimate: Number
    low: Number
    high: Number
    shown: str = ""
    status: str = ""
    """One of pass, fail, uncertain, or empty."""


@dataclass(frozen=True)
class Bar:
    """A bar from zero, with an optional interval."""

    label: str
    value: Number
    low: Number = None
    high: Number = None


def forest_plot(
    title: str, description: str, rows: Sequence[Interval], *, axis: str,
    lines: Sequence[Mark] = (), limits: tuple[float, float] | None = None,
) -> Markup:  # fmt: skip
    """Return estimates with their intervals on one axis, one row each, and ``lines`` through all rows.

    ``limits`` bounds the axis. An interval that extends beyond it ends in an arrow.
    """
    values = known(chain(*((row.estimate, row.low, row.high) for row in rows), (seconds(each.at) for each in lines)))
    low, high = limits or (float("-inf"), float("inf"))
    top, bottom = 34, 34 + _ROW * max(1, len(rows))
    x = scale((min(max(value, low), high) for value in values), _EDGE, WIDTH - _EDGE, 6)
    drawing = x_axis(x, top, bottom, axis)
    drawing += chain(*(_reference(x, each, top, bottom) for each in lines))
    drawing += chain(*(_interval(row, x, top + _ROW * index) for index, row in enumerate(rows)))
    numbers = (Column(name, numeric=True) for name in ("Estimate", "Low", "High"))
    columns = [Column("Row"), *numbers, Column("With its unit"), Column("Outcome")]
    data = [[row.label, row.estimate, row.low, row.high, row.shown, row.status] for row in rows]
    return figure(
        title, description, bottom + 46, drawing, table(f"{title}: numbers, on the plot's axis", columns, data)
    )


def _reference(x: Scale, each: Mark, top: float, bottom: float) -> list[Markup]:
    at = x(each.at)
    anchor = "end" if at > WIDTH - 110 else "start" if at < 110 else "middle"
    return [line(at, top - 12, at, bottom, "ref"), words(at, top - 18, each.label, 200, "t", anchor)]


def _interval(row: Interval, x: Scale, top: float) -> list[Markup]:
    y, color = top + 29, row.status or "plain"
    marks = [
        words(_EDGE, top + 16, row.label, 350, "h"),
        words(WIDTH - _EDGE, top + 16, row.shown, 280, "h t", "end"),
    ]
    low, high, estimate = finite(row.low), finite(row.high), finite(row.estimate)
    if low is not None and high is not None:
        marks.append(line(x(low), y, x(high), y, f"ci {color}"))
        for end in (low, high):
            way = x.outside(end)
            marks.append(arrow(x(end), y, way, color) if way else line(x(end), y - 5, x(end), y + 5, f"ci {color}"))
    if estimate is not None and not x.outside(estimate):
        marks.append(point(x(estimate), y, 1, f"{row.label}: {row.shown}", color))
    return marks


def bar_plot(title: str, description: str, bars: Sequence[Bar], *, axis: str) -> Markup:
    """Return horizontal bars from zero, one row each."""
    values = known(chain(*((each.value, each.low, each.high) for each in bars)))
    top, bottom = 12, 12 + _ROW * max(1, len(bars))
    x = scale([0.0, *values], _EDGE, WIDTH - _EDGE, 6)
    drawing = x_axis(x, top, bottom, axis)
    drawing += chain(*(_bar(each, x, top + _ROW * index) for index, each in enumerate(bars)))
    columns = [Column("Row"), *(Column(name, numeric=True) for name in ("Value", "Low", "High"))]
    data = table(f"{title}: numbers", columns, [[each.label, each.value, each.low, each.high] for each in bars])
    return figure(title, description, bottom + 46, drawing, data)


def _bar(bar: Bar, x: Scale, top: float) -> list[Markup]:
    marks = [
        words(_EDGE, top + 16, bar.label, 480, "h"),
        words(WIDTH - _EDGE, top + 16, number(bar.value), 140, "h t", "end"),
    ]
    value, low, high = finite(bar.value), finite(bar.low), finite(bar.high)
    if value is not None:
        marks.append(box(x(0.0), x(value), top + 22, top + 34, f"{bar.label}: {number(value)}"))
    if low is not None and high is not None:
        marks.append(line(x(low), top + 28, x(high), top + 28, "ci plain"))
    return marks
