"""The result of a plan, as data and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from skill_kd.plan.devices import Device
from skill_kd.plan.duration import RANGE, EvaluationTime, StageTask, StageTime
from skill_kd.plan.model_source import ModelConfig
from skill_kd.plan.weights import Phase

Settings = tuple[tuple[str, object], ...]
"""Dotted spec keys and their new values."""


@dataclass(frozen=True)
class Change:
    """A change to the spec and the peak planned with it."""

    settings: Settings
    peak: int
    """Bytes."""
    fits: bool

    def __str__(self) -> str:
        """Return the change as written in a spec."""
        return ", ".join(f"{key}: {_yaml(value)}" for key, value in self.settings)


@dataclass(frozen=True)
class Plan:
    """Memory per process in bytes, time in seconds, cost in the currency of the price."""

    name: str
    student: ModelConfig
    teachers: tuple[ModelConfig, ...]
    trainable_parameters: int
    phases: tuple[Phase, ...]
    """Phases that could hold the peak, the highest first."""
    device: Device | None
    reserve: int
    """Bytes of the device reserved for memory that is not planned: context, libraries, fragmentation."""
    stages: tuple[StageTime, ...]
    evaluation: EvaluationTime | None
    """Time of `evaluate` on one device after the run; None if the teacher cannot be loaded."""
    processes: int
    price_per_hour: float | None
    changes: tuple[Change, ...]
    """Single changes that help, the cheapest first; empty if the plan fits."""
    recipe: Change | None
    """The cheapest changes that together make the plan fit; None if it already fits or if no changes are enough."""
    problems: tuple[str, ...]
    """Problems other than memory that would stop the run."""
    notes: tuple[str, ...]
    """Assumptions and omissions of these numbers."""

    @property
    def peak(self) -> int:
        """Bytes of the highest phase."""
        return self.phases[0].bytes

    @property
    def fits(self) -> bool | None:
        """True if the peak and the reserve fit the device; None without a device of known memory."""
        if self.device is None or not self.device.memory:
            return None
        return self.peak + self.reserve <= self.device.memory

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Low and high end of the whole run, or None if a stage's time is unknown."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        if self.device is None or len(known) < len(self.stages):
            return None
        return RANGE[0] * sum(known), RANGE[1] * sum(known)

    @property
    def cost(self) -> tuple[float, float] | None:
        """Low and high end of the cost of all devices, or None without a price or a time."""
        if self.price_per_hour is None or self.seconds is None:
            return None
        hourly = self.price_per_hour * self.processes / 3600
        return hourly * self.seconds[0], hourly * self.seconds[1]

    def to_json(self) -> dict[str, object]:
        """Return all fields as JSON-ready values; bytes and seconds as numbers."""
        return {
            "name": self.name,
            "models": {
                "student": _model(self.student),
                "teachers": [_model(teacher) for teacher in self.teachers],
                "trainable_parameters": self.trainable_parameters,
            },
            "memory": {
                "peak_bytes": self.peak,
                "phase": self.phases[0].name,
                "largest_part": self.phases[0].largest.name,
                "phases": [{"bytes": phase.bytes, **asdict(phase)} for phase in self.phases],
            },
            "device": asdict(self.device) if self.device else None,
            "processes": self.processes,
            "reserve_bytes": self.reserve,
            "fits": self.fits,
            "changes": [_change(change) for change in self.changes],
            "recipe": _change(self.recipe) if self.recipe else None,
            "time": {
                "seconds": self.seconds,
                "stages": [{**asdict(stage), "seconds": _spread(stage.seconds)} for stage in self.stages],
                "evaluation": self.evaluation
                and {**asdict(self.evaluation), "seconds": _spread(self.evaluation.seconds)},
            },
            "cost": self.cost,
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Return the plan as text for a terminal."""
        return "\n".join(_lines(self))


def gigabytes(count: int) -> str:
    """Return bytes in units of 10^9."""
    return f"{count / 1e9:.2f} GB" if count < 10e9 else f"{count / 1e9:.1f} GB"


