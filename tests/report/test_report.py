"""The pages of evaluate and diagnose: structure, escaping, honest axes. test_report_browser.py renders them."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluation_document import ATTACK, bare, document, metric
from hypothesis import example, given
from hypothesis import strategies as st

from skill_kd.kd.terminal import visible
from skill_kd.report import page as pages
from skill_kd.report.axes import fitting, nice_step, scale
from skill_kd.report.evaluation import decision_page
from skill_kd.report.markup import Markup, data_block, escape, inline, join, source_hash, tag
from skill_kd.report.metrics import shown
from skill_kd.report.numbers import finite, number, percent, points, size
from skill_kd.report.page import PageSection, page
from skill_kd.report.plots import Line, Mark, Spot, histogram, line_plot, scatter_plot
from skill_kd.report.rowplots import Bar, Interval, bar_plot, forest_plot
from skill_kd.report.tables import Cell, Column, table

WILD = st.text(alphabet=st.characters(), max_size=80)
NUMBERS = st.none() | st.floats() | st.integers()
VOID = {"meta", "br", "input"}


class Read(HTMLParser):
    """Parse a page: its elements with their attributes, and their text. Fail if an element is not closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def count(self, name: str) -> int:
        return sum(element == name for element, _ in self.elements)

    def text(self) -> str:
        return "".join(data for name, data in self.texts if name not in ("script", "style"))


def svgs(source: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", source, re.DOTALL)]


# --- markup -----------------------------------------------------------------------------------------------------------


@given(WILD, WILD)
def test_any_text_is_escaped_in_content_and_attributes(content: str, value: str) -> None:
    read = Read(tag("p", content, title=value))
    assert [name for name, _ in read.elements] == ["p"]
    assert read.text() == visible(content)
    assert read.elements[0][1] == {"title": visible(value)}
    ET.fromstring(tag("text", content, title=value))  # and it is XML
    assert tag("p", content).encode("utf-8")


def test_only_markup_is_not_escaped() -> None:
    bold = tag("b", "x")
    assert tag("p", bold) == "<p><b>x</b></p>"
    assert tag("p", f"{bold}") == "<p>&lt;b&gt;x&lt;/b&gt;</p>"
    assert not isinstance(bold + "<i>", Markup)
    assert join(["<", bold], " & ") == "&lt; &amp; <b>x</b>"
    assert escape(None) == "None"


def test_a_page_shows_hidden_characters_as_escapes() -> None:
    text = "\u202egpj\u2066.\u200e\u061c\u200b\U000e0041\x9b\ud800"
    read = Read(tag("p", text, title=text))
    assert read.text() == read.elements[0][1]["title"] == r"\u202egpj\u2066.\u200e\u061c\u200b\U000e0041\x9b\ud800"


def test_attributes() -> None:
    assert tag("input", hidden=True, disabled=False, value=None, class_="a b", aria_label='"') == (
        '<input hidden class="a b" aria-label="&quot;">'
    )
    for outside in ("https://example.org", "javascript:alert(1)", "//example.org", ""):
        with pytest.raises(ValueError, match="not a link within the page"):
            tag("a", "x", href=outside)


def test_inline_script_with_an_end_tag_is_refused() -> None:
    with pytest.raises(ValueError, match="must not contain"):
        inline("script", "x = '</p>'")


@given(st.recursive(st.none() | WILD | st.integers() | st.booleans(), lambda x: st.lists(x) | st.dictionaries(WILD, x)))
def test_data_block_is_json_without_markup_characters(value: object) -> None:
    block = data_block("data", value)
    read = Read(block)
    assert [name for name, _ in read.elements] == ["script"]
    inside = "".join(data for _, data in read.texts)
    assert json.loads(inside) == value
    assert inside.isascii()
    assert not set(inside) & set("<>&\u2028\u2029")


def test_data_block_refuses_nan() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        data_block("data", [math.nan])


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.93214, "0.932"), (12.345, "12.3"), (1234.5, "1,234"), (1234567, "1,234,567"), (-0.5, "−0.500"), (0.0, "0"),
        (0.00012, "0.000120"), (1.5e-7, "1.50e−07"), (None, "–"), (math.nan, "–"), (math.inf, "–"), (True, "–"),
        ("3", "–"), (-0.0, "0"), (10**400, "–"),
    ],
)  # fmt: skip
def test_numbers(value: object, expected: str) -> None:
    assert number(value) == expected


