"""An HTML page with a strict content security policy, one style sheet and one script, for light, dark and print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skill_kd.report.markup import Child, Markup, data_block, inline, join, source_hash, tag

STYLE, SCRIPT = (Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
POLICY = (
    f"default-src 'none'; style-src {source_hash(STYLE)}; script-src {source_hash(SCRIPT)}; "
    "base-uri 'none'; form-action 'none'"
)
"""No network, and only our own script and style sheet, whatever text the page contains."""


@dataclass(frozen=True)
class PageSection:
    """A section of a page. ``name`` is its anchor; ``short`` is its navigation label (the title if empty)."""

    name: str
    title: str
    content: Sequence[Markup]
    short: str = ""


def page(title: str, head: Child, sections: Sequence[PageSection], *, data: object = None, foot: Child = "") -> str:
    """Return the HTML of a page: ``head`` (a verdict), the sections, ``data`` as JSON for other programs, a footer."""
    links = (tag("li", tag("a", each.short or each.title, href=f"#{each.name}")) for each in sections)
    body = [
        tag("a", "Skip to the content", href="#main", class_="skip"),
        tag("header", head, tag("nav", tag("ul", join(links)), aria_label="Sections")),
        tag("main", *(_section(each) for each in sections), id="main", tabindex="-1"),
        tag("footer", foot),
        data_block("data", data),
        inline("script", SCRIPT),
    ]
    meta = [
        tag("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        inline("style", STYLE),
    ]
    return f"<!doctype html>\n{tag('html', tag('head', *meta), tag('body', *body), lang='en')}\n"


def _section(each: PageSection) -> Markup:
    heading = f"{each.name}-title"
    return tag("section", tag("h2", each.title, id=heading), *each.content, id=each.name, aria_labelledby=heading)


def paragraph(*content: Child) -> Markup:
    """Return a paragraph."""
    return tag("p", *content)


def bullets(items: Sequence[Child]) -> Markup:
    """Return a list."""
    return tag("ul", *(tag("li", item) for item in items))


def pairs(items: Sequence[tuple[Child, Child]]) -> Markup:
    """Return names with their values, as a description list."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in items))


def folded(summary: Child, *content: Child) -> Markup:
    """Return content that is folded on screen until a click, and open in print."""
    return tag("details", tag("summary", summary), *content)


def sample(text: object, label: Child = "") -> Markup:
    """Return text from a model or a log unchanged, with its line breaks and its own writing direction."""
    return tag(
        "div", tag("span", label, class_="label") if label else "", tag("pre", text, dir="auto"), class_="sample"
    )


def side_by_side(*columns: tuple[Child, Sequence[Child]]) -> Markup:
    """Return titled columns next to each other, or below each other if the window is narrow."""
    return tag("div", *(tag("div", tag("h4", title), *content) for title, content in columns), class_="columns")


def verdict(word: str, tone: str, sentence: Child) -> Markup:
    """Return the banner at the top of a page; ``tone`` is pass, fail, uncertain or plain."""
    return tag("div", tag("span", word, class_=f"word {tone}"), tag("p", sentence), class_=f"verdict {tone}")


def badge(word: str, tone: str = "plain") -> Markup:
    """Return a word as a small label."""
    return tag("span", word, class_=f"badge {tone}")
