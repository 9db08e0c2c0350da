"""states: a frozen teacher reads each text once; what is kept is what it would say again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import build_model, make_tokenizer
from torch import Tensor, nn

from skill_kd.kd.dataset.batch import Row, collate
from skill_kd.kd.dataset.encoding import Encoded
from skill_kd.kd.model.student import find_head
from skill_kd.kd.model.teacher_distribution import all_logp
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest
from skill_kd.kd.teacher.state_cache import TeacherStateCache, TeacherStateFiller
from skill_kd.kd.teacher.teacher import HiddenStateTeacher, Teacher

torch.set_num_threads(1)

TOKENIZER = make_tokenizer()
VOCABULARY = len(TOKENIZER)
CPU = torch.device("cpu")
ROWS = [
    Row((1, 5, 9), (11, 12, 2), (True,) * 3, "teacher"),
    Row((4,), (21, 2), (True,) * 2, "data"),
    Row((7, 8), (31, 32, 33, 34), (True, False, True, True), "teacher"),
]


def model(seed: int = 1) -> nn.Module:
    return build_model("llama", layers=2, vocabulary=VOCABULARY, tokenizer=TOKENIZER, seed=seed)


def teacher(made: nn.Module) -> Teacher:
    head = find_head(made, VOCABULARY)
    assert head is not None
    return Teacher(HiddenStateTeacher(made, head), VOCABULARY, lambda *_: [], head=head)


def annotator(
    made: nn.Module, folder: Path | None = None, quota_gb: float = 1.0, rows_at_once: int = 2
) -> TeacherStateFiller:
    cache = None if folder is None else TeacherStateCache(folder / "states", made, quota_gb)
    return TeacherStateFiller(teacher(made), 0, CPU, rows_at_once, cache)


def distributions(rows: list[Row], made: nn.Module) -> Tensor:
    """Log-probabilities at the scored positions of annotated rows."""
    batch = collate(rows, 0, CPU)
    view = teacher(made).view(batch)
    return all_logp(view)[batch.mask_BT]


def test_kept_states_give_the_teachers_distribution() -> None:
    made = model()
    annotated = annotator(made)(ROWS, lasting=False)
    batch = collate(ROWS, 0, CPU)
    expected = teacher(made).logp(batch)[batch.mask_BT]
    torch.testing.assert_close(distributions(annotated, made), expected, rtol=1e-5, atol=1e-5)
    assert [row.teacher_states.shape[0] for row in annotated] == [3, 2, 4]


def test_a_text_is_read_once_and_comes_back_bit_by_bit(tmp_path: Path) -> None:
    first = annotator(model(), tmp_path)(ROWS, lasting=True)
    # Other weights of the same name: whatever they answer, the cache does not ask them.
    second = annotator(model(seed=2), tmp_path)(ROWS, lasting=True)
    for before, after in zip(first, second, strict=True):
        assert torch.equal(before.teacher_states, after.teacher_states)


def test_other_weights_another_prompt_and_another_response_are_other_keys(tmp_path: Path) -> None:
    made = model()
    annotator(made, tmp_path)(ROWS[:1], lasting=True)
    cache = TeacherStateCache(tmp_path / "states", made, 1.0)
    assert cache.get(ROWS[0]) is not None
    assert cache.get(replace(ROWS[0], prompt=(1, 5))) is None
    assert cache.get(replace(ROWS[0], response=(11, 12, 3))) is None
    moved = model()
    moved.config._commit_hash = "another"
    assert TeacherStateCache(tmp_path / "states", moved, 1.0).get(ROWS[0]) is None
    assert TeacherStateCache(tmp_path / "states", model().to(torch.bfloat16), 1.0).get(ROWS[0]) is None


def test_rollouts_leave_nothing_on_disk(tmp_path: Path) -> None:
    annotator(model(), tmp_path)(ROWS, lasting=False)
    assert list(tmp_path.rglob("*.safetensors")) == []


@pytest.mark.parametrize(("quota_bytes", "kept"), [(0, 0), (3 * 32 * 4, 1), (3 * 32 * 4 - 1, 1), (10**6, 3)])
def test_the_quota_is_not_passed(tmp_path: Path, quota_bytes: int, kept: int) -> None:
    """States are [T, 32] float32 here: 384, 256 and 512 bytes."""
    annotated = annotator(model(), tmp_path, quota_gb=quota_bytes / 1e9)(ROWS, lasting=True)
    assert all(row.teacher_states is not None for row in annotated)
    assert len(list(tmp_path.rglob("*.safetensors"))) == kept


def test_a_torn_file_is_made_again(tmp_path: Path) -> None:
    made = model()
    (whole,) = annotator(made, tmp_path)(ROWS[:1], lasting=True)
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    (again,) = annotator(made, tmp_path)(ROWS[:1], lasting=True)
    assert torch.equal(whole.teacher_states, again.teacher_states)


def test_forgetting_deletes_the_files(tmp_path: Path) -> None:
    made = annotator(model(), tmp_path)
    made(ROWS, lasting=True)
    made.forget()
    assert list(tmp_path.rglob("*")) == []


def test_a_teacher_without_hidden_states_leaves_rows_unchanged() -> None:
    made = TeacherStateFiller(Teacher(None, VOCABULARY, lambda *_: []), 0, CPU, 2, None)
    assert made(ROWS, lasting=True) == ROWS
    assert all(row.teacher_states is None for row in made(ROWS, lasting=True))


def test_mixed_sampling_brings_the_states_along() -> None:
    """No scoring pass is needed: they are those of a pass over the finished text."""
    student, made = model(seed=3), model()
    sampler = Sampler(Decoding(6, 1.0, 1.0, frozenset({2, 30}), VOCABULARY), pad=0, device=CPU)
    requests = [SampleRequest(Encoded(row.prompt), ("states",), number) for number, row in enumerate(ROWS)]
    rows = sampler.sample_mixed(student, teacher(made).model, 0.5, requests)
    bare = [replace(row, teacher_states=None) for row in rows]
    torch.testing.assert_close(distributions(rows, made), distributions(bare, made), rtol=1e-4, atol=1e-5)
    assert all(row.student_logp is not None for row in rows)
