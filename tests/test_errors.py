"""The errors of skill_kd, and the exit codes of a trainer script that stand for them."""

from __future__ import annotations

import pytest

from skill_kd.errors import ExitCode, MissingRequirementError, SkillKDError, TrainingFailedError, UsageError, error_for
from skill_kd.kd.errors import BadInput, Missing, ScriptError, TrainingStopped


@pytest.mark.parametrize(
    ("raised", "reported"),
    [(BadInput, UsageError), (Missing, MissingRequirementError), (TrainingStopped, TrainingFailedError)],
)
def test_what_a_script_raises_is_the_same_error_to_its_parent(
    raised: type[ScriptError], reported: type[SkillKDError]
) -> None:
    error = error_for(raised("why").exit_code, "why")
    assert type(error) is reported
    assert str(error) == "why"
    assert error.exit_code == raised.exit_code


@pytest.mark.parametrize("code", sorted({*ExitCode, -9} - {ExitCode.USAGE, ExitCode.ENVIRONMENT, ExitCode.TRAINING}))
def test_any_other_exit_code_stands_for_no_class(code: int) -> None:
    assert error_for(code, "why") is None
