"""Both sides of a comparison: prompt by prompt, with the same number K of responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from skill_kd.errors import UsageError
from skill_kd.evaluate.generations import NAMED, Generations, Prompt


@dataclass(frozen=True)
class Samples:
    """The data to compare: N prompts, each with 2K teacher and K student responses."""

    prompts: list[Prompt]
    """With their references, categories and clusters; ``responses`` holds the teacher's."""
    teacher: list[list[str]]
    student: list[list[str]]
    baseline: list[list[str]] | None
    """Responses of the undistilled student."""
    control: list[list[str]] | None
    """Responses of the collapsed teacher, if it was sampled."""
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """The number of student responses per prompt, K."""
        return len(self.student[0]) if self.student else 0


def pair(
    teacher: Generations,
    student: Generations,
    baseline: Generations | None = None,
    control: Generations | None = None,
    *,
    samples: int,
) -> Samples:
    """Align the rows of all sides by prompt, with the same K for all.

    Raises:
        UsageError: a side lacks prompts that the teacher answered. Skipping those would favor the student.
    """
    others = [each for each in (student, baseline, control) if each is not None]
    for other in others:
        if missing := [prompt.text for key, prompt in teacher.prompts.items() if key not in other.prompts]:
            named = "; ".join(repr(text[:60]) for text in missing[:NAMED])
            raise UsageError(
                f"'{other.name}' lacks {len(missing)} of the {len(teacher.prompts)} prompts of '{teacher.name}' "
                f"({named}); add responses for them, empty ones if the model gave none"
            )
    prompts = list(teacher.prompts.items())
    halves = min(len(prompt.responses) // 2 for _, prompt in prompts)
    least = min(halves, *(len(other.prompts[key].responses) for other in others for key, _ in prompts))
    count = min(samples, least)
    notes = [
        f"{len(extra)} prompts of '{other.name}' are not in '{teacher.name}' and are ignored"
        for other in others
        if (extra := other.prompts.keys() - teacher.prompts.keys())
    ]
    if count < samples:
        notes.append(
            f"K, the responses per prompt, is {count} and not {samples}: one prompt has only that many student "
            "responses, or only twice as many teacher responses"
        )

    def of(side: Generations | None) -> list[list[str]] | None:
        return None if side is None else [side.prompts[key].responses[:count] for key, _ in prompts]

    return Samples(
        prompts=[prompt.joined(student.prompts[key]) for key, prompt in prompts],
        teacher=[prompt.responses[: 2 * count] for _, prompt in prompts],
        student=of(student) or [],
        baseline=of(baseline),
        control=of(control),
        notes=tuple(notes),
    )


def with_references(samples: Samples, keys: Sequence[str], found: Mapping[str, Prompt]) -> Samples:
    """Return the samples with references and labels from a file of prompts."""
    prompts = [
        each.joined(found[key]) if key in found else each for each, key in zip(samples.prompts, keys, strict=True)
    ]
    return replace(samples, prompts=prompts)
