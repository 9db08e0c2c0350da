"""A teacher's text: only its final part is a target, and an answer without one is counted and never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import build_model, make_tokenizer
from tokenizers import AddedToken

from skill_kd.kd import config
from skill_kd.kd.answers import Answer, Unusable
from skill_kd.kd.dataset import encoding
from skill_kd.kd.dataset.batch import Row, collate
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.endpoint import Endpoint
from skill_kd.kd.errors import TrainingStopped
from skill_kd.kd.model.loading import LoadedTeacher
from skill_kd.kd.model.vocabulary import eos_ids
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest, requests_for
from skill_kd.kd.teacher.answer_tally import FIXES, AnswerTally
from skill_kd.kd.teacher.responses import TeacherResponses
from skill_kd.kd.teacher.served import ATTEMPTS, ServedTeacher
from skill_kd.kd.teacher.teacher import Teacher
from skill_kd.kd.teacher.writers import foreign_writer, served_writer
from skill_kd.kd.train.held_out import HeldOut
from skill_kd.kd.train.objectives import build_objective

torch.set_num_threads(1)

TOKENIZER = make_tokenizer()
EOS = int(TOKENIZER.eos_token_id)
ENDS = frozenset({EOS})
ENCODER = Encoder(TOKENIZER, ENDS)
DECODING = Decoding(200, 1.0, 1.0, ENDS, len(TOKENIZER))
SAMPLER = Sampler(DECODING, EOS, torch.device("cpu"))
EXAMPLES = [Example((("user", f"hello {number}"),), None) for number in range(40)]
REQUESTS = requests_for([ENCODER.prompt(example) for example in EXAMPLES], (1,))
CUT = Answer("", False, Unusable.REASONING)
SAID = Answer("the lazy dog", True)
MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|return|>", "<|end|>")


def text_of(row: Row | None) -> str:
    assert row is not None
    return str(TOKENIZER.decode(row.response))


class Script(ServedTeacher):
    """A served teacher whose server gives these answers in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Sequence[Answer]) -> None:
        address = {"url": "http://a.invalid", "model": "m", "top_logprobs": 0, "concurrency": 1}
        super().__init__(config.Served(**address), len(TOKENIZER))
        self.seeds: list[int] = []
        left = iter(answers)

        def chat(_self: Endpoint, _turns: object, *, seed: int, **_: Any) -> Answer:
            self.seeds.append(seed)
            return next(left)

        monkeypatch.setattr(Endpoint, "chat", chat)


def test_an_answer_without_text_is_asked_for_again_with_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    server, tally = Script(monkeypatch, [CUT, SAID, SAID]), AnswerTally(0.0)
    rows = served_writer(server, ENCODER, tally)(EXAMPLES[:2], REQUESTS[:2], DECODING)
    assert [text_of(row) for row in rows] == [f"the lazy dog{TOKENIZER.eos_token}"] * 2
    assert len(set(server.seeds)) == 3
    assert (tally.asked, tally.note()) == (2, None)


@pytest.mark.parametrize(("temperature", "requests"), [(1.0, ATTEMPTS), (0.0, 1)])
def test_answer_without_text_gives_no_row(temperature: float, requests: int, monkeypatch: pytest.MonkeyPatch) -> None:
    server, tally = Script(monkeypatch, [CUT] * ATTEMPTS), AnswerTally(0.1)
    decoding = replace(DECODING, temperature=temperature)
    assert list(served_writer(server, ENCODER, tally)(EXAMPLES[:1], REQUESTS[:1], decoding)) == [None]
    assert len(server.seeds) == requests
    note = tally.note()
    assert note is not None
    assert "1 of 1 answers of the teacher cannot be used (1 were cut while reasoning)" in note


def test_text_that_the_tokenizer_drops_counts_as_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = AnswerTally(1.0)
    monkeypatch.setattr(encoding, "following_ids", lambda *_given: ())
    write = served_writer(Script(monkeypatch, [SAID]), ENCODER, tally)
    assert list(write(EXAMPLES[:1], REQUESTS[:1], DECODING)) == [None]
    assert tally.unusable == {Unusable.EMPTY: 1}


