"""The model card: front matter that the hub can read, and escaped text."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_document import ATTACK, bare, document
from hypothesis import given
from hypothesis import strategies as st

from skill_kd.kd.terminal import visible
from skill_kd.report import card as cards
from skill_kd.report.card import TrainingFacts, model_card, plain, write_card

TRAINING = TrainingFacts(
    teacher="org/a-teacher",
    base_model="org/a-base",
    objective="reverse KL on the student's own samples (MiniLLM)",
    dataset="prompts.jsonl",
    license="apache-2.0",
    language=["en"],
    spec_hash="ab" * 32,
)


def split(card: str) -> tuple[dict[str, Any], str]:
    """Return the front matter and the body, split as the hub splits them."""
    found = re.match(r"^\s*---[\r\n]+([\S\s]*?)[\r\n]+---(?:\r\n|\r|\n|$)", card)
    assert found
    front = yaml.safe_load(found[1])
    assert isinstance(front, dict)
    return front, card[found.end() :]


def test_front_matter_has_every_measured_metric() -> None:
    front, _ = split(model_card(document(), "pirate", TRAINING))
    (entry,) = front["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == "pirate"
    assert result["task"] == {"type": "text-generation"}
    assert result["dataset"] == {"name": "200 private prompts", "type": "private"}
    values = {each["type"]: each["value"] for each in result["metrics"]}
    assert values["recall"] == 0.78
    assert "nucleus" not in values
    assert len(values) == 8
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "org/a-base"


def test_hub_can_read_the_card() -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(model_card(document(), "pirate", TRAINING)).data
    assert data.model_name == "pirate"
    assert {result.metric_type: result.metric_value for result in data.eval_results}["loops"] == 0.004


def test_body_lists_measured_and_missing_metrics() -> None:
    _, body = split(model_card(document(), "pirate", TRAINING))
    for words in (
        "NO-GO",
        "org/a-teacher",
        "MiniLLM",
        "p95 1.58 s",
        "0.747 to 0.996, 95%",
        "Safety of responses",
        "ab" * 32,
    ):
        assert words in body
    evaluation = document()
    evaluation["warnings"] = ["few prompts"]
    evaluation["metrics"][0] |= {"outcome": "insensitive", "baseline": 0.125}
    evaluation["metrics"][1] |= {
        "outcome": "not_measured",
        "estimate": None,
        "reason": "no reference",
        "role": "blocking",
    }
    front, body = split(model_card(evaluation, "pirate"))
    assert "\n- few prompts\n" in body
    assert "| 0.125 | insensitive |" in body
    assert f"- Not measured: {evaluation['metrics'][1]['title']}. no reference." in body
    assert not [each for each in evaluation["metrics"][:2] if f"type: {each['name']}\n" in front]
    _, body = split(model_card(bare(), "pirate"))
    for words in ("INCONCLUSIVE", "Latency was not measured.", "Not measured.", "Nothing is listed"):
        assert words in body
    assert "model-index" not in split(model_card(bare(), "pirate"))[0]


HOSTILE = [
    "name\n---\nlicense: mit\n---\n# Hi",
    "name: x\nlicense: mit",
    "!!python/object/apply:os.system [ls]",
    "{a: b}",
    "'\"",
    "&anchor *alias",
    "- item",
    "| cell | cell |",
    ATTACK,
    "[click](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "https://example.org and www.example.org and a@example.org",
    "`code` **bold** _under_ ~~gone~~ $x$",
    "\x1b[31mred\u202e",
    "\ud800",
]


class Elements(HTMLParser):
    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(re.sub(r"\\.", "", source))

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def changed_by(text: str) -> Iterator[str]:
    """Yield everything in a card that a name changes, except the name itself."""
    training = TrainingFacts(text, text, text, text, text, [text], text)
    whole = {**document(), "known_not_covered": [text], "sentence": text}
    normal, _ = split(model_card(document(), "pirate", TRAINING))
    try:
        front, body = split(model_card(whole, text, training))
    except (AssertionError, yaml.YAMLError) as error:
        yield f"the front matter cannot be read: {error!r}"
        return
    if front.keys() != normal.keys():
        yield f"the front matter has the keys {sorted(front)}"
    elif not isinstance(name := front["model-index"][0]["name"], str) or name.split() != plain_words(text):
        yield f"the name becomes {name!r}"
    headings = re.findall(r"^#+ (.*)$", body, re.MULTILINE)
    if headings[1:] != ["Verdict", "Coverage and quality", "Speed", "What is not covered", "How this was measured"]:
        yield f"the headings are {headings}"
    if found := Elements(body).found:
        yield f"the body has the elements {found}"
    unescaped = re.sub(r"\\.", "", body)
    yield from (f"{mark} is not escaped" for mark in ("](", "://", "www.example") if mark in unescaped)


def test_hostile_name_changes_neither_front_matter_nor_structure() -> None:
    assert HOSTILE
    failures = [f"{text!a}: {failure}" for text in HOSTILE for failure in changed_by(text)]
    assert not failures, "\n".join(failures)


def plain_words(text: str) -> list[str]:
    return visible(text).split()


@given(st.text(alphabet=st.characters(), max_size=60))
def test_any_name_keeps_the_front_matter_valid(name: str) -> None:
    front, body = split(model_card(document(), name, TrainingFacts(teacher=name, license=name)))
    assert front["pipeline_tag"] == "text-generation"
    assert len(front["model-index"][0]["results"][0]["metrics"]) == 8
    assert body.count("\n## ") == 5
    assert model_card(document(), name).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# a", r"\# a"),
        ("1. a", r"1\. a"),
        ("---", r"\---"),
        ("+ a", r"\+ a"),
        ("+0.4", "+0.4"),
        ("0.78", "0.78"),
        ("a|b", r"a\|b"),
    ],
)
def test_only_markdown_syntax_is_escaped(text: str, expected: str) -> None:
    assert plain(text) == expected


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def student(tmp_path: Path) -> Path:
    (tmp_path / "student").mkdir()
    (tmp_path / "eval").mkdir()
    return tmp_path / "student"


def put(student: Path, card: str) -> str | None:
    path = write_card(card, student, student.parent / "eval")
    return None if path is None else path.relative_to(student.parent).as_posix()


def test_unedited_card_is_replaced_and_hub_can_read_it(student: Path) -> None:
    assert put(student, model_card(document(), "first")) == "student/README.md"
    assert put(student, model_card(document(), "second", TRAINING)) == "student/README.md"
    text = (student / "README.md").read_text(encoding="utf-8")
    front, body = split(text)
    assert front["model-index"][0]["name"] == "second"
    assert text.startswith(model_card(document(), "second", TRAINING))
    assert "first" not in body
    assert [path.name for path in student.iterdir()] == ["README.md"]


def test_unedited_card_with_the_old_mark_is_replaced(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cards, "_MARK", cards._OLD_MARK)
        put(student, model_card(document(), "first"))
    assert put(student, model_card(document(), "second")) == "student/README.md"


EDITS: dict[str, Callable[[str], str]] = {
    "a word": lambda text: text.replace("NO-GO", "GO"),
    "something below": lambda text: text + "Mine.\n",
    "no mark": lambda text: text.rpartition("\n<!--")[0],
    "all": lambda _: "# Mine\n",
    "nothing left": lambda _: "",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_file_written_or_edited_by_a_person_is_never_replaced(edit: Callable[[str], str], student: Path) -> None:
    put(student, model_card(document(), "first"))
    theirs = edit((student / "README.md").read_text(encoding="utf-8"))
    (student / "README.md").write_text(theirs, encoding="utf-8")
    assert put(student, model_card(document(), "second")) == "student/MODEL_CARD.md"
    assert put(student, model_card(document(), "third")) == "student/MODEL_CARD.md"
    assert (student / "README.md").read_text(encoding="utf-8") == theirs
    assert "third" in (student / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_nothing_is_written_if_every_path_is_taken(student: Path) -> None:
    taken = [student / "README.md", student / "MODEL_CARD.md", student.parent / "eval" / "MODEL_CARD.md"]
    for place, path in zip(["student/MODEL_CARD.md", "eval/MODEL_CARD.md", None], taken, strict=True):
        path.write_bytes(b"\xff mine")
        assert put(student, "card") == place
        if place:
            (student.parent / place).unlink()
    assert all(path.read_bytes() == b"\xff mine" for path in taken)


def test_symbolic_link_is_never_replaced(student: Path) -> None:
    os.symlink(student / "nowhere", student / "README.md")
    assert put(student, "card") == "student/MODEL_CARD.md"
    assert (student / "README.md").is_symlink()


def test_read_only_folder_gets_its_card_in_the_evaluation_folder(student: Path) -> None:
    file = student.parent / "a-file"
    file.write_text("")
    assert put(file, "card") == "eval/MODEL_CARD.md"