def test_digits_signs_and_units() -> None:
    assert number(0.5, 1, sign=True) == "+0.5"
    assert number(-0.0004, 3) == "0.000"
    assert percent(0.0234) == "2.3%"
    assert points(-0.012) == "−1.2 pp"
    assert points(0.0) == "0.0 pp"
    assert [size(value) for value in (15.2e9, 1.31e6, 2000, 12, None)] == ["15.2 GB", "1.31 MB", "2.00 kB", "12 B", "–"]


@given(NUMBERS)
def test_any_value_can_be_formatted(value: object) -> None:
    for write_it in (number, percent, points, size):
        assert write_it(value)
    assert (number(value) == "–") == (finite(value) is None)


# --- axes -------------------------------------------------------------------------------------------------------------

FINITE = st.floats(-1e190, 1e190)


@given(st.lists(FINITE, min_size=1, max_size=6), st.booleans())
@example([5e-324], True)
def test_axis_encloses_all_values_in_order(values: list[float], tight: bool) -> None:
    axis = scale(values, 100, 500, tight=tight)
    unseen = 1e-9 * max(map(abs, values))
    assert axis.low <= min(values) + unseen
    assert axis.high >= max(values) - unseen
    pixels = [axis(value) for value in sorted(values)]
    assert pixels == sorted(pixels)
    assert all(100 <= pixel <= 500 for pixel in pixels)
    assert len(axis.ticks) <= 12


def test_ticks_are_round_and_evenly_spaced() -> None:
    assert [label for _, label in scale([0.03, 0.48], 0, 1).ticks] == ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5"]
    assert [label for _, label in scale([-3, 12], 0, 1).ticks] == ["−5", "0", "5", "10", "15"]
    assert nice_step(0.03) == 0.05
    assert nice_step(7) == 10


def test_time_axis_has_ticks_at_midnight() -> None:
    start = datetime(2026, 1, 30, 12, tzinfo=UTC)
    axis = scale([start + timedelta(days=day) for day in range(4)], 0, 300)
    assert [label for _, label in axis.ticks] == ["2026-01-31", "2026-02-01", "2026-02-02"]
    assert axis(datetime(2026, 2, 1)) == 150  # without a zone it is UTC


def test_values_outside_an_axis_are_detected() -> None:
    axis = scale([0.0, 1.0], 0, 100)
    assert (axis.outside(-1), axis.outside(0.5), axis.outside(2)) == (-1, 0, 1)
    assert axis(7) == 100


@given(WILD, st.integers(10, 400))
def test_label_is_cut_to_its_width(label: str, room: int) -> None:
    cut = fitting(label, room)
    assert cut == label or (cut.endswith("…") and label.startswith(cut[:-1]))
    assert len(cut) * 13 * 0.5 <= room + 13


# --- tables -----------------------------------------------------------------------------------------------------------


def test_table_aligns_numbers_and_has_sort_values() -> None:
    made = table(
        "Things",
        ["Name", Column("Share", numeric=True, digits=2)],
        [["a", 0.5], [ATTACK, None], ["c", Cell("50%", 0.25)]],
    )
    read = Read(made)
    assert [a["data-v"] for name, a in read.elements if name == "td" and "data-v" in a] == ["0.5", "0.25"]
    assert "0.50" in read.text()
    assert "–" in read.text()
    assert ATTACK in read.text()
    assert read.count("img") == 0
    heads = [a for name, a in read.elements if name == "th"]
    assert [a["scope"] for a in heads] == ["col", "col", "row", "row", "row"]


def test_row_needs_a_value_for_every_column() -> None:
    with pytest.raises(ValueError, match="zip"):
        table("Things", ["a", "b"], [["only one"]])


