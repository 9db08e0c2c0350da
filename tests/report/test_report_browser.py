"""The decision page in a headless Chromium: rendering, sorting, filtering, printing, accessibility."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PROGRAM, Chromium
from evaluation_document import ATTACK, bare, document

from skill_kd.report.evaluation import decision_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium here; install Debian's package `chromium`"),
]

PICTURE = Path(__file__).parents[2] / "docs" / "report.png"
SLICES = "[...document.querySelectorAll('#slices tbody tr')]"
WIDEST = "Math.max(...[...document.querySelectorAll('main *')].map(each => each.getBoundingClientRect().right))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "report.html").write_text(decision_page(document()), encoding="utf-8")
    (folder / "bare.html").write_text(decision_page(bare()), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Chromium, folder: Path) -> Chromium:
    browser.look()
    browser.open(folder / "report.html")
    return browser


def first_cells(tab: Chromium) -> list[str]:
    return tab.ask(f"{SLICES}.filter(row => !row.hidden).map(row => row.cells[0].textContent)")


def numbers(tab: Chromium, column: int) -> list[float]:
    return tab.ask(f"{SLICES}.map(row => Number(row.cells[{column}].dataset.v))")


@pytest.mark.parametrize("name", ["report.html", "bare.html"])
def test_page_renders_without_errors_or_requests(browser: Chromium, folder: Path, name: str) -> None:
    browser.open(folder / name)
    assert browser.errors == []
    assert browser.requests == [(folder / name).as_uri()]
    assert browser.ask("document.querySelector('h1').getBoundingClientRect().height") > 10


def test_driver_reports_a_refused_script(browser: Chromium, tmp_path: Path) -> None:
    """Otherwise the test above proves nothing."""
    text = decision_page(bare()).replace("</main>", "<scr" + "ipt>window.ran = 1</scr" + "ipt></main>")
    (tmp_path / "bad.html").write_text(text, encoding="utf-8")
    browser.open(tmp_path / "bad.html")
    assert any("Content Security Policy" in error for error in browser.errors)
    assert browser.ask("window.ran === undefined")


def test_column_sorts_by_number_in_both_directions(tab: Chromium) -> None:
    press = "document.querySelectorAll('#slices thead button')[1].click()"
    state = "document.querySelectorAll('#slices thead th')[1].getAttribute('aria-sort')"
    before = numbers(tab, 1)
    assert before != sorted(before)
    tab.ask(press)
    assert numbers(tab, 1) == sorted(before)
    assert tab.ask(state) == "ascending"
    tab.ask(press)
    assert numbers(tab, 1) == sorted(before, reverse=True)
    assert tab.ask(state) == "descending"


def test_missing_values_sort_last_in_both_directions(tab: Chromium) -> None:
    estimates = "[...document.querySelectorAll('#metrics > .scroll tbody tr')].map(row => row.cells[2].textContent)"
    assert tab.ask(estimates)[-1] != "–"
    for _ in range(2):
        tab.ask("document.querySelectorAll('#metrics > .scroll thead button')[2].click()")
        assert tab.ask(estimates)[-1] == "–"


def test_column_sorts_from_the_keyboard(tab: Chromium) -> None:
    tab.ask("document.querySelector('#slices thead button').focus()")
    orders = []
    for _ in range(2):
        for kind in ("keyDown", "keyUp"):
            tab.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )
        orders.append([name for name in first_cells(tab) if name.isascii() and ATTACK not in name])
    assert orders == [sorted(orders[0]), sorted(orders[0], reverse=True)]


def test_rows_filter_by_all_words(tab: Chromium) -> None:
    everything = first_cells(tab)
    typed = """(words => {
      const field = document.querySelector('#slices input');
      field.value = words;
      field.dispatchEvent(new Event('input'));
    })"""
    tab.ask(f"{typed}('CATEGORY poem')")
    assert first_cells(tab) == ["category: poem"]
    assert tab.ask("document.querySelector('#slices output').textContent") == f"1 of {len(everything)}"
    tab.ask(f"{typed}('')")
    assert first_cells(tab) == everything


def test_injected_completion_stays_text(tab: Chromium) -> None:
    assert tab.ask("document.images.length") == 0
    assert tab.ask("document.scripts.length") == 2
    assert tab.ask("document.querySelector('#lost pre').textContent").endswith(ATTACK)
    assert tab.ask("JSON.parse(document.getElementById('data').textContent).lost_modes[0].prompt").endswith(ATTACK)


@pytest.mark.parametrize("width", [360, 768, 1000, 1600])
def test_page_is_never_wider_than_the_window(tab: Chromium, width: int) -> None:
    tab.look(width)
    assert tab.ask("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_enough_contrast(tab: Chromium, dark: bool) -> None:
    """WCAG 2.2, 1.4.3: contrast of 4.5 for text, in light and dark."""
    tab.look(dark=dark)
    ask = """(() => {
      const light = text => {
        const [r, g, b] = text.match(/[0-9.]+/g).slice(0, 3).map(Number).map(v => v / 255)
          .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const ground = each => {
        for (; each; each = each.parentElement) {
          const color = getComputedStyle(each).backgroundColor;
          if (color !== "rgba(0, 0, 0, 0)") return light(color);
        }
      };
      const worst = [];
      for (const each of document.querySelectorAll("body *:not(script)")) {
        const own = [...each.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || ["title", "desc"].includes(each.tagName)) continue;
        const style = getComputedStyle(each), drawn = each.namespaceURI.endsWith("svg");
        const text = light(drawn ? style.fill : style.color);
        const [a, b] = [text, ground(each)].sort((x, y) => y - x);
        worst.push([(a + .05) / (b + .05), each.tagName + "." + each.getAttribute("class")]);
      }
      return worst.sort((x, y) => x[0] - y[0])[0];
    })()"""
    ratio, where = tab.ask(ask)
    assert ratio >= 4.5, where
    ground = tab.ask("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(18, 22, 27)" if dark else "rgb(255, 255, 255)")


def test_text_of_a_plot_stays_inside_it(tab: Chromium) -> None:
    """This also holds if this machine's fonts are wider than the assumed ones."""
    ask = """[...document.querySelectorAll("svg text")].filter(each => {
      const own = each.getBoundingClientRect(), all = each.ownerSVGElement.getBoundingClientRect();
      return own.left < all.left || own.right > all.right || own.top < all.top || own.bottom > all.bottom;
    }).map(each => each.textContent)"""
    assert tab.ask(ask) == []


def test_labels_of_a_forest_plot_do_not_overlap(tab: Chromium) -> None:
    ask = """(() => {
      const words = [...document.querySelectorAll("#metrics svg text")];
      const boxes = words.map(each => each.getBoundingClientRect());
      return boxes.flatMap((a, i) => boxes.slice(i + 1).filter(b =>
        a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom)).length;
    })()"""
    assert tab.ask(ask) == 0


def test_printed_page_fits_the_paper_and_unfolds_details(tab: Chromium) -> None:
    printed = tab.pdf()
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    assert 3 <= pages <= 20
    tab.look(680, printed=True)  # A4 less its margins, in CSS pixels
    tab.ask("dispatchEvent(new Event('beforeprint'))")
    assert tab.ask("document.querySelectorAll('details:not([open])').length") == 0
    assert tab.ask(WIDEST) <= 680
    assert tab.ask("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.ask("dispatchEvent(new Event('afterprint'))")
    assert tab.ask("document.querySelectorAll('details[open]').length") == 0


def test_page_has_landmarks_and_labels_for_screen_readers(tab: Chromium) -> None:
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    roles = {role for role, _ in found}
    assert {"banner", "main", "navigation", "contentinfo", "table", "region"} <= roles
    images = [name for role, name in found if role in ("image", "img")]
    assert len(images) == 4
    assert all(len(name) > 20 for name in images)
    assert all(name for role, name in found if role in ("button", "link", "heading", "searchbox", "table"))


def test_page_is_complete_without_scripts(browser: Chromium, folder: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(folder / "report.html")
        shown = browser.call("DOMSnapshot.captureSnapshot", computedStyles=[])["strings"]
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert any("category: poem" in text for text in shown)
    assert not any("Filter rows" in text for text in shown if len(text) < 40)


def test_screenshot_in_the_docs_is_small(tab: Chromium) -> None:
    """``SKILL_KD_WRITE_PICTURE=1`` takes it again; look at it afterwards."""
    if os.environ.get("SKILL_KD_WRITE_PICTURE"):
        tab.look(1000, 860)
        PICTURE.parent.mkdir(exist_ok=True)
        tab.screenshot(PICTURE)
    picture = PICTURE.read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 150_000
