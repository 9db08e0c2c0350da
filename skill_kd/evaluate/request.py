"""The command line's request: a run, a student, or saved generations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from skill_kd.errors import UsageError
from skill_kd.evaluate.pairwise_judge import Judge
from skill_kd.kd.addresses import holds_credentials
from skill_kd.spec.data import Data
from skill_kd.spec.mistakes import mistakes


@dataclass(frozen=True)
class Request:
    """All options of `evaluate`. If an option is None, the run supplies it, or it is skipped."""

    subject: str | None = None
    """A run folder, or the student: a folder or a hub id."""
    teacher: str | None = None
    prompts: Path | None = None
    baseline: str | None = None
    """The undistilled student."""
    teacher_generations: Path | None = None
    student_generations: Path | None = None
    baseline_generations: Path | None = None
    control_generations: Path | None = None
    training_data: Path | None = None
    policy: str | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    max_new_tokens: int | None = None
    dtype: str | None = None
    """Dtype of models that are not in a spec; float32 by default."""
    template_options: Mapping[str, object] = field(default_factory=dict)
    """Options of the chat templates. They replace those of the run's spec, by name."""
    latency: bool = True
    judge_url: str | None = None
    judge_model: str | None = None
    judge_key_env: str | None = None
    """Name of the environment variable with the judge's key."""
    harness_results: tuple[Path, Path] | None = None
    """Results of lm-evaluation-harness: the teacher's file, the student's file."""
    held_out: int | None = None
    """Use at most this many of the run's held-out prompts."""
    out: Path | None = None
    trust_remote_code: bool = False
    """True to run the code of the run's models if its spec asks for it."""
    trust_run: bool = False
    """True to read the data that the run's spec names, and to count saved samples, even of somebody else."""

    @property
    def options(self) -> dict[str, bool | int | float | str]:
        """Return the valid options of the chat templates.

        Raises:
            UsageError: an option has a name or a value that no chat template takes.
        """
        try:
            return Data(train="prompts", chat_template_options=self.template_options).chat_template_options
        except ValidationError as error:
            raise UsageError("--template-option: " + "; ".join(mistakes(error))) from error

    @property
    def judge(self) -> Judge | None:
        """The judge to ask, or None.

        Raises:
            UsageError: an address without a model, a model without an address, or an address with a password.
        """
        if self.judge_url is None and self.judge_model is None:
            return None
        if self.judge_url is None or self.judge_model is None:
            raise UsageError("--judge-url and --judge-model belong together; give both")
        if holds_credentials(self.judge_url):  # not repeated: messages end up in logs
            raise UsageError("--judge-url holds a user name or password; drop them, and use --judge-key-env VARIABLE")
        if not self.judge_url.startswith(("http://", "https://")):
            raise UsageError(f"--judge-url '{self.judge_url}' does not start with http:// or https://")
        return Judge(self.judge_url, self.judge_model, self.judge_key_env)
