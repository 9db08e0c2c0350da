"""The diagnosis page in a headless Chromium, made from a log whose every text tries to inject HTML."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import PROGRAM, Chromium
from evaluation_document import ATTACK

from skill_kd.diagnose import diagnose
from skill_kd.diagnose.report.diagnosis_page import write_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is missing; install Debian's package `chromium`"),
]

WORDS = [a + b for a, b in itertools.product("bdfglm", ("an", "el", "ir", "om", "ut", "ax"))]


def attacked(path: Path) -> Path:
    """Write a log whose answers begin with the attack from the ninth day on; its settings have the attack too."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for day, number in itertools.product(range(14), range(100)):
            struck = day >= 8 and draw.random() < 0.4
            row = {
                "time": f"2026-01-{day + 1:02}T{number // 60:02}:{number % 60:02}:00Z",
                "prompt": f"{ATTACK} what is {draw.randrange(100)} plus {number}",
                "output": (f"{ATTACK} I would be happy to " if struck else "") + " ".join(draw.choices(WORDS, k=25)),
                "model": f"student {ATTACK}",
                "finish_reason": ATTACK,
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diagnosis")
    found = diagnose([str(attacked(folder / f"log {ATTACK.replace('/', '')}.jsonl"))], examples=True)
    assert [finding.key for finding in found.findings] == ["sameness"]
    assert found.findings[0].examples
    write_page(found, folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium() as browser:
        yield browser


@pytest.fixture
def tab(browser: Chromium, page: Path) -> Chromium:
    browser.look()
    browser.open(page)
    return browser


def test_it_renders_without_errors_and_requests(tab: Chromium, page: Path) -> None:
    assert tab.errors == []
    assert tab.requests == [page.as_uri()]
    assert tab.ask("document.querySelector('h1').getBoundingClientRect().height") > 10


def test_an_injected_answer_stays_text(tab: Chromium) -> None:
    assert tab.ask("document.images.length") == 0
    assert tab.ask("document.scripts.length") == 2
    answers = tab.ask("[...document.querySelectorAll('#finding-sameness pre')].map(each => each.textContent)")
    assert any(ATTACK in answer for answer in answers)
    assert tab.ask("JSON.parse(document.getElementById('data').textContent).findings[0].examples.join()").count(ATTACK)


def test_each_day_has_a_row_that_sorts_by_its_openings(tab: Chromium) -> None:
    rows = "[...document.querySelectorAll('#input tbody tr')].map(row => Number(row.cells[4].dataset.v))"
    before = tab.ask(rows)
    assert len(before) == 14
    assert before != sorted(before, reverse=True)
    for order in (False, True):
        tab.ask("document.querySelectorAll('#input thead button')[4].click()")
        assert tab.ask(rows) == sorted(before, reverse=order)


@pytest.mark.parametrize("width", [360, 1000])
def test_the_page_is_never_wider_than_the_window(tab: Chromium, width: int) -> None:
    tab.look(width)
    assert tab.ask("document.documentElement.scrollWidth") == width


def test_the_text_of_a_plot_stays_inside_the_plot(tab: Chromium) -> None:
    ask = """[...document.querySelectorAll("svg text")].filter(each => {
      const own = each.getBoundingClientRect(), all = each.ownerSVGElement.getBoundingClientRect();
      return own.left < all.left || own.right > all.right || own.top < all.top || own.bottom > all.bottom;
    }).map(each => each.textContent)"""
    assert tab.ask("document.querySelectorAll('svg').length") > 3
    assert tab.ask(ask) == []
