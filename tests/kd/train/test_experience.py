"""experience: the rows an optimizer step learns from follow from seed and update, not from processes or restarts."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_model, make_tokenizer, tiny_config
from torch import nn

from skill_kd.kd.config import Config, Rollout, SelfTrain, Sft, Training
from skill_kd.kd.dataset.batch import Row, collate, epoch_stream
from skill_kd.kd.dataset.encoding import Encoded, Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.dataset.training_data import TrainingData
from skill_kd.kd.errors import BadInput, StoppedBySignal
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest
from skill_kd.kd.signals import StopRequest
from skill_kd.kd.teacher.teacher import Teacher
from skill_kd.kd.train.experience import (
    Experience,
    PromptSource,
    Sampling,
    corpus_source,
    data_source,
    refuse_unknown_ids,
    rows_source,
)
from skill_kd.kd.train.held_out import repetition
from skill_kd.kd.train.objectives import Objective, build_objective, coverage_objective
from skill_kd.kd.train.self_training import keep_rows, kept_rows, own_best_samples

torch.set_num_threads(1)

VOCABULARY = 300
TOKENIZER = make_tokenizer()
PROMPTS = [Encoded(tuple(range(10 * number + 3, 10 * number + 5 + number % 4))) for number in range(10)]
STUDENT = build_model("llama", layers=1, vocabulary=VOCABULARY, tokenizer=TOKENIZER, seed=1)
TEACHER = build_model("llama", layers=1, vocabulary=VOCABULARY, tokenizer=TOKENIZER, seed=2)


def sampler(max_new_tokens: int = 5, eos: frozenset[int] = frozenset({2})) -> Sampler:
    return Sampler(Decoding(max_new_tokens, 1.0, 1.0, eos, VOCABULARY), pad=2, device=torch.device("cpu"))


def teacher(model: nn.Module | None = TEACHER) -> Teacher:
    return Teacher(model, VOCABULARY, lambda _, requests, _decoding: sampler().sample(TEACHER, requests, "teacher"))


def config(batch_size: int = 4, prompts: int = 8, inner_epochs: int = 1, seed: int = 3) -> Config:
    return tiny_config(
        seed=seed,
        training=Training(batch_size=batch_size, accumulate=1),
        rollout=Rollout(prompts=prompts, inner_epochs=inner_epochs),
    )


def objective(on_policy: float, teacher_mix: float = 0.0) -> Objective:
    loss = build_objective(Sft()).loss
    return Objective(loss, 1.0, True, on_policy, "teacher", teacher_mix=teacher_mix)


def written(indices: Sequence[int]) -> list[Row]:
    return [Row(PROMPTS[index].prompt, (200 + index, 2), (True, True), "teacher") for index in indices]


def experience(
    on_policy: float, *, process: int = 0, processes: int = 1, teacher_mix: float = 0.0, **values: Any
) -> Experience:
    sampling = Sampling(sampler(), teacher(), process, processes)
    return Experience(
        config(**values), "distill", objective(on_policy, teacher_mix), PromptSource(PROMPTS, written), sampling
    )


def batches(given: Experience, updates: int, student: nn.Module = STUDENT) -> list[list[Row]]:
    return [given.batch(update, student) for update in range(updates)]


# --- rounds and steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_policy", "inner_epochs", "steps"), [(1.0, 1, 2), (1.0, 3, 6), (0.5, 1, 2), (0.0, 1, 1), (0.0, 3, 1)]
)
def test_a_round_serves_its_batches_once_an_inner_epoch(on_policy: float, inner_epochs: int, steps: int) -> None:
    assert experience(on_policy, inner_epochs=inner_epochs).steps == steps


def test_inner_epochs_take_the_same_batches_again_and_then_new_ones() -> None:
    first, second, again, also, new = batches(experience(1.0, inner_epochs=2), 5)
    assert (again, also) == (first, second)
    assert first != second
    assert new not in (first, second)


def test_a_round_is_sampled_by_the_student_of_its_first_step() -> None:
    given = experience(1.0)
    given.batch(0, STUDENT)
    reference = experience(1.0)
    reference.batch(0, STUDENT)
    assert given.batch(1, TEACHER) == reference.batch(1, STUDENT)
    assert given.batch(2, TEACHER) != reference.batch(2, STUDENT)


def test_prompts_pass_in_seeded_epochs() -> None:
    taken = [row.prompt for row in chain.from_iterable(batches(experience(1.0, batch_size=2, prompts=2), 10))]
    order = islice(epoch_stream(len(PROMPTS), (3, "distill", "order")), 20)
    assert taken == [PROMPTS[index].prompt for index in order]
    assert sorted(taken[:10]) == sorted(prompt.prompt for prompt in PROMPTS)


def test_a_prompt_met_again_is_answered_anew() -> None:
    rows = list(chain.from_iterable(batches(experience(1.0, batch_size=2, prompts=2), 10)))
    answers = {row.prompt: row.response for row in rows[:10]}
    assert any(answers[row.prompt] != row.response for row in rows[10:])


@pytest.mark.parametrize(("epochs", "updates"), [(1.0, 3), (2.0, 5), (0.5, 2), (0.01, 1)])
def test_updates_that_pass_over_the_source(epochs: float, updates: int) -> None:
    assert experience(0.0).updates(epochs) == updates


# --- who wrote the rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_policy", "sampled"), [(0.0, 0), (0.25, 1), (0.5, 2), (1.0, 4)])
def test_every_batch_holds_the_share_that_the_student_samples(on_policy: float, sampled: int) -> None:
    for batch in batches(experience(on_policy), 4):
        sources = [row.source for row in batch]
        assert sources.count("student") == sampled
        assert sources.count("teacher") == 4 - sampled
        assert all((row.behaviour_logp is not None) == (row.source == "student") for row in batch)


def test_off_policy_rows_answer_the_prompts_they_stand_for() -> None:
    for row in chain.from_iterable(batches(experience(0.0), 3)):
        assert row in written(range(len(PROMPTS)))


def test_mixed_in_tokens_of_the_teacher_change_what_is_sampled_and_with_which_probability() -> None:
    alone, mixed = experience(1.0).batch(0, STUDENT), experience(1.0, teacher_mix=0.5).batch(0, STUDENT)
    assert [row.prompt for row in alone] == [row.prompt for row in mixed]
    assert [row.behaviour_logp for row in alone] != [row.behaviour_logp for row in mixed]


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_policy", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("teacher_mix", [0.0, 0.4])
def test_two_processes_together_take_the_rows_of_one(on_policy: float, teacher_mix: float) -> None:
    alone = batches(experience(on_policy, teacher_mix=teacher_mix), 4)
    first, second = (
        batches(experience(on_policy, process=process, processes=2, teacher_mix=teacher_mix), 4) for process in (0, 1)
    )
    for whole, one, other in zip(alone, first, second, strict=True):
        assert len(one) == len(other) == 2
        together = [*one, *other]
        assert [(row.prompt, row.response) for row in together] == [(row.prompt, row.response) for row in whole]
        for ours, theirs in zip(together, whole, strict=True):
            assert (ours.behaviour_logp or ()) == pytest.approx(theirs.behaviour_logp or (), abs=1e-4)


# --- restarts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inner_epochs", "stop"), [(1, 1), (1, 2), (2, 1), (2, 3), (2, 4), (2, 5)])
def test_a_resumed_run_takes_the_rows_of_one_that_was_not_stopped(inner_epochs: int, stop: int) -> None:
    whole = batches(experience(1.0, inner_epochs=inner_epochs), 8)
    stopped = experience(1.0, inner_epochs=inner_epochs)
    batches(stopped, stop)
    resumed = experience(1.0, inner_epochs=inner_epochs)
    resumed.batches = stopped.pending(stop)
    assert [resumed.batch(update, STUDENT) for update in range(stop, 8)] == whole[stop:]


def test_nothing_is_pending_where_a_round_ends() -> None:
    given = experience(1.0)
    batches(given, 1)
    assert len(given.pending(1)) == 2
    batches(given, 2)
    assert given.pending(2) == []


# --- sources ----------------------------------------------------------------------------------------------------------


def training_data(answered: list[Encoded | None]) -> TrainingData:
    examples = [Example((("user", "q"),), None)] * len(answered)
    return TrainingData(examples, PROMPTS[: len(answered)], answered, [], [])


def test_data_without_responses_is_refused_for_objectives_that_learn_from_them() -> None:
    with pytest.raises(BadInput, match=r"none of its 2 rows has one.*sequence_kd"):
        data_source(training_data([None, None]))


def test_data_with_some_responses_gives_those_rows() -> None:
    source = data_source(training_data([None, Encoded((1,), (5, 6, 2), (True, False, True))]))
    assert source.prompts == [Encoded((1,))]
    assert source.off_policy([0]) == [Row((1,), (5, 6, 2), (True, False, True), "data")]


def test_a_corpus_is_cut_into_pieces_that_score_all_but_their_first_token_and_close_with_eos() -> None:
    encoder = Encoder(TOKENIZER, frozenset({2}))
    source = corpus_source(["hello world the quick brown fox", "dog"], encoder, length=4)
    rows = source.off_policy(range(len(source.prompts)))
    ids = TOKENIZER("hello world the quick brown fox")["input_ids"]
    told = [token for row in rows for token in (*row.prompt, *row.response)]
    assert told[: len(ids)] == ids
    assert all(len(row.prompt) + len(row.response) <= 4 and all(row.scored) for row in rows)
    assert {row.source for row in rows} == {"data"}
    assert rows[-1].response[-1] == 2


def test_the_coverage_term_reads_the_teachers_rows_one_batch_a_step() -> None:
    sampling = Sampling(sampler(), teacher(), 0, 1)
    given = Experience(config(), "coverage", coverage_objective(), PromptSource(PROMPTS, written), sampling)
    assert [len(batch) for batch in batches(given, 2)] == [4, 4]


def test_kept_rows_come_back(tmp_path: Path) -> None:
    rows = experience(0.5).batch(0, STUDENT)
    keep_rows(tmp_path / "rows.json", rows)
    assert kept_rows(tmp_path / "rows.json") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
    assert rows_source(rows).off_policy([1, 0]) == [rows[1], rows[0]]


@pytest.mark.parametrize("content", ["{}", "[]", "[[]]", "{", '[{"prompt": [1]}]', "[" * 10_000 + "]" * 10_000])
def test_kept_rows_that_are_damaged_are_refused_by_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(content)
    with pytest.raises(BadInput, match=r"rows\.json': "):
        kept_rows(tmp_path / "rows.json")


@pytest.mark.parametrize("part", ["prompt", "response"])
def test_rows_with_tokens_that_a_model_lacks_are_refused_by_file(part: str) -> None:
    row = experience(0.5).batch(0, STUDENT)[0]
    odd = replace(row, **{part: (*getattr(row, part)[1:], VOCABULARY)})
    refuse_unknown_ids(Path("rows.json"), [row], STUDENT, teacher())
    with pytest.raises(BadInput, match=rf"'rows\.json' has the token id {VOCABULARY}"):
        refuse_unknown_ids(Path("rows.json"), [row, odd], STUDENT, teacher())


# --- self-training ----------------------------------------------------------------------------------------------------

ENDS = frozenset(range(0, VOCABULARY, 3))
"""So many that most samples end."""


def test_self_training_keeps_the_likeliest_of_the_samples_that_ended() -> None:
    stage = SelfTrain(samples=3, keep=0.25)
    kept = own_best_samples(config(), stage, STUDENT, teacher(), PROMPTS, sampler(eos=ENDS))
    every = own_best_samples(config(), SelfTrain(samples=3, keep=1.0), STUDENT, teacher(), PROMPTS, sampler(eos=ENDS))
    assert kept == every[: len(kept)]
    assert len(kept) == max(1, round(0.25 * len(every)))
    assert all(row.response[-1] in ENDS and repetition(row.response) <= 0.3 for row in every)

    def likelihood(row: Row) -> float:
        batch = collate([row], 2, torch.device("cpu"))
        return float(teacher().token_logp(batch)[batch.mask_BT].mean())

    values = [likelihood(row) for row in every]
    assert values == sorted(values, reverse=True)


def test_self_training_draws_every_sample_of_a_prompt_anew() -> None:
    stage = SelfTrain(samples=3, keep=1.0)
    kept = own_best_samples(config(), stage, STUDENT, teacher(), PROMPTS[:1] * 4, sampler(eos=ENDS))
    assert len({row.response for row in kept}) > len(kept) / 2


def test_self_training_without_a_usable_sample_is_refused() -> None:
    nothing = sampler(eos=frozenset({VOCABULARY + 1}))
    with pytest.raises(BadInput, match=r"none of 4 samples ended.*max_new_tokens"):
        own_best_samples(config(), SelfTrain(samples=2, keep=1.0), STUDENT, teacher(), PROMPTS[:2], nothing)


def test_self_training_stops_between_two_rectangles_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    sampled, sample = [], Sampler.sample

    def asked_in_the_second(
        self: Sampler, model: nn.Module, requests: Sequence[SampleRequest], source: Any
    ) -> list[Row]:
        sampled.append(len(requests))
        monkeypatch.setattr(StopRequest, "asked", signal.SIGTERM if len(sampled) == 2 else 0)
        return sample(self, model, requests, source)

    monkeypatch.setattr(StopRequest, "asked", 0)
    monkeypatch.setattr(Sampler, "sample", asked_in_the_second)
    narrow = replace(sampler(eos=ENDS), rows=6)
    with pytest.raises(StoppedBySignal) as stopped:
        own_best_samples(config(), SelfTrain(samples=3, keep=1.0), STUDENT, teacher(), PROMPTS, narrow)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert sampled == [6, 6]


def test_samples_of_one_seed_and_row_are_the_same_in_any_batch() -> None:
    requests = [SampleRequest(prompt, (1, "x"), row) for row, prompt in enumerate(PROMPTS)]
    together = sampler().sample(STUDENT, requests, "student")
    alone = [sampler().sample(STUDENT, [request], "student")[0] for request in requests]
    assert [row.response for row in together] == [row.response for row in alone]
