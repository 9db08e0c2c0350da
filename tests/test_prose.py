"""Plain English in sources, documents and ``--help``: no word or phrase of ``prose.toml``, which names replacements."""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from skill_kd.cli import cli

REPOSITORY = Path(__file__).parents[1]
LISTS = tomllib.loads((Path(__file__).parent / "prose.toml").read_text(encoding="utf-8"))
DOCUMENTS = (".md", ".yaml", ".yml", ".sh")
HISTORY = ("tests/data/", "dev/LOG.md")
"""A run folder of version 0.1, and the dated log of experiments. Nobody edits them."""


@dataclass(frozen=True)
class Finding:
    """A word to avoid; ``line`` counts from 0 in the text."""

    line: int
    word: str
    instead: str


INSTEAD_OF: dict[str, list[str]] = LISTS["words"]
INSTEAD = {word: instead for instead, words in INSTEAD_OF.items() for word in words}
WORD = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b")
PHRASES = {re.compile(pattern): instead for instead, pattern in LISTS["phrases"].items()}
OPENINGS = {re.compile(pattern): instead for instead, pattern in LISTS["openings"].items()}
QUESTION = re.compile(r'"""\s*(?:W|How)')
ALLOWED = [re.compile(pattern) for pattern in LISTS["allowed"].values()]


def findings(text: str) -> Iterator[Finding]:
    """Yield the words and phrases to avoid in a text. A phrase may span two lines."""
    flat = re.sub(r"\s", " ", text.lower())
    spans = [found.span() for allowed in ALLOWED for found in allowed.finditer(flat)]
    matches = [(found, INSTEAD[found[0]]) for found in WORD.finditer(flat)]
    matches += [(found, instead) for phrase, instead in PHRASES.items() for found in phrase.finditer(flat)]
    for found, instead in matches:
        if not any(start <= found.start() < end for start, end in spans):
            yield Finding(text.count("\n", 0, found.start()), found[0], instead)


def in_python(source: str) -> Iterator[Finding]:
    """Yield the findings in strings, comments, docstrings and the names of tests."""
    if not (any(findings(_spaced(source))) or QUESTION.search(source)):
        return  # parsing takes most of the time
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _in_string(node, node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from _of_opening(node.lineno - 1, node.value.value)
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield from (Finding(node.lineno - 1, each.word, each.instead) for each in findings(_spaced(node.name)))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from (Finding(token.start[0] - 1, each.word, each.instead) for each in findings(token.string))


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _in_string(node: ast.Constant, text: str) -> Iterator[Finding]:
    lines = (node.end_lineno or node.lineno) - node.lineno
    exact = lines == text.count("\n")  # else the string has escapes or consists of several literals
    for each in findings(text):
        yield Finding(node.lineno - 1 + (each.line if exact else 0), each.word, each.instead)


def _of_opening(line: int, docstring: str) -> Iterator[Finding]:
    for pattern, instead in OPENINGS.items():
        if found := pattern.match(docstring.strip()):
            yield Finding(line, found[0], instead)


@functools.cache
def tracked() -> dict[str, list[Path]]:
    """Return the tracked files by their top-level folder, without history."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.split("\0")
    folders: dict[str, list[Path]] = {}
    for name in names:
        if name and not name.startswith(HISTORY) and (REPOSITORY / name).is_file():
            folders.setdefault(name.partition("/")[0] if "/" in name else ".", []).append(REPOSITORY / name)
    return folders


def in_file(path: Path) -> list[str]:
    """Return one line for each finding in a source or a document: file, line, word and replacement."""
    read = in_python if path.suffix == ".py" else findings
    if path.suffix not in (".py", *DOCUMENTS):
        return []
    found = sorted(read(path.read_text(encoding="utf-8")), key=lambda each: each.line)
    return [f"{path}:{each.line + 1}: {each.word!r}; write: {each.instead}" for each in found]


@pytest.mark.parametrize("folder", sorted(tracked()))
def test_sources_and_documents_use_plain_words(folder: str) -> None:
    lines = [line.removeprefix(f"{REPOSITORY}/") for path in tracked()[folder] for line in in_file(path)]
    assert not lines, "\n".join(["see tests/prose.toml", *lines])


@pytest.mark.parametrize("verb", ["", *cli.commands])
def test_help_uses_plain_words(verb: str) -> None:
    shown = CliRunner().invoke(cli, [verb, "--help"] if verb else ["--help"])
    assert shown.exit_code == 0
    assert [f"{each.word!r}; write: {each.instead}" for each in findings(shown.output)] == []


# --- the check itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", INSTEAD)
def test_a_planted_word_is_found_in_strings_comments_docstrings_and_documents(word: str, tmp_path: Path) -> None:
    source, document = tmp_path / "planted.py", tmp_path / "planted.md"
    source.write_text(f'"""A module.\n\nIt {word} it.\n"""\n\nx = f"{{1}} {word.title()} {{2}}"\ny = 1  # {word}\n')
    document.write_text(f"# Planted\n\nIt {word} it.\n")
    instead = f"{word!r}; write: {INSTEAD[word]}"
    assert in_file(source) == [f"{source}:{line}: {instead}" for line in (3, 6, 7)]
    assert in_file(document) == [f"{document}:3: {instead}"]


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("'x' {} no folder".format("is"), True),
        ("there is no folder", False),
        ("There\nis no folder", False),
        ("it is no longer a folder", False),
        ("it goes {} with\nthe run".format("on"), True),
        ("it depends on this", False),
        ("{}ise the data".format("normal"), True),
        ("otherwise raise, and advise", False),
        ("Please {} me a story".format(INSTEAD_OF["say, show, report or return"][0]), False),
        ("a {}_logp is an identifier".format(INSTEAD_OF["behavior"][0]), False),
    ],
)
def test_phrases_are_found_and_correct_english_passes(sentence: str, found: bool) -> None:
    assert bool(list(findings(sentence))) is found


@pytest.mark.parametrize("opening", ["Whether x is y.", "What x is.", "Where x lies.", "How much x takes."])
def test_a_docstring_that_is_a_clause_is_found(opening: str) -> None:
    [found] = in_python(f'def f():\n    """{opening}"""\n')
    assert (found.line, opening.startswith(found.word)) == (1, True)
    assert list(in_python(f'def f():\n    """Return True if x is y."""\n    return "{opening}"\n')) == []


def test_names_of_tests_are_checked() -> None:
    [word, *_] = INSTEAD
    [found] = in_python(f"def test_it_{word}_it():\n    {word}_here = 1\n")
    assert found.word == word
