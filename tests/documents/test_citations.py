"""Every arXiv paper that the documents and the code name is in references/citations.md, with the claim made from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CITATIONS = REPOSITORY / "references" / "citations.md"
ARXIV = re.compile(r"(?<![\d.])\d{4}\.\d{4,5}(?![\d.]*\d)")
WORD = re.compile(r"[\w.-]*\w")
SOURCES = [
    *(REPOSITORY / name for name in ("README.md", "SKILL.md")),
    *sorted((REPOSITORY / "references").glob("*.md")),
    *sorted((REPOSITORY / "skill_kd").rglob("*.py")),
    *(
        path
        for folder in ("plugins", "templates")
        for end in ("md", "py")
        for path in sorted((REPOSITORY / folder).rglob(f"*.{end}"))
    ),
]


def rows() -> Iterator[list[str]]:
    """The cells of each row of the table."""
    for line in CITATIONS.read_text(encoding="utf-8").splitlines():
        if line.startswith("| ") and not line.startswith("| source |"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def used() -> dict[str, set[str]]:
    """The files that name each arXiv id, except the list itself."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        for paper in ARXIV.findall(path.read_text(encoding="utf-8")) if path != CITATIONS else ():
            found.setdefault(paper, set()).add(path.relative_to(REPOSITORY).as_posix())
    return found


def test_every_arxiv_id_is_listed_and_every_listed_one_is_used() -> None:
    listed = {source for source, *_ in rows() if ARXIV.fullmatch(source)}
    assert listed
    assert used().keys() == listed


def test_every_source_is_listed_once_in_order_with_a_title_and_a_claim() -> None:
    sources = [source for source, *_ in rows()]
    assert len(set(sources)) == len(sources)
    papers = [source for source in sources if ARXIV.fullmatch(source)]
    assert papers == sorted(papers)
    failures = [row for row in rows() if len(row) != 4 or not all(row)]
    assert not failures, failures


def test_every_place_of_a_claim_names_its_source() -> None:
    failures = []
    for source, _, _, places in rows():
        for place in re.findall(r"`([^`]+)`", places) or ["no place"]:
            path = REPOSITORY / place
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if not set(WORD.findall(source)) <= set(WORD.findall(text)):
                failures.append(f"{place} does not name {source}")
    assert not failures, "\n".join(failures)