def _lines(plan: Plan) -> Iterator[str]:
    yield f"plan for '{plan.name}'"
    yield _described("student", plan.student) + f", {_count(plan.trainable_parameters)} trained"
    yield from (_described("teacher", teacher) for teacher in plan.teachers)
    highest = plan.phases[0]
    yield f"\nmemory per process: {gigabytes(plan.peak)} at the peak ({highest.name})"
    for part in sorted(highest.parts, key=lambda part: -part.bytes):
        share = part.bytes / max(plan.peak, 1)
        yield f"  {part.name:<28}{gigabytes(part.bytes):>10}  {share:>4.0%}"
    others = ", ".join(f"{phase.name} {gigabytes(phase.bytes)}" for phase in plan.phases[1:4])
    yield f"  next: {others}"
    yield from _fit(plan)
    yield from _time(plan)
    yield from (f"\nproblem: {problem}" for problem in plan.problems)
    yield ""
    yield from (f"note: {note}" for note in plan.notes)


def _fit(plan: Plan) -> Iterator[str]:
    if plan.device is None:
        return
    room = f"{plan.device.name} ({gigabytes(plan.device.memory)}, of which {gigabytes(plan.reserve)} are reserved)"
    if plan.fits is None:
        yield "\nnot known if this fits: the memory of this machine could not be read"
    elif plan.fits:
        yield f"\nfits {room}"
    else:
        yield f"\ndoes not fit {room}"
        yield from (
            f"  {change!s:<58}{gigabytes(change.peak):>10}{'  fits' if change.fits else ''}" for change in plan.changes
        )
        if plan.recipe is None:
            yield "  no combination of these fits; use a larger device, or a smaller student or teacher"
        elif len(plan.recipe.settings) > 1 or not any(change.fits for change in plan.changes):
            yield f"  together, {gigabytes(plan.recipe.peak)}: {plan.recipe}"


def _time(plan: Plan) -> Iterator[str]:
    if plan.device is None:
        return
    total = _hours(plan.seconds) if plan.seconds else "unknown"
    yield f"\ntime on {plan.processes} × {plan.device.name}: {total}"
    for stage in plan.stages:
        if (spread := _spread(stage.seconds)) is None:
            yield f"  {stage.stage:<12} unknown: its length is in epochs; give the number of training rows with --rows"
            continue
        yield f"  {stage.stage:<12} {stage.updates} updates, {_hours(spread)} ({_shares(stage.tasks)})"
    if plan.evaluation and (spread := _spread(plan.evaluation.seconds)):
        each = f"{plan.evaluation.prompts} prompts × {plan.evaluation.samples} responses"
        yield f"then evaluate: {each}, {_hours(spread)} ({_shares(plan.evaluation.tasks)})"
    if plan.cost:
        yield f"cost: {plan.cost[0]:.2f} … {plan.cost[1]:.2f} at {plan.price_per_hour:g} per device and hour"


def _shares(tasks: tuple[StageTask, ...]) -> str:
    total = sum(task.seconds for task in tasks) or 1
    return ", ".join(f"{task.name} {task.seconds / total:.0%}" for task in tasks)


def _described(role: str, config: ModelConfig) -> str:
    about = "about " if config.approximate else ""
    active = f", {_count(config.active_parameters)} active" if config.experts else ""
    return f"  {role:<8} {about}{_count(config.parameters)} parameters{active}, {config.layers} layers"


def _model(config: ModelConfig) -> dict[str, object]:
    counts = {"parameters": config.parameters, "active_parameters": config.active_parameters}
    return {**counts, **asdict(config)}


def _change(change: Change) -> dict[str, object]:
    return {"settings": dict(change.settings), "peak_bytes": change.peak, "fits": change.fits}


def _spread(seconds: float | None) -> tuple[float, float] | None:
    return None if seconds is None else (RANGE[0] * seconds, RANGE[1] * seconds)


def _hours(spread: tuple[float, float]) -> str:
    unit, size = next(((unit, size) for unit, size in (("h", 3600), ("min", 60)) if spread[1] >= 2 * size), ("s", 1))
    low, high = (value / size for value in spread)
    return f"{_rounded(low)} … {_rounded(high)} {unit}"


def _rounded(value: float) -> str:
    """Round to two digits; the range is a factor of four wide, so more digits would mean nothing."""
    return f"{value:.2g}" if value < 10 else f"{float(f'{value:.2g}'):.0f}"


def _count(parameters: int) -> str:
    if parameters >= 10**9:
        return f"{parameters / 1e9:.2f}B"
    return f"{parameters / 1e6:.1f}M"


def _yaml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
