"""measure: held-out figures against plain float64 loops, their names for each kind of teacher, and texts counted."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from tiny import build_model, make_model, make_tokenizer
from transformers import PreTrainedModel

from skill_kd.kd.answers import Answer
from skill_kd.kd.config import Config
from skill_kd.kd.dataset.batch import Row
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.endpoint import Endpoint
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest, requests_for
from skill_kd.kd.teacher.served import ServedTeacher
from skill_kd.kd.teacher.teacher import Teacher, open_teacher
from skill_kd.kd.train.held_out import HeldOut, distinct_n, ngrams, repetition
from skill_kd.spec.file import parse_spec

torch.set_num_threads(1)

TOKENIZER = make_tokenizer()
EOS = int(TOKENIZER.eos_token_id)
VOCABULARY = len(TOKENIZER)
ENDS = frozenset({EOS, *range(40, 60)})
"""So many that responses differ in length."""
TEACHER = build_model("llama", layers=2, vocabulary=VOCABULARY, tokenizer=TOKENIZER, seed=2)
STUDENT = build_model("gpt2", layers=1, vocabulary=VOCABULARY + 20, tokenizer=TOKENIZER, seed=1)
"""Its embedding is padded, and it has dropout."""
EXAMPLES = [Example((("user", text),), None) for text in ("hello", "what is a quick brown fox", "a dog", "the", "fox")]
ENCODER = Encoder(TOKENIZER, ENDS)
REQUESTS = requests_for([ENCODER.prompt(example) for example in EXAMPLES], (1, "held_out"))
SAMPLER = Sampler(Decoding(12, 1.0, 1.0, ENDS, VOCABULARY), pad=EOS, device=torch.device("cpu"))
SHARP = replace(SAMPLER, decoding=replace(SAMPLER.decoding, temperature=0.2, top_p=0.3))


def write(examples: Sequence[Example], requests: Sequence[SampleRequest], decoding: Decoding) -> list[Row]:
    return replace(SAMPLER, decoding=decoding).sample(TEACHER, requests, "teacher")


LOADED = Teacher(TEACHER, VOCABULARY, write)
TEXT_ONLY = Teacher(None, VOCABULARY, write)


def held_out(teacher: Teacher = LOADED, sampler: Sampler = SAMPLER, rows_at_once: int = 2) -> HeldOut:
    return HeldOut(teacher, sampler, EXAMPLES, REQUESTS, rows_at_once)


class Named:
    """A server in this process that names the ``top`` likeliest tokens of a position, and the one that stands there."""

    def __init__(self, top: int) -> None:
        self.top = top

    def ids(self, p: Sequence[float], token: int) -> list[int]:
        return sorted({token, *sorted(range(len(p)), key=lambda v: -p[v])[: self.top]})

    def score(self, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[dict[int, float]]]:
        return [
            [{v: math.log(p[v]) for v in self.ids(p, token)} for p, token in zip(found, response, strict=True)]
            for prompt, response in rows
            for found in [distributions(TEACHER, prompt, response)]
        ]


def serving(top: int) -> Teacher:
    return Teacher(None, VOCABULARY, write, Named(top))  # type: ignore[arg-type]


# --- against plain loops ----------------------------------------------------------------------------------------------


def distributions(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> list[list[float]]:
    """Return a float64 model's distribution over the shared ids at each response token; one row, so nothing is padded.

    Row t predicts token t: it stands one place before it.
    """
    exact = copy.deepcopy(model).double().train(False)
    with torch.no_grad():
        logits = exact(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
    return [reference.softmax(row) for row in logits.tolist()]


def expected(rows: Sequence[Row], named: Named | None = None) -> dict[str, float]:
    """Return every figure that can be taken on these rows, each the mean over all their tokens."""
    values: dict[str, list[float]] = {}
    for row in rows:
        students, teachers = (distributions(model, row.prompt, row.response) for model in (STUDENT, TEACHER))
        for student, teacher, token in zip(students, teachers, row.response, strict=True):
            q, p = student, teacher
            if named is not None:
                ids = named.ids(teacher, token)
                q, p = ([*(each[v] for v in ids), 1 - math.fsum(each[v] for v in ids)] for each in (student, teacher))
            told = {
                "forward": reference.forward_kl(q, p),
                "reverse": reference.reverse_kl(q, p),
                "nll": -math.log(student[token]),
                "entropy": reference.entropy(student),
                "teacher_nll": -math.log(teacher[token]),
                "teacher_entropy": reference.entropy(p),
            }
            for name, value in told.items():
                values.setdefault(name, []).append(value)
    return {name: math.fsum(each) / len(each) for name, each in values.items()}


@pytest.mark.parametrize("rows_at_once", [1, 2, 5, 64])
def test_figures_are_those_of_plain_loops_in_float64_however_rows_are_batched(rows_at_once: int) -> None:
    asked = held_out(rows_at_once=rows_at_once)
    figures, student_rows = asked.measure(STUDENT)
    on_teacher, on_student = expected(asked.teacher_rows), expected(student_rows)
    assert len({len(row.response) for row in (*asked.teacher_rows, *student_rows)}) > 2
    assert {name: figures[name] for name in figures if "kl" in name or "nll" in name or "entropy" in name} == {
        "forward_kl": pytest.approx(on_teacher["forward"], rel=1e-4),
        "held_out_nll": pytest.approx(on_teacher["nll"], rel=1e-4),
        "teacher_held_out_nll": pytest.approx(on_teacher["teacher_nll"], rel=1e-4),
        "teacher_entropy": pytest.approx(on_teacher["teacher_entropy"], rel=1e-4),
        "reverse_kl": pytest.approx(on_student["reverse"], rel=1e-4),
        "teacher_nll": pytest.approx(on_student["teacher_nll"], rel=1e-4),
        "student_entropy": pytest.approx(on_student["entropy"], rel=1e-4),
    }


def test_a_student_that_is_the_teacher_has_no_divergence() -> None:
    figures, _ = held_out().measure(TEACHER)
    assert figures["forward_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["reverse_kl"] == pytest.approx(0, abs=1e-6)
    assert figures["held_out_nll"] == pytest.approx(figures["teacher_held_out_nll"])


@pytest.mark.parametrize("top", [1, 5])
def test_the_bounds_of_a_served_teacher_are_divergences_over_what_it_names(top: int) -> None:
    asked, exact = held_out(serving(top)), held_out().measure(STUDENT)[0]
    figures, student_rows = asked.measure(STUDENT)
    on_teacher, on_student = expected(asked.teacher_rows, Named(top)), expected(student_rows, Named(top))
    assert figures["forward_kl_topk"] == pytest.approx(on_teacher["forward"], rel=1e-3)
    assert figures["reverse_kl_topk"] == pytest.approx(on_student["reverse"], rel=1e-3)
    assert figures["teacher_entropy_topk"] == pytest.approx(on_teacher["teacher_entropy"], rel=1e-3)
    bounded = {"forward_kl", "reverse_kl", "teacher_entropy"}
    assert all(0 < figures[f"{name}_topk"] < exact[name] for name in bounded)
    others = exact.keys() - bounded
    assert figures.keys() == others | {f"{name}_topk" for name in bounded}
    assert {name: figures[name] for name in others} == {name: pytest.approx(exact[name], rel=1e-4) for name in others}


def test_a_teacher_that_gives_text_alone_leaves_the_likelihood_of_its_text() -> None:
    figures, exact = held_out(TEXT_ONLY).measure(STUDENT)[0], held_out().measure(STUDENT)[0]
    texts = {"length", "repetition", "distinct_2", "ended"}
    assert figures.keys() == {"held_out_nll", *texts, *(f"teacher_{name}" for name in texts)}
    assert figures == {name: exact[name] for name in figures}


# --- how responses are drawn ------------------------------------------------------------------------------------------


def test_samples_are_drawn_plainly_whatever_the_rollouts_decoding_is() -> None:
    plain, sharp = held_out(), held_out(sampler=SHARP)
    assert sharp.teacher_rows == plain.teacher_rows
    assert sharp.measure(STUDENT) == plain.measure(STUDENT)
    assert sharp.teacher_rows != write(EXAMPLES, REQUESTS, SHARP.decoding)
    for row in sharp.teacher_rows:
        logp = [
            math.log(p[token])
            for p, token in zip(distributions(TEACHER, row.prompt, row.response), row.response, strict=True)
        ]
        assert row.behaviour_logp == pytest.approx(logp, abs=1e-4)


OTHER_IDS = ("<|im_end|>", "<|im_start|>", "<|endoftext|>")


@pytest.mark.parametrize("special", [None, OTHER_IDS], ids=["the student's tokenizer", "a tokenizer of its own"])
def test_a_loaded_teacher_writes_held_out_samples_plainly(special: tuple[str, ...] | None, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "teacher", seed=2, **({"special": special} if special else {}))  # type: ignore[arg-type]
    plain, sharp = (
        held_out(open_teacher(config_of(model=str(folder)), TOKENIZER, sampler, ENCODER), sampler)
        for sampler in (SAMPLER, SHARP)
    )
    assert sharp.teacher_rows == plain.teacher_rows
    assert sharp.teacher_rows != sharp.teacher.write(EXAMPLES, REQUESTS, SHARP.decoding)


def test_a_served_teacher_is_asked_for_plain_held_out_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Decoding] = []

    def answer(
        self: ServedTeacher, prompts: Sequence[Any], seeds: Sequence[Any], decoding: Decoding, *_: Any
    ) -> list[Answer]:
        asked.append(decoding)
        return [Answer("hello", True) for _ in prompts]

    monkeypatch.setattr(ServedTeacher, "answer", answer)
    monkeypatch.setattr(Endpoint, "check_model", lambda _self: None)
    served = {"url": "http://127.0.0.1:1/v1", "model": "m", "top_logprobs": 0}
    held_out(open_teacher(config_of(served=served), TOKENIZER, SHARP, ENCODER), SHARP)
    assert [(each.temperature, each.top_p, each.max_new_tokens) for each in asked] == [(1.0, 1.0, 12)]


def config_of(**teacher: Any) -> Config:
    values = {
        "name": "measure",
        "teacher": teacher,
        "student": {"model": "a-student"},
        "data": {"train": "prompts.jsonl", "max_prompt_tokens": 100},
        "stages": [{"kind": "distill", "objective": {"kind": "sequence_kd"}}],
        "rollout": {"max_new_tokens": 12},
    }
    return Config.of(parse_spec(values).model_dump(mode="json"))


# --- the student is left as it was ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_the_student_as_it_was_and_ignores_its_dropout(training: bool) -> None:
    student = copy.deepcopy(STUDENT).train(training)
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    assert held_out().measure(student) == held_out().measure(STUDENT)
    assert all(module.training is training for module in student.modules())
    assert all(weight.equal(before[name]) for name, weight in student.state_dict().items())
    assert all(weight.grad is None for weight in student.parameters())


def test_a_measure_repeats_and_shows_training() -> None:
    asked, student = held_out(), copy.deepcopy(STUDENT)
    first = asked.measure(student)
    assert asked.measure(student) == first
    with torch.no_grad():
        student.lm_head.weight.mul_(1.5)
    later, _ = asked.measure(student)
    assert later["forward_kl"] != first[0]["forward_kl"]
    assert {name: value for name, value in later.items() if name.startswith("teacher_") and "nll" not in name} == {
        name: value for name, value in first[0].items() if name.startswith("teacher_") and "nll" not in name
    }


# --- figures of texts -------------------------------------------------------------------------------------------------


def test_figures_of_texts_are_means_over_responses_of_the_student_and_of_the_teacher() -> None:
    asked = held_out()
    figures, student_rows = asked.measure(STUDENT)
    for rows, prefix in ((student_rows, ""), (asked.teacher_rows, "teacher_")):
        responses = [row.response for row in rows]
        ended = [response for response in responses if response[-1] in ENDS]
        assert 0 < len(ended) < len(responses)
        assert figures[f"{prefix}ended"] == len(ended) / len(responses)
        assert figures[f"{prefix}length"] == sum(map(len, responses)) / len(responses)
        assert figures[f"{prefix}distinct_2"] == distinct_n(responses, 2)
        assert figures[f"{prefix}repetition"] == pytest.approx(sum(map(repetition, responses)) / len(responses))


@pytest.mark.parametrize(
    ("tokens", "n", "grams"),
    [
        ((), 1, []),
        ((1, 2), 3, []),
        ((1, 2, 3), 3, [(1, 2, 3)]),
        ((1, 2, 1, 2), 2, [(1, 2), (2, 1), (1, 2)]),
        ((5, 5), 1, [(5,), (5,)]),
    ],
)
def test_ngrams_overlap_and_there_are_none_in_what_is_too_short(
    tokens: tuple[int, ...], n: int, grams: list[tuple[int, ...]]
) -> None:
    assert ngrams(tokens, n) == grams


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        ((), 0.0),
        ((7, 7, 7), 0.0),  # no 4-gram at all
        ((1, 2, 3, 4), 0.0),
        ((7,) * 8, 4 / 5),
        ((1, 2, 3, 4) * 2, 1 / 5),
        (tuple(range(50)), 0.0),
        ((7,) * 1003, 999 / 1000),
    ],
)
def test_repetition_is_the_share_of_4_grams_seen_before(tokens: tuple[int, ...], share: float) -> None:
    assert repetition(tokens) == pytest.approx(share)


def test_distinct_n_is_the_mean_over_the_responses_that_have_an_n_gram() -> None:
    assert distinct_n([(1, 2, 3), (4, 4, 4, 4, 4)], 2) == pytest.approx((1 + 1 / 4) / 2)
    assert distinct_n([(1, 2, 3), (9,), ()], 2) == 1.0
    assert distinct_n([(1, 2), (1, 2)], 2) == 1.0  # likeness between responses is another figure's matter
    assert distinct_n([(9,), ()], 2) == 0.0
    assert distinct_n([], 2) == 0.0


# --- completions ------------------------------------------------------------------------------------------------------


def test_completions_show_the_first_three_prompts_with_both_answers_as_text() -> None:
    system_first = Example((("system", "Be brief."), ("user", "hello")), None)
    asked = replace(held_out(), examples=[system_first, *EXAMPLES[1:]])
    _, rows = asked.measure(STUDENT)
    rows[0] = replace(rows[0], response=(*rows[0].response, EOS))
    told = asked.completions(rows, TOKENIZER)
    assert [each["prompt"] for each in told] == ["hello", "what is a quick brown fox", "a dog"]
    for each, row, teacher_row in zip(told, rows, asked.teacher_rows, strict=False):
        assert each["student"] == text_of(row)
        assert each["teacher"] == text_of(teacher_row)
    assert len({each["student"] for each in told} | {each["teacher"] for each in told}) > 3


def text_of(row: Row) -> str:
    return str(TOKENIZER.decode([token for token in row.response if token not in TOKENIZER.all_special_ids]))


def test_fewer_prompts_than_are_shown_are_all_shown() -> None:
    asked = HeldOut(LOADED, SAMPLER, EXAMPLES[:1], REQUESTS[:1], 4)
    _, rows = asked.measure(STUDENT)
    assert len(asked.completions(rows, TOKENIZER)) == 1
