"""Plots over two axes as inline SVG: lines over numbers or time, scatter, histogram.

A missing value leaves a gap; nothing is interpolated. Plots with one row per item are in `report.rowplots`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from skill_kd.report.axes import Position, Scale, scale, seconds, shown_position
from skill_kd.report.drawing import (
    LEFT,
    RIGHT,
    WIDTH,
    Mark,
    Number,
    box,
    figure,
    known,
    legend,
    line,
    nothing,
    path,
    point,
    words,
    x_axis,
    y_axis,
)
from skill_kd.report.markup import Markup
from skill_kd.report.numbers import finite, number
from skill_kd.report.tables import Column, table

__all__ = ["Line", "Mark", "Spot", "histogram", "line_plot", "scatter_plot"]


@dataclass(frozen=True)
class Line:
    """A line of a line plot: ``y`` over ``x``, with an interval from ``low`` to ``high`` if both are given."""

    name: str
    x: Sequence[Position]
    y: Sequence[Number]
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
    joined: bool = True
    """If False, only points are drawn."""

    def rows(self) -> list[tuple[Position, float | None, float | None, float | None]]:
        """Return position, value, low and high of every point, with None for numbers that are not finite."""
        none = [None] * len(self.x)
        columns = zip(self.x, self.y, self.low or none, self.high or none, strict=True)
        return [(at, finite(value), finite(low), finite(high)) for at, value, low, high in columns]


@dataclass(frozen=True)
class Spot:
    """A point of a scatter plot; points of one ``series`` are joined in the given order."""

    series: str
    x: float
    y: float
    label: str = ""


def line_plot(
    title: str, description: str, lines: Sequence[Line], *, x: str, y: str,
    changes: Sequence[Mark] = (), levels: Sequence[Mark] = (), zero: bool = False, diagonal: bool = False,
) -> Markup:  # fmt: skip
    """Return a plot of lines over a number or over time.

    ``x`` and ``y`` are the axis titles with units. ``changes`` are marks on the x axis, ``levels`` on the y axis.
    ``zero`` makes the y axis start at 0. ``diagonal`` draws y = x.
    """
    names = [each.name for each in lines] if len(lines) > 1 else []
    top, bottom = 68 if names else 40, 330
    heights = known(chain(*(row[1:] for each in lines for row in each.rows()), (seconds(level.at) for level in levels)))
    up = scale([*heights, *([0.0] if zero else [])], bottom, top)
    across = scale(
        [*chain(*(each.x for each in lines)), *(change.at for change in changes)], LEFT, WIDTH - RIGHT, tight=True
    )
    drawing = [*x_axis(across, top, bottom, x), *y_axis(up, y), *legend(names, 18)]
    if diagonal:
        low, high = max(across.low, up.low), min(across.high, up.high)
        drawing.append(line(across(low), up(low), across(high), up(high), "ref"))
    drawing += chain(*(_series(index, each, across, up) for index, each in enumerate(lines)))
    drawing += chain(
        *(_level(up, level) for level in levels), *(_change(across, each, top, bottom) for each in changes)
    )
    drawing += [] if heights else nothing((top + bottom) / 2)
    return figure(title, description, bottom + 46, drawing, _line_table(title, lines, x, y))


def _level(up: Scale, level: Mark) -> list[Markup]:
    y, end = up(level.at), WIDTH - RIGHT
    return [line(LEFT, y, end, y, "ref"), words(end - 4, y - 5, level.label, 240, "h t", "end")]


def _change(across: Scale, change: Mark, top: float, bottom: float) -> list[Markup]:
    x = across(change.at)
    side, anchor = (-6, "end") if x > WIDTH / 2 else (6, "start")
    return [line(x, top, x, bottom, "change"), words(x + side, top + 12, change.label, WIDTH / 2 - 60, "h t", anchor)]


def _series(index: int, each: Line, across: Scale, up: Scale) -> list[Markup]:
    color, marks, rows = f"s{index % 4}", list[Markup](), each.rows()
    for _, run in groupby(rows, key=lambda row: row[1] is None):
        places = [(across(at), up(value)) for at, value, *_ in run if value is not None]
        marks += [path(places, f"l {color}")] if each.joined and len(places) > 1 else []
    for at, value, low, high in rows:
        if value is None:
            continue
        if low is not None and high is not None:
            marks.append(line(across(at), up(low), across(at), up(high), f"ci {color}"))
        marks.append(point(across(at), up(value), index, f"{each.name}, {shown_position(at)}: {number(value)}"))
    return marks


def _line_table(title: str, lines: Sequence[Line], x: str, y: str) -> Markup:
    bounds = ["Low", "High"] if any(each.low for each in lines) else []
    columns = [Column("Series"), *(Column(name, numeric=True) for name in (x, y, *bounds))]
    rows = [
        [each.name, shown_position(at), value, *((low, high) if bounds else ())]
        for each in lines
        for at, value, low, high in each.rows()
    ]
    return table(f"{title}: numbers", columns, rows)


def scatter_plot(title: str, description: str, spots: Sequence[Spot], *, x: str, y: str, joined: bool = True) -> Markup:
    """Return a plot of labeled points. The axis titles carry units; the axes need not start at 0."""
    top, bottom = 68, 380
    names = list(dict.fromkeys(spot.series for spot in spots))
    across, up = scale([s.x for s in spots], LEFT, WIDTH - RIGHT), scale([s.y for s in spots], bottom, top)
    drawing = [*x_axis(across, top, bottom, x), *y_axis(up, y), *legend(names, 18)]
    for index, name in enumerate(names):
        places = [(across(spot.x), up(spot.y)) for spot in spots if spot.series == name]
        drawing += [path(places, f"l thin s{index % 4}")] if joined and len(places) > 1 else []
    drawing += chain(*(_spot(spot, names.index(spot.series), across, up) for spot in spots))
    drawing += [] if spots else nothing((top + bottom) / 2)
    columns = [Column("Series"), Column("Point"), Column(x, numeric=True), Column(y, numeric=True)]
    data = table(f"{title}: numbers", columns, [[spot.series, spot.label, spot.x, spot.y] for spot in spots])
    return figure(title, description, bottom + 46, drawing, data)


def _spot(spot: Spot, series: int, across: Scale, up: Scale) -> list[Markup]:
    at, height = across(spot.x), up(spot.y)
    side, anchor = (-8, "end") if at > WIDTH - 90 else (8, "start")
    hint = f"{spot.series} {spot.label}: {number(spot.x)}, {number(spot.y)}"
    # Series may be close together, so one series has its labels above the points and the next has them below.
    below = series % 2 and height < up.start - 20
    label = words(at + side, height + (16 if below else -7), spot.label, 110, "h t", anchor)
    return [point(at, height, series, hint), label]


def histogram(title: str, description: str, edges: Sequence[float], counts: Sequence[float], *, axis: str) -> Markup:
    """Return a histogram with bins of equal width; ``edges`` has one value more than ``counts``."""
    top, bottom = 40, 300
    across, up = scale(edges, LEFT, WIDTH - RIGHT), scale([0.0, *counts], bottom, top)
    bins = list(zip(edges[:-1], edges[1:], counts, strict=True))
    boxes = [
        box(across(low), across(high), up(count), bottom, f"{number(low)} to {number(high)}: {number(count)}")
        for low, high, count in bins
    ]
    columns = [Column(name, numeric=True) for name in ("From", "To", "Count")]
    drawing = [*x_axis(across, top, bottom, axis), *y_axis(up, "count"), *boxes]
    return figure(title, description, bottom + 46, drawing, table(f"{title}: numbers", columns, bins))