def test_a_cut_answer_with_text_has_no_end_token(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Script(monkeypatch, [replace(SAID, finished=False)])
    tally = AnswerTally(0.0)
    [row] = served_writer(server, ENCODER, tally)(EXAMPLES[:1], REQUESTS[:1], DECODING)
    assert text_of(row) == "the lazy dog"
    assert str(tally.note()).startswith("teacher's answers: 1 of 1 were cut by the length limit and teach no end")


def test_an_answer_of_more_student_tokens_than_the_limit_counts_as_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    length = len(ENCODER.answer(EXAMPLES[0], SAID.text).response)
    for limit, end in ((length, TOKENIZER.eos_token), (length - 1, "")):
        tally = AnswerTally(0.0)
        write = served_writer(Script(monkeypatch, [SAID]), ENCODER, tally)
        [row] = write(EXAMPLES[:1], REQUESTS[:1], replace(DECODING, max_new_tokens=limit))
        assert text_of(row) == f"the lazy dog{end}"
        assert (tally.cut, tally.note() is None) == ((0, True) if end else (1, False))


# --- the share --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "answers", "stops"),
    [
        (0.1, [CUT] * 2 + [SAID] * 3, False),  # of 20 at least
        (0.1, [CUT] * 3 + [SAID] * 3, True),
        (0.1, [CUT] * 4 + [SAID] * 36, False),
        (0.1, [CUT] * 5 + [SAID] * 36, True),
        (0.0, [CUT], True),
        (1.0, [CUT] * 40, False),
    ],
)
def test_more_than_the_allowed_share_stops_the_run(most: float, answers: list[Answer], stops: bool) -> None:
    tally = AnswerTally(most)
    if not stops:
        tally.add(answers)
        return
    with pytest.raises(
        TrainingStopped, match=r"cut while reasoning\); raise rollout\.max_new_tokens.*max_unusable"
    ) as e:
        tally.add(answers)
    assert e.value.exit_code == 6
    assert f"{answers.count(CUT)} of {len(answers)} answers" in str(e.value)


def test_the_commonest_reasons_have_their_fixes() -> None:
    tally = AnswerTally(1.0)
    for count, reason in enumerate(Unusable, start=1):
        tally.add([Answer("", True, reason)] * count)
    assert str(tally.refusal()).index("failed on the server") < tally.refusal().index("are empty")
    assert FIXES[Unusable.FAILED] in tally.refusal()
    assert set(FIXES) == set(Unusable)


def test_reasoning_that_is_left_out_is_noted() -> None:
    tally = AnswerTally(0.0)
    tally.add([SAID, replace(SAID, reasoned=True)])
    assert tally.note() == "teacher's answers: 1 of 2 have reasoning, which is left out"


# --- never a target, never a metric -----------------------------------------------------------------------------------


def writing(*usable: bool) -> Any:
    """A writer whose n-th answer can be used or not, for the n-th request of all."""

    def write(_examples: object, requests: Sequence[SampleRequest], _decoding: Decoding) -> list[Row | None]:
        return [
            Row(request.prompt.prompt, (70, 71, EOS), (True,) * 3, "teacher") if usable[request.row] else None
            for request in requests
        ]

    return write


def test_a_prompt_without_an_answer_gets_a_row_that_no_loss_reads() -> None:
    teacher = Teacher(None, len(TOKENIZER), writing(True, False))
    responses = TeacherResponses(teacher, EXAMPLES[:2], REQUESTS[:2], DECODING)
    usable, unusable = rows = responses([0, 1])
    assert (usable.tokens, unusable.tokens) == (3, 0)
    assert responses([1, 0]) == [unusable, usable]
    objective = build_objective(config.SequenceKD())
    assert objective.count(rows) == 3
    losses = []
    for batch in (rows, [usable], [unusable]):
        layout = collate(batch, EOS, torch.device("cpu"))
        logits = torch.linspace(-1, 1, len(TOKENIZER)).expand(*layout.response_BT.shape, -1)
        losses.append(float(objective.loss(logits.log_softmax(-1), None, layout).sum()))
    assert losses[0] == losses[1] > 0
    assert losses[2] == 0


