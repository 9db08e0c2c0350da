"""Sizes of a run and its evaluation that fit into a given time."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from skill_kd.errors import UsageError
from skill_kd.plan.devices import Device, find_device
from skill_kd.plan.duration import HELD_OUT, StageTime, count_rows, durations, evaluation
from skill_kd.plan.setup import Setup, read_setup
from skill_kd.spec import Distill, Spec, WarmStart

EVALUATIONS = ((8, 200), (8, 100), (4, 100), (4, 60))
"""Responses and prompts of an evaluation, the most certain verdict first. The policies need at least 4 and 50."""
EVALUATING = 0.4
"""Largest share of the time for the evaluation."""
WARMING = 0.3
"""Largest share of the training time for the warm start."""
MEASURING = 0.2
"""Largest share of the training time for held-out measures."""
MEASURED = (64, 32, 16, 8, 4)
"""Held-out prompts to choose from."""
FEWEST_UPDATES, MOST_UPDATES = 20, 100_000
ROUGH = "times are estimates, and the real ones may be half or twice as long"


@dataclass(frozen=True)
class Sizes:
    """Sizes that fit a time."""

    settings: dict[str, object]
    """Values by spec path; ``distill`` and ``warm_start`` name stages."""
    reasons: dict[str, str]
    """The reason of each value."""
    prompts: int
    """Prompts to evaluate."""
    note: str


def size(specs: Sequence[Spec], *, minutes: float, device: str, rows: int | None = None) -> Sizes:
    """Return sizes with which each of ``specs`` can be trained and evaluated in ``minutes``.

    The specs may differ in their objective. They get the same sizes, so that they can be compared. All times are
    estimates: see ``duration``.

    Args:
        specs: specs with one ``distill`` stage and the same models.
        minutes: time of one spec.
        device: a name from ``known_devices``.
        rows: number of training rows, if they are not in a local file.

    Raises:
        UsageError: the time is too short, the device or a model is unknown, or the rows are needed and unknown.
        MissingRequirementError: a config must come from the hub, and the hub is unavailable.
    """
    if not 0 < minutes < float("inf"):
        raise UsageError(f"minutes: {minutes} is not a valid time; give a number above 0")
    found, rows = find_device(device), rows or count_rows(specs[0])
    if rows is None and any(isinstance(stage, WarmStart) for stage in specs[0].stages):
        raise UsageError("minutes: the warm start reads all rows, and they cannot be counted; give --prompts N")
    run = _Run(tuple(map(read_setup, specs)), found, rows)
    samples, prompts, evaluating = _evaluation(run, EVALUATING * 60 * minutes)
    training = 60 * minutes - evaluating
    settings: dict[str, object] = {"evaluation.samples": samples}
    reasons = {"evaluation.samples": f"evaluating {prompts} prompts takes {_shown(evaluating)}"}
    if epochs := run.warm_epochs(WARMING * training):
        settings["warm_start.epochs"] = epochs
        reasons["warm_start.epochs"] = f"at most {WARMING:.0%} of the training time"
    updates, measuring = 0, 0.0
    for settings["checkpoint.measure_prompts"] in MEASURED:
        updates = run.updates(settings, training)
        measuring = run.measuring(settings, updates) / training
        if measuring <= MEASURING:
            break
    reasons["checkpoint.measure_prompts"] = f"held-out measures take about {measuring:.0%} of the training time"
    if updates < FEWEST_UPDATES:
        needed = evaluating + run.seconds(settings, FEWEST_UPDATES)
        raise UsageError(
            f"minutes: {minutes:g} is too short for {FEWEST_UPDATES} updates on {found.name}, which take "
            f"{_shown(needed)} with the evaluation; give more, or a smaller rollout.prompts or rollout.max_new_tokens"
        )
    settings["distill.updates"] = updates
    reasons["distill.updates"] = f"training takes {_shown(run.seconds(settings, updates))} on {found.name}"
    note = f"sized for {minutes:g} minutes on {found.name}, with {prompts} evaluation prompts; {ROUGH}"
    return Sizes(settings, reasons, prompts, note)


@dataclass(frozen=True)
class _Run:
    """The setups to size, which share all sizes."""

    setups: tuple[Setup, ...]
    device: Device
    rows: int | None

    def seconds(self, settings: Mapping[str, object], updates: int) -> float:
        """Return the training time of the slowest setup."""
        return max(sum(stage.seconds or 0 for stage in each) for each in self._durations(settings, updates))

    def measuring(self, settings: Mapping[str, object], updates: int) -> float:
        """Return the seconds of the slowest setup's held-out measures."""
        return max(
            sum(task.seconds for stage in each for task in stage.tasks if task.name == HELD_OUT)
            for each in self._durations(settings, updates)
        )

    def _durations(self, settings: Mapping[str, object], updates: int) -> Iterator[tuple[StageTime, ...]]:
        """Yield the times of each setup's stages with these sizes."""
        for setup in self.setups:
            stages = tuple(
                stage.model_copy(update={"updates": updates})
                if isinstance(stage, Distill)
                else stage.model_copy(update={"epochs": settings.get("warm_start.epochs", stage.epochs)})
                if isinstance(stage, WarmStart)
                else stage
                for stage in setup.spec.stages
            )
            measured = settings.get("checkpoint.measure_prompts", setup.spec.checkpoint.measure_prompts)
            checkpoint = setup.spec.checkpoint.model_copy(update={"measure_prompts": measured})
            spec = setup.spec.model_copy(update={"stages": stages, "checkpoint": checkpoint})
            yield durations(replace(setup, spec=spec), self.device, self.rows)

    def updates(self, settings: Mapping[str, object], most: float) -> int:
        """Return the largest number of updates that take at most ``most`` seconds; 0 if one takes longer."""
        return bisect(range(1, MOST_UPDATES + 1), most, key=lambda updates: self.seconds(settings, updates))

    def warm_epochs(self, most: float) -> float | None:
        """Return the epochs of a warm start of ``most`` seconds; None if there is none, or if it is short enough."""
        found = [
            (stage.seconds or 0, planned.epochs)
            for setup in self.setups
            for stage, planned in zip(durations(setup, self.device, self.rows), setup.spec.stages, strict=True)
            if isinstance(planned, WarmStart)
        ]
        slowest, epochs = max(found, default=(0.0, 1.0))
        return float(f"{epochs * most / slowest:.2g}") if slowest > most else None


def _evaluation(run: _Run, most: float) -> tuple[int, int, float]:
    """Return the responses, the prompts and the seconds of the largest evaluation that takes at most ``most`` seconds.

    Raises:
        UsageError: even the smallest one takes longer, or the time of an evaluation is unknown.
    """
    setup, least = run.setups[0], 0.0
    for samples, prompts in EVALUATIONS:
        section = setup.spec.evaluation.model_copy(update={"samples": samples})
        planned = replace(setup, spec=setup.spec.model_copy(update={"evaluation": section}))
        time = evaluation(planned, run.device, prompts)
        if time is None or time.seconds is None:
            raise UsageError("minutes: the evaluation needs one teacher that can be loaded; set the sizes by hand")
        least = time.seconds
        if least <= most:
            return samples, prompts, least
    raise UsageError(
        f"minutes: the smallest evaluation, {prompts} prompts with {samples} responses, takes "
        f"{_shown(least)} on {run.device.name}, and {EVALUATING:.0%} of the time is only {_shown(most)}; give "
        "more, or shorter responses with --output-tokens"
    )


def _shown(seconds: float) -> str:
    return f"about {seconds / 60:.0f} min" if seconds >= 90 else f"about {seconds:.0f} s"
