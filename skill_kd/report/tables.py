"""Tables: a caption, right-aligned numbers, sorting and filtering in the browser if scripts run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skill_kd.report.markup import Child, Markup, join, tag
from skill_kd.report.numbers import MISSING, finite, number


@dataclass(frozen=True)
class Column:
    """A column. Numbers are right-aligned, with ``digits`` decimals if given."""

    title: str
    numeric: bool = False
    digits: int | None = None


@dataclass(frozen=True)
class Cell:
    """A cell that shows one value and sorts by another."""

    shown: Child
    value: float | None = None


def table(
    caption: Child, columns: Sequence[Column | str], rows: Sequence[Sequence[object]], *, filtered: bool = False
) -> Markup:
    """Return a table. A row has one value per column: text, a number, None, a `Cell` or `Markup`.

    ``filtered`` adds a search field. The first cell of a row is its header.
    """
    heads = [column if isinstance(column, Column) else Column(column) for column in columns]
    head = tag("tr", *(tag("th", each.title, scope="col", class_="n" if each.numeric else None) for each in heads))
    body = join(_row(heads, row) for row in rows) or tag("tr", tag("td", "None.", colspan=len(heads)))
    grid = tag(
        "table", tag("caption", caption), tag("thead", head), tag("tbody", body),
        data_sort=len(rows) > 1, data_filter=filtered and len(rows) > 1,
    )  # fmt: skip
    return tag("div", grid, class_="scroll", tabindex="0", role="region", aria_label=_plain(caption))


def _plain(caption: Child) -> str:
    return "table" if isinstance(caption, Markup) else str(caption)


def _row(heads: Sequence[Column], row: Sequence[object]) -> Markup:
    cells = enumerate(zip(heads, row, strict=True))
    return tag("tr", *(_cell(head, value, "td" if index else "th") for index, (head, value) in cells))


def _cell(head: Column, value: object, name: str) -> Markup:
    scope = "row" if name == "th" else None
    cell = value if isinstance(value, Cell) else Cell(_shown(head, value), finite(value))
    missing = cell.shown == MISSING
    return tag(
        name, tag("span", MISSING, title="not measured") if missing else cell.shown,
        scope=scope, class_="n" if head.numeric else None, data_v=None if cell.value is None else repr(cell.value),
    )  # fmt: skip


def _shown(head: Column, value: object) -> Child:
    if value is None or (isinstance(value, float) and finite(value) is None):
        return MISSING
    return number(value, head.digits) if finite(value) is not None else value
