"""Changes that make a spec fit its device, the cheapest first; the peak is planned again after each change."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import ValidationError

from skill_kd.plan.plan_result import Change, Settings
from skill_kd.spec import Spec

_WORTHWHILE = 0.02
"""Smallest saving worth proposing, as a share of the peak."""
_MOST_SPLITS = 1024
"""Largest ``training.accumulate`` to propose."""
_MOST_SIZES = 32
"""Largest number of rounds of which every smaller size is tried. Each one is planned, which takes time."""

Peak = Callable[[Spec], int]
"""Function from a spec to its peak in bytes."""


def changed(spec: Spec, settings: Settings) -> Spec | None:
    """Return ``spec`` with the settings applied, or None if the result is invalid."""
    values = spec.model_dump(mode="json")
    for key, value in settings:
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[last] = value
    try:
        return Spec.model_validate(values)
    except ValidationError:
        return None


def single_changes(spec: Spec, peak: Peak, room: int, *, on_cpu: bool) -> tuple[Change, ...]:
    """Return each change that lowers the peak by itself. ``room`` is the usable memory in bytes."""
    found = (_best(spec, options, peak, room) for options in _candidates(spec, on_cpu))
    return tuple(change for change in found if change is not None)


def recipe(spec: Spec, peak: Peak, room: int, *, on_cpu: bool) -> Change | None:
    """Return a minimal set of changes that fits into ``room`` bytes, or None if all changes together do not."""
    taken: list[Settings] = []
    current = spec
    for options in _candidates(spec, on_cpu):
        best = _best(current, options, peak, room)
        if best is None:
            continue
        current = _must(changed(current, best.settings))
        taken.append(best.settings)
        if best.fits:
            break
    else:
        return None
    # The last change made it fit. Drop earlier ones that are not needed, the most expensive first.
    for settings in reversed(taken[:-1]):
        rest = [kept for kept in taken if kept is not settings]
        lighter = changed(spec, _joined(rest))
        if lighter is not None and peak(lighter) <= room:
            taken = rest
    joined = _joined(taken)
    return Change(joined, peak(_must(changed(spec, joined))), fits=True)


def _best(spec: Spec, options: list[Settings], peak: Peak, room: int) -> Change | None:
    """Return the mildest option that fits, else the one that saves most, else None."""
    before = peak(spec)
    valid = [(settings, peak(after)) for settings in options if (after := changed(spec, settings)) is not None]
    fitting = [Change(settings, after, fits=True) for settings, after in valid if after <= room]
    if fitting:
        return fitting[0]
    helping = [(settings, after) for settings, after in valid if after < (1 - _WORTHWHILE) * before]
    if not helping:
        return None
    strongest = min(helping, key=lambda option: option[1])
    return Change(*strongest, fits=False)


def _candidates(spec: Spec, on_cpu: bool) -> Iterator[list[Settings]]:
    """Yield ways to save memory, the cheapest first; the options of each go from mild to strong."""
    training, launch = spec.training, spec.launch
    rows = training.batch_size // launch.processes
    splits = [count for count in range(training.accumulate + 1, min(rows, _MOST_SPLITS) + 1) if rows % count == 0]
    yield [(("training.accumulate", count),) for count in splits]
    yield [
        (("rollout.prompts", count * training.batch_size),)
        for count in _fewer(spec.rollout.prompts // training.batch_size)
    ]
    yield [(("checkpoint.measure_prompts", count),) for count in (32, 16, 8) if count < spec.checkpoint.measure_prompts]
    if spec.teacher.model is not None and spec.teacher.dtype == "float32":
        yield [(("teacher.dtype", "bfloat16"),)]
    if training.precision == "fp32":
        yield [(("training.precision", "bf16"),)]
    if not training.gradient_checkpointing:
        yield [(("training.gradient_checkpointing", True),)]
    if spec.teacher.model is not None and spec.teacher.quantization is None and not on_cpu:
        yield [(("teacher.quantization", "8bit"),), (("teacher.quantization", "4bit"),)]
    if spec.teacher.model is not None and launch.processes > 1:
        yield [(("launch.shard_teacher", True),)]
    yield [
        (("rollout.max_new_tokens", spec.rollout.max_new_tokens // part),)
        for part in (2, 4)
        if spec.rollout.max_new_tokens >= 32 * part
    ]
    if spec.student.lora is None:
        lora = ("student.lora", {"r": 16, "alpha": 32})
        low = ("student.dtype", "bfloat16")
        quantized: list[Settings] = [] if on_cpu else [(lora, low, ("student.quantization", "4bit"))]
        yield [(lora,), (lora, low), *quantized]
    if launch.strategy in {"none", "ddp"} and not on_cpu:
        more = [launch.processes * factor for factor in (1, 2, 4, 8)]
        yield [
            (("launch.processes", count), ("launch.strategy", "fsdp2"))
            for count in more
            if count > 1 and training.batch_size % (count * training.accumulate) == 0
        ]


def _fewer(count: int) -> list[int]:
    """Return smaller numbers, the largest first: all of them, or halves of halves if there are many."""
    if count <= _MOST_SIZES:
        return list(range(count - 1, 0, -1))
    return [count >> halvings for halvings in range(1, count.bit_length())]


def _joined(parts: list[Settings]) -> Settings:
    return tuple(setting for part in parts for setting in part)


def _must(spec: Spec | None) -> Spec:
    assert spec is not None
    return spec