def test_empty_table_shows_none() -> None:
    assert "None." in Read(table("Things", ["a", "b"], [])).text()


# --- plots ------------------------------------------------------------------------------------------------------------

DAYS = [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(days=day) for day in range(8)]
PLOTS = {
    "lines": line_plot(
        "Openings", "By day.",
        [
            Line("student", DAYS, [0.1, 0.12, None, 0.11, 0.4, 0.42, math.nan, 0.45], [0.05] * 8, [0.5] * 8),
            Line(ATTACK, DAYS, [0.1] * 8),
        ],
        x="day", y="share", changes=[Mark(DAYS[4], ATTACK)], levels=[Mark(0.1, "teacher")],
    ),
    "one point": line_plot("One", "", [Line("a", [1.0], [2.0])], x="x", y="y", zero=True, diagonal=True),
    "no point": line_plot("None", "", [], x="x", y="y"),
    "scatter": scatter_plot("S", "", [Spot(ATTACK, 1, 2, ATTACK), Spot("b", 3, 4)], x="x", y="y"),
    "no scatter": scatter_plot("S", "", [], x="x", y="y"),
    "forest": forest_plot("F", "", [Interval(ATTACK, 0.1, -9.0, 9.0, "in words", "fail")], axis="x", limits=(-1, 1)),
    "no forest": forest_plot("F", "", [Interval("none", None, None, None)], axis="x"),
    "bars": bar_plot("B", "", [Bar(ATTACK, 3.0, 2.0, 5.0), Bar("none", None), Bar("minus", -1.0)], axis="count"),
    "histogram": histogram("H", "", [0, 1, 2, 3], [5, 0, 2], axis="words"),
}  # fmt: skip


def badly_set(plot: str) -> Iterator[str]:
    """Yield the errors in the elements of a plot."""
    read = Read(plot)
    wanted = {"figure": 1, "svg": 1, "details": 1, "table": 1, "img": 0, "script": 0}
    yield from (f"{read.count(name)} of {name}" for name, count in wanted.items() if read.count(name) != count)
    for image in (attributes for name, attributes in read.elements if name == "svg"):
        if image.get("role") != "img" or not image.get("aria-label"):
            yield f"the image has the attributes {image}"
    images = svgs(plot)
    if len(images) != 1:
        yield f"{len(images)} images that are XML"
    for svg in images:
        names = [child.tag.rsplit("}")[-1] for child in svg]
        if names[:2] != ["title", "desc"]:
            yield f"the image begins with {names[:2]}"
    for _, attributes in read.elements:
        yield from (f"runs code by its attribute {name}" for name in attributes if name.startswith("on"))


def test_plot_is_a_titled_image_with_a_table_of_numbers() -> None:
    assert PLOTS
    failures = [f"{kind}: {failure}" for kind, plot in PLOTS.items() for failure in badly_set(plot)]
    assert not failures, "\n".join(failures)