def test_held_out_prompts_without_an_answer_are_in_no_measure() -> None:
    student = build_model("llama", layers=1, vocabulary=len(TOKENIZER), tokenizer=TOKENIZER)
    sampler = replace(SAMPLER, decoding=replace(DECODING, max_new_tokens=4))

    def measured(numbers: list[int], *usable: bool) -> tuple[Any, list[Row]]:
        teacher = Teacher(None, len(TOKENIZER), writing(*usable))
        held_out = HeldOut(
            teacher, sampler, [EXAMPLES[n] for n in numbers], [REQUESTS[n] for n in numbers], rows_at_once=2
        )
        figures, rows = held_out.measure(student)
        assert len(held_out.completions(rows, TOKENIZER)) == len(rows)
        return figures, rows

    assert measured([0, 1, 2], True, False, True) == measured([0, 2], True, True, True)
    with pytest.raises(TrainingStopped, match="held-out prompts: 0 of 0 answers"):
        measured([0], False)


# --- loaded teachers --------------------------------------------------------------------------------------------------


def foreign(monkeypatch: pytest.MonkeyPatch, said: str, limit: int = 200, opening: str = "") -> tuple[Any, AnswerTally]:
    """Return the row that a loaded teacher of another tokenizer gives when it writes ``said``, and the tally."""
    theirs = make_tokenizer(special=("<unk>", "<s>", "<|return|>"), pad="<|return|>")
    theirs.add_special_tokens({"additional_special_tokens": [*MARKS]})
    theirs.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    theirs.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}" + opening
    model = build_model("llama", layers=1, vocabulary=len(theirs), tokenizer=theirs)
    ids = theirs(said, add_special_tokens=False)["input_ids"]

    def sample(_self: Sampler, _model: object, requests: Sequence[SampleRequest], _source: str) -> list[Row]:
        return [Row(each.prompt.prompt, tuple(ids[:limit]), (True,) * len(ids[:limit]), "teacher") for each in requests]

    monkeypatch.setattr(Sampler, "sample", sample)
    tally = AnswerTally(1.0)
    loaded = LoadedTeacher(model, theirs, len(theirs))
    own = Encoder(theirs, eos_ids(theirs, model.generation_config))
    [row] = foreign_writer(model, loaded, SAMPLER, ENCODER, own, tally)(EXAMPLES[:1], REQUESTS[:1], DECODING)
    return row, tally


CHANNELS = (
    "<|channel|>analysis<|message|>the brown fox<|end|>"
    "<|start|>assistant<|channel|>final<|message|>the lazy dog<|return|>"
)


@pytest.mark.parametrize(
    ("said", "opening"),
    [
        (CHANNELS, ""),
        ("<think>the brown fox</think>\n\nthe lazy dog<|return|>", ""),
        ("the brown fox</think>\n\nthe lazy dog<|return|>", "<think>\n"),
        ("the lazy dog<|return|>", ""),
    ],
    ids=["channels", "thought", "thought that the template opens", "no reasoning"],
)
def test_only_the_final_part_of_a_loaded_teachers_text_is_a_target(
    said: str, opening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, tally = foreign(monkeypatch, said, opening=opening)
    assert text_of(row) == f"the lazy dog{TOKENIZER.eos_token}"
    assert not tally.unusable
    assert tally.reasoned == (said != "the lazy dog<|return|>")


@pytest.mark.parametrize(
    ("said", "opening", "limit", "reason"),
    [
        (CHANNELS, "", 8, Unusable.REASONING),
        ("the brown fox jumps over", "<think>\n", 3, Unusable.REASONING),
        ("<|return|>", "", 1, Unusable.EMPTY),
    ],
    ids=["cut in a channel", "cut in a thought that the template opens", "nothing"],
)
def test_text_of_a_loaded_teacher_without_a_final_part_gives_no_row(
    said: str, opening: str, limit: int, reason: Unusable, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, tally = foreign(monkeypatch, said, limit, opening)
    assert row is None
    assert tally.unusable == {reason: 1}
