"""strategy: every launch strategy of the spec has its class, and one process needs none of them."""

from __future__ import annotations

from typing import get_args

import pytest
from accelerate import Accelerator
from tiny import tiny_config

from skill_kd.kd.config import Launch as LaunchConfig
from skill_kd.kd.model.sharding import ShardedStudent
from skill_kd.kd.train.adapters import Adapters
from skill_kd.kd.train.checkpoints import AccelerateState
from skill_kd.kd.train.stepper import DeepSpeedStepper
from skill_kd.kd.train.strategy import STRATEGIES, AccelerateStrategy, open_strategy
from skill_kd.spec import Launch

NAMES = get_args(Launch.model_fields["strategy"].annotation)


def test_every_strategy_of_the_spec_has_a_class_and_no_class_is_left_over() -> None:
    missing, unknown = {*NAMES} - {*STRATEGIES}, {*STRATEGIES} - {*NAMES}
    assert not missing, f"kd/train/strategy.py: STRATEGIES has no class for {sorted(missing)}"
    assert not unknown, f"kd/train/strategy.py: STRATEGIES names {sorted(unknown)}, which the spec does not know"


@pytest.mark.parametrize("name", NAMES)
def test_one_process_trains_a_whole_student_under_every_strategy(name: str) -> None:
    strategy = open_strategy(tiny_config(launch=LaunchConfig(strategy=name)), Accelerator(cpu=True))
    assert isinstance(strategy, AccelerateStrategy)
    assert strategy.loads_weights


def test_checkpoints_keep_the_names_that_earlier_versions_wrote() -> None:
    states = (AccelerateState, Adapters, ShardedStudent, DeepSpeedStepper)
    assert [state.kept_by for state in states] == ["Accelerator", "Adapters", "Shards", "Zero"]