def outside(plot: str) -> Iterator[str]:
    """Yield each position in a plot that is outside its view box."""
    (svg,) = svgs(plot)
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    for element in svg.iter():
        for name, limit in [("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)]:
            if not 0 <= float(element.get(name, 0)) <= limit:
                yield f"{element.tag}: {name} is {element.get(name)}"
        if moved := element.get("transform"):
            x, y = map(float, re.findall(r"[\d.]+", moved))
            if not (0 <= x <= width and 0 <= y <= height):
                yield f"{element.tag}: transform is {moved}"


def test_nothing_is_drawn_outside_the_view_box() -> None:
    assert PLOTS
    failures = [f"{kind}: {failure}" for kind, plot in PLOTS.items() for failure in outside(plot)]
    assert not failures, "\n".join(failures)


def marks(kind: str, class_: str) -> list[ET.Element]:
    return [element for element in svgs(PLOTS[kind])[0].iter() if class_ in element.get("class", "").split()]


def test_missing_value_leaves_a_gap() -> None:
    paths = [element.get("d", "") for element in marks("lines", "l") if "s0" in element.get("class", "")]
    assert [path.count("L") for path in paths] == [1, 2]  # two points, then three; the single last one has no line
    assert len([each for each in marks("lines", "m") if "s0" in each.get("class", "")]) == 6 + 1  # one in the legend


def test_interval_without_an_estimate_is_not_drawn() -> None:
    assert len([each for each in marks("lines", "ci") if "s0" in each.get("class", "")]) == 6


@pytest.mark.parametrize("kind", ["no point", "no scatter"])
def test_plot_without_data_shows_no_data(kind: str) -> None:
    assert "no data" in "".join(svgs(PLOTS[kind])[0].itertext())


def test_changes_and_levels_are_marked() -> None:
    assert len(marks("lines", "change")) == 1
    assert len(marks("lines", "ref")) == 1


def test_interval_beyond_the_axis_ends_in_arrows() -> None:
    assert len(marks("forest", "m")) == 3  # two arrows and the estimate
    assert len(marks("forest", "ci")) == 1  # no cap at either end


def test_bars_start_at_zero() -> None:
    positive, negative = (element for element in marks("bars", "bar"))
    zero = float(negative.get("x", 0)) + float(negative.get("width", 0))
    assert float(positive.get("x", 0)) == pytest.approx(zero)
    assert float(positive.get("width", 0)) == pytest.approx(3 * float(negative.get("width", 0)), abs=0.1)


@given(st.lists(st.tuples(FINITE, NUMBERS, NUMBERS, NUMBERS), max_size=6), WILD)
def test_any_series_can_be_drawn(rows: list[tuple[float, float | None, float | None, float | None]], name: str) -> None:
    x, y, low, high = ([row[column] for row in rows] for column in range(4))
    Read(line_plot(name, name, [Line(name, x, y, low, high)], x=name, y=name))  # type: ignore[arg-type]
    intervals = [Interval(name, *row[1:], name) for row in rows]
    Read(forest_plot(name, name, intervals, axis=name, limits=(-1, 1)))
    Read(bar_plot(name, name, [Bar(name, *row[1:]) for row in rows], axis=name))


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decision() -> str:
    return decision_page(document())


def test_page_structure_is_valid(decision: str) -> None:
    read = Read(decision)
    assert decision.startswith('<!doctype html>\n<html lang="en">')
    assert [read.count(name) for name in ("html", "head", "body", "header", "main", "footer", "nav", "h1")] == [1] * 8
    identifiers = [a["id"] for _, a in read.elements if "id" in a]
    assert len(identifiers) == len(set(identifiers))
    for name, attributes in read.elements:
        if name == "a":
            assert str(attributes["href"]).removeprefix("#") in identifiers
        if labelled := attributes.get("aria-labelledby"):
            assert labelled in identifiers


def test_page_loads_nothing_and_allows_only_its_own_style_and_script(decision: str) -> None:
    read = Read(decision)
    policy = next(a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; style-src {source_hash(pages.STYLE)}; ")
    assert f"script-src {source_hash(pages.SCRIPT)};" in policy
    assert policy.endswith("base-uri 'none'; form-action 'none'")
    assert "unsafe" not in policy
    for _, attributes in read.elements:
        assert not {"src", "srcset", "style", "action", "background", "poster"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    for address in re.findall(r"[a-z]+://[^\s\"'<&]+", decision):
        assert address == "http://www.w3.org/2000/svg"  # a namespace; no browser requests it
    assert "@import" not in pages.STYLE
    assert "url(" not in pages.STYLE


def test_hostile_text_is_escaped_in_every_field(decision: str) -> None:
    read = Read(decision)
    assert read.count("img") == 0
    assert read.count("script") == 2
    assert read.text().count(ATTACK) >= 8
    assert len([data for name, data in read.texts if name == "pre" and ATTACK in data]) >= 3
    block = next(data for name, data in read.texts if name == "script" and data.startswith("{"))
    assert json.loads(block) == document()


def test_script_and_page_are_small(decision: str) -> None:
    assert len(pages.SCRIPT.encode()) < 10_000
    assert len(decision.encode()) < 150_000


def test_order_of_sections_on_the_decision_page(decision: str) -> None:
    text = Read(decision).text()
    order = [
        "NO-GO", "Recall is 0.780 (upper bound", "Every metric against its margin", "Quality against coverage",
        "Latency per request",
        "Worst slices", "Lost modes", "What is not covered", "Files read",
    ]  # fmt: skip
    body = text[text.index("Skip to the content") :].replace("Quality and coverage", "", 1)
    links = body.index("Reproduction")
    places = [body.index(order[0]), body.index(order[1]), *(body.index(word, links) for word in order[2:])]
    assert places == sorted(places)


def test_forest_plot_has_margins_at_minus_one_in_both_directions() -> None:
    rows = [
        metric("a", "High is better", "score", estimate=-0.01, low=-0.02, high=0.0, margin=-0.02, null=0.0),
        metric("b", "Low is better", "share", better="low", estimate=0.02, low=0.01, high=0.04, margin=0.02, null=0.0),
        metric("d", "Advice", "score", role="advisory", estimate=-0.01, low=-0.02, high=0.0, margin=-0.02, null=0.0),
        metric("c", "No margin", "score", estimate=1.0, low=0.5, high=1.5, null=1.0),
    ]
    read = Read(decision_page({**document(), "metrics": rows}))
    start = next(i for i, (name, data) in enumerate(read.texts) if name == "caption" and "on the plot's axis" in data)
    cells = [data for name, data in read.texts[start:] if name in ("td", "th")][6:]
    assert cells[:4] == ["High is better", "−0.500", "−1.00", "0"]
    assert cells[6:10] == ["Low is better", "−1.00", "−2.00", "−0.500"]
    assert cells[12] == "Advice (advisory)"
    assert "No margin" not in cells[:18]


def test_unmeasured_advisory_metrics_are_listed_separately(decision: str) -> None:
    read = Read(decision)
    assert ("li", "Calibration: it needs the models") in read.texts
    assert not [data for name, data in read.texts if name == "th" and data == "Calibration"]
    assert [data for name, data in read.texts if name == "th" and data.startswith("Mass of the teacher")]  # blocking


def test_texts_after_the_third_are_folded() -> None:
    mode = document()["lost_modes"][0]
    read = Read(decision_page({**document(), "lost_modes": [mode] * 8}))
    assert ("summary", "5 more") in read.texts


def test_slices_show_the_blocking_metrics(decision: str) -> None:
    text = Read(decision).text()
    start = text.index("Slices, worst first")
    assert "Loops" in text[start : start + 300]
    assert "Length" not in text[start : start + 300]


def test_missing_measurements_are_reported() -> None:
    text = Read(decision_page(bare())).text()
    for words in ("There is one prompt.", "Not measured.", "not measured", "one prompt", "not recorded", "the student"):
        assert words in text
    assert "nan" not in text.lower().replace("finance", "")


def test_metrics_are_shown_with_their_unit() -> None:
    assert shown(0.93, metric("a", "", "share", form="ratio")) == "0.930"
    assert shown(0.012, metric("a", "", "share")) == "+1.2 pp"
    assert shown(0.012, metric("a", "", "share", form="value")) == "1.2%"
    assert shown(0.1042, metric("a", "", "nats/token", form="value")) == "0.104 nats/token"
    assert shown(None, metric("a", "", "nats/token")) == "–"


@given(WILD)
def test_any_text_can_be_in_a_page(text: str) -> None:
    made = page(text, text, [PageSection("a", text, [tag("p", text)])], data={text: text}, foot=text)
    read = Read(made)
    assert read.count("script") == 2
    assert read.text().count(visible(text)) >= 5 or not visible(text)
    assert made.encode("utf-8")


# --- files ------------------------------------------------------------------------------------------------------------


def test_only_the_markup_module_creates_markup() -> None:
    folder = Path(pages.__file__).parent
    made = {path.name: path.read_text(encoding="utf-8").count("Markup(") for path in folder.glob("*.py")}
    del made["markup.py"]
    # The one exception is a literal: the quotes of the policy must not be escaped.
    assert {name: count for name, count in made.items() if count} == {"page.py": 1}
