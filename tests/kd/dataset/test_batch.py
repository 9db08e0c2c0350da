"""batching: rectangles that hold every row as it is, and streams of indices that a resumed run finds again."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import build_model, make_tokenizer

from skill_kd.kd.dataset.batch import Row, collate, epoch_stream, pad_left
from skill_kd.kd.model.student import response_logits

torch.set_num_threads(1)
CPU = torch.device("cpu")
SHORT = Row((5, 6), (7, 8, 9), (True, False, True), "student", (-1.0, -2.0, -3.0))
LONG = Row((1, 2, 3, 4), (2,), (True,), "data")


# --- rows and rectangles ----------------------------------------------------------------------------------------------


def test_prompts_end_and_responses_begin_in_one_column() -> None:
    batch = collate([SHORT, LONG], pad=2, device=CPU)
    assert batch.ids_BL.tolist() == [[2, 2, 5, 6, 7, 8, 9], [1, 2, 3, 4, 2, 0, 0]]
    assert batch.attention_mask_BL.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]
    assert batch.response_BT.tolist() == [[7, 8, 9], [2, 0, 0]]
    assert batch.width == 3


def test_positions_count_from_the_first_real_token() -> None:
    batch = collate([SHORT, LONG], pad=2, device=CPU)
    assert batch.position_ids_BL[0, 2:].tolist() == [0, 1, 2, 3, 4]
    assert batch.position_ids_BL[1, :5].tolist() == [0, 1, 2, 3, 4]


def test_only_scored_tokens_are_in_the_mask_and_an_eos_that_is_the_pad_is_kept() -> None:
    assert collate([SHORT, LONG], pad=2, device=CPU).mask_BT.tolist() == [[True, False, True], [True, False, False]]


def test_a_batch_has_sampling_probabilities_only_if_every_row_has_them() -> None:
    batch = collate([SHORT, SHORT], pad=0, device=CPU)
    assert batch.behaviour_logp_BT is not None
    assert batch.behaviour_logp_BT.tolist() == [[-1.0, -2.0, -3.0]] * 2
    assert collate([SHORT, LONG], pad=0, device=CPU).behaviour_logp_BT is None


def test_rows_of_the_data_are_marked() -> None:
    assert collate([SHORT, LONG], pad=0, device=CPU).from_data_B.tolist() == [False, True]


def test_pad_left_of_equal_rows_pads_nothing() -> None:
    ids, mask = pad_left([(1, 2), (3, 4)], pad=9)
    assert ids.tolist() == [[1, 2], [3, 4]]
    assert bool(mask.all())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_row_has_the_same_logits_alone_and_in_any_batch(kind: str) -> None:
    model = build_model(kind, layers=2, vocabulary=300, tokenizer=make_tokenizer())
    with torch.no_grad():
        together = response_logits(model, collate([SHORT, LONG], pad=2, device=CPU), 300)
        for index, row in enumerate((SHORT, LONG)):
            alone = response_logits(model, collate([row], pad=0, device=CPU), 300)[0]
            torch.testing.assert_close(together[index, : len(row.response)], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("row", [SHORT, LONG])
def test_a_row_comes_back_from_json_as_it_was(row: Row) -> None:
    assert Row.of(json.loads(json.dumps(asdict(row)))) == row


def test_tokens_of_a_row_are_its_scored_ones() -> None:
    assert (SHORT.tokens, LONG.tokens) == (2, 1)


# --- streams ----------------------------------------------------------------------------------------------------------


@given(size=st.integers(1, 12), start=st.integers(0, 40))
def test_a_stream_started_at_any_position_continues_as_the_whole_one(size: int, start: int) -> None:
    whole = list(islice(epoch_stream(size, (1, "order")), start + 30))
    assert list(islice(epoch_stream(size, (1, "order"), start), 30)) == whole[start:]


@given(size=st.integers(1, 12))
def test_every_epoch_is_a_permutation(size: int) -> None:
    stream = epoch_stream(size, (3,))
    for _ in range(3):
        assert sorted(islice(stream, size)) == list(range(size))


def test_epochs_and_seeds_differ_in_their_order() -> None:
    stream = epoch_stream(50, (1,))
    first, second = list(islice(stream, 50)), list(islice(stream, 50))
    assert first != second
    assert first != list(islice(epoch_stream(50, (2,)), 50))
