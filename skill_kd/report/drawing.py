"""The parts of plots: the frame with its title and table, axes, marks and text in SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skill_kd.kd.terminal import visible
from skill_kd.report.axes import Position, Scale, fitting
from skill_kd.report.markup import Markup, tag
from skill_kd.report.numbers import finite

WIDTH, LEFT, RIGHT = 680, 64, 16
"""Pixels of a drawing at full size; the plot is between ``LEFT`` and ``WIDTH - RIGHT``."""

Number = float | None


@dataclass(frozen=True)
class Mark:
    """A labeled position on an axis: a change point, a margin, the teacher's value."""

    at: Position
    label: str


def figure(title: str, description: str, height: float, drawing: Iterable[Markup], data: Markup) -> Markup:
    """Return a drawing of ``WIDTH`` × ``height`` as a figure: title, SVG, and ``data`` (a table) folded below it."""
    svg = tag(
        "svg", tag("title", title), tag("desc", description), *drawing,
        xmlns="http://www.w3.org/2000/svg", role="img", viewBox=f"0 0 {WIDTH} {height:g}", class_="plot",
        aria_label=f"{title}. {description}",
    )  # fmt: skip
    head = tag("figcaption", tag("strong", title), tag("br"), description)
    under = tag("details", tag("summary", "Numbers"), data)
    return tag("figure", head, tag("div", svg, class_="scroll", tabindex="0", role="group", aria_label=title), under)


def words(x: float, y: float, text: str, room: float, class_: str = "", anchor: str = "start") -> Markup:
    """Return ``text`` cut to ``room`` pixels; hovering shows all of it."""
    whole = visible(text)
    shown = fitting(whole, room, 11.5 if "t" in class_.split() else 13)
    hint = [tag("title", whole)] if shown != whole else []
    place = {"x": f"{x:g}", "y": f"{y:g}", "text_anchor": None if anchor == "start" else anchor}
    return tag("text", *hint, shown, **place, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a line."""
    return tag("line", x1=f"{x1:g}", y1=f"{y1:g}", x2=f"{x2:g}", y2=f"{y2:g}", class_=class_)


def path(places: Iterable[tuple[float, float]], class_: str) -> Markup:
    """Return a line through all ``places``."""
    return tag("path", d="M" + "L".join(f"{x:g} {y:g}" for x, y in places), class_=class_)


def box(x1: float, x2: float, top: float, bottom: float, hint: str) -> Markup:
    """Return a filled rectangle."""
    wide = f"{abs(x2 - x1):g}"
    shape = {"x": f"{min(x1, x2):g}", "y": f"{top:g}", "width": wide, "height": f"{bottom - top:g}"}
    return tag("rect", tag("title", hint), **shape, class_="bar")


_SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0", "M-4 -4h8v8h-8z", "M0 -5L5 4H-5z", "M0 -5.5L5.5 0L0 5.5L-5.5 0z")


def point(x: float, y: float, series: int, hint: str, class_: str = "") -> Markup:
    """Return a mark whose shape and color both identify its series; hovering shows ``hint``."""
    color = class_ or f"s{series % 4}"
    place = f"translate({x:g} {y:g})"
    return tag("path", tag("title", hint), d=_SHAPES[series % len(_SHAPES)], transform=place, class_=f"m {color}")


def arrow(x: float, y: float, way: int, class_: str) -> Markup:
    """Return an arrowhead that points right (``way`` 1) or left (-1)."""
    return tag("path", d=f"M0 -5L{8 * way} 0L0 5z", transform=f"translate({x - 8 * way:g} {y:g})", class_=f"m {class_}")


def legend(names: Sequence[str], y: float) -> list[Markup]:
    """Return names with their marks, in one row."""
    room = (WIDTH - LEFT - RIGHT) / max(1, len(names))
    places = [(series, name, LEFT + series * min(room, 220)) for series, name in enumerate(names)]
    return [
        mark
        for series, name, x in places
        for mark in (point(x + 5, y - 4, series, name), words(x + 16, y, name, min(room, 220) - 20))
    ]


def x_axis(x: Scale, top: float, bottom: float, title: str) -> list[Markup]:
    """Return the lines, ticks and title of an axis below a plot."""
    lines = [line(x(value), top, x(value), bottom, "g") for value, _ in x.ticks]
    edges = {"start": x.start + 12, "end": x.end - 12}  # keep a label at the edge inside the drawing
    labels = [words(x(value), bottom + 17, label, 90, "t", _anchor(x(value), **edges)) for value, label in x.ticks]
    return [*lines, *labels, words((x.start + x.end) / 2, bottom + 36, title, x.end - x.start, anchor="middle")]


def _anchor(at: float, start: float, end: float) -> str:
    return "start" if at < start < LEFT else "end" if at > end else "middle"


def y_axis(y: Scale, title: str) -> list[Markup]:
    """Return the lines, ticks and title of an axis to the left of a plot."""
    lines = [line(LEFT, y(value), WIDTH - RIGHT, y(value), "g") for value, _ in y.ticks]
    labels = [words(LEFT - 8, y(value) + 4, label, LEFT, "t", "end") for value, label in y.ticks]
    return [*lines, *labels, words(4, y.end - 16, title, WIDTH - RIGHT - 4)]


def nothing(y: float) -> list[Markup]:
    """Return the placeholder of a plot without data."""
    return [words(WIDTH / 2, y, "no data", WIDTH, "h", "middle")]


def known(values: Iterable[Number]) -> list[float]:
    """Return the finite numbers among ``values``."""
    return [float(value) for value in values if value is not None and finite(value) is not None]
