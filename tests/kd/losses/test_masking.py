"""masking: what counts is decided by length, and what does not count contributes exactly nothing."""

import itertools

import pytest
import reference
import torch

from skill_kd.kd.losses.masking import is_any, masked_sum, position_ids, suffix_sum, through_first_eos

torch.set_num_threads(1)  # Tensors this small only lose time to threads.


@pytest.mark.parametrize("eos_ids", [set(), {0}, {2}, {0, 2}, {0, 1, 2}])
def test_mask_ends_with_the_first_eos_in_every_sequence(eos_ids: set[int]) -> None:
    sequences = list(itertools.product(range(3), repeat=4))
    expected = [reference.through_first_eos(ids, eos_ids) for ids in sequences]
    assert through_first_eos(torch.tensor(sequences), eos_ids).tolist() == expected


def test_a_pad_equal_to_eos_does_not_hide_the_eos() -> None:
    eos = pad = 7
    ids_BT = torch.tensor([[3, eos, pad, pad], [eos, pad, pad, pad], [3, 4, 5, 6]])
    assert through_first_eos(ids_BT, {eos}).sum(dim=1).tolist() == [2, 1, 4]


def test_mask_is_bool() -> None:
    assert through_first_eos(torch.tensor([[1, 2]]), {2}).dtype == torch.bool


def test_membership_of_any_id_and_integer_type() -> None:
    for dtype in (torch.int32, torch.int64):
        assert is_any(torch.tensor([[5, 1], [3, 9]], dtype=dtype), frozenset({9, 5})).tolist() == [
            [True, False],
            [False, True],
        ]
    assert not is_any(torch.tensor([0, 1]), ()).any()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf")])
def test_masked_values_add_nothing_to_value_or_gradient(garbage: float) -> None:
    values_BT = torch.tensor([[1.0, garbage], [2.0, 4.0]], requires_grad=True)
    mask_BT = torch.tensor([[True, False], [True, True]])
    total = masked_sum(values_BT, mask_BT)
    total.backward()
    assert total.item() == 7
    assert values_BT.grad is not None
    assert values_BT.grad.tolist() == [[1, 0], [1, 1]]


def test_an_empty_mask_sums_to_zero_with_zero_gradient() -> None:
    values_BT = torch.full((2, 3), float("nan"), requires_grad=True)
    total = masked_sum(values_BT, torch.zeros(2, 3, dtype=torch.bool))
    total.backward()
    assert total.item() == 0
    assert values_BT.grad is not None
    assert not values_BT.grad.any()


def test_suffix_sum_is_the_sum_from_each_position_on() -> None:
    values_BT = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [[sum(row[t:]) for t in range(5)] for row in values_BT.tolist()]
    torch.testing.assert_close(suffix_sum(values_BT), torch.tensor(expected, dtype=torch.float64))


def test_positions_count_real_tokens_so_left_padding_shifts_nothing() -> None:
    mask_BL = torch.tensor([[False, False, True, True, True], [True, True, True, True, True]])
    assert position_ids(mask_BL).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert position_ids(mask_BL.long()).dtype == torch.int64
