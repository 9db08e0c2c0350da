"""kinds: the rule which objectives read the teacher is the one that their losses follow."""

from __future__ import annotations

from typing import get_args

import pytest

from skill_kd.kd import config
from skill_kd.kd.kinds import TEXT_ALONE, reads_answers, reads_teacher
from skill_kd.kd.train.objectives import build_objective
from skill_kd.spec import Distill

OBJECTIVES = {
    section.model_fields["kind"].default: section for section in get_args(Distill.model_fields["objective"].annotation)
}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_reads_the_teacher_where_its_loss_does(kind: str) -> None:
    section = OBJECTIVES[kind]()
    objective = getattr(config, type(section).__name__).of(section.model_dump())
    assert build_objective(objective).reads_teacher is reads_teacher(objective) is (kind not in {"sft", "sequence_kd"})


def test_every_kind_without_probabilities_is_one_of_the_spec() -> None:
    assert OBJECTIVES.keys() >= TEXT_ALONE


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("responses", ["teacher", "data"])
def test_a_stage_reads_the_answers_of_the_data_where_its_loss_takes_them(kind: str, responses: str) -> None:
    section = OBJECTIVES[kind]
    section = section(responses=responses) if "responses" in section.model_fields else section()
    objective = getattr(config, type(section).__name__).of(section.model_dump())
    assert reads_answers(objective) is (build_objective(objective).responses == "data")
    assert not reads_answers(config.SelfTrain())
