"""The entry point that assembles a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from skill_kd.errors import UsageError
from skill_kd.plan.changes import recipe, single_changes
from skill_kd.plan.devices import Device, find_device
from skill_kd.plan.duration import count_evaluation_prompts, count_rows, durations, evaluation
from skill_kd.plan.memory import phases
from skill_kd.plan.plan_result import Plan
from skill_kd.plan.setup import DTYPE_BYTES, Setup, read_setup
from skill_kd.spec import Spec

RESERVE = 0.1
"""Share of a device's memory reserved for context, libraries and allocator fragmentation. Assumption."""


def plan(
    spec: Spec, *, device: str | None = None, price_per_hour: float | None = None, rows: int | None = None
) -> Plan:
    """Return memory, time and cost of ``spec``, from the configs of its models.

    Args:
        spec: the run; prompts and responses are assumed to have their longest lengths.
        device: a name from ``known_devices``; without it, the plan has no time and no fit.
        price_per_hour: price of one device.
        rows: number of training rows, if they are not in a local file.

    Raises:
        UsageError: the device or a model is unknown, the price is below 0, or ``rows`` is below 1.
        MissingRequirementError: a config must come from the hub, and the hub is unavailable.
    """
    if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
        raise UsageError(f"price_per_hour: {price_per_hour} is not a price; give 0 or more")
    if rows is not None and rows < 1:
        raise UsageError(f"rows: {rows} is not a number of training rows; give 1 or more")
    found = find_device(device) if device else None
    rows = rows or count_rows(spec)
    setup, on_cpu = read_setup(spec), device is not None and found is not None and found.name == "cpu"

    def peak(other: Spec) -> int:
        return max(phase.bytes for phase in phases(replace(setup, spec=other), on_cpu=on_cpu))

    reserve = int(RESERVE * found.memory) if found else 0
    room = found.memory - reserve if found else 0
    crowded = bool(room) and peak(spec) > room
    return Plan(
        name=spec.name,
        student=setup.student,
        teachers=setup.teachers,
        trainable_parameters=setup.trainable_parameters,
        phases=tuple(sorted(phases(setup, on_cpu=on_cpu), key=lambda phase: -phase.bytes)),
        device=found,
        reserve=reserve,
        stages=durations(setup, found, rows),
        evaluation=evaluation(setup, found, count_evaluation_prompts(spec, rows)),
        processes=spec.launch.processes,
        price_per_hour=price_per_hour,
        changes=single_changes(spec, peak, room, on_cpu=on_cpu) if crowded else (),
        recipe=recipe(spec, peak, room, on_cpu=on_cpu) if crowded else None,
        problems=tuple(_problems(setup, found)),
        notes=tuple(_notes(setup)),
    )


def _problems(setup: Setup, device: Device | None) -> Iterator[str]:
    spec = setup.spec
    models = [("the student", setup.student), *(("the teacher", teacher) for teacher in setup.teachers)]
    for whose, config in models:
        if config.max_positions is not None and setup.length > config.max_positions:
            yield (
                f"data.max_prompt_tokens {setup.prompt} + rollout.max_new_tokens {setup.new} is {setup.length} tokens, "
                f"but {whose} has {config.max_positions} positions; lower one of the two"
            )
    if device is None:
        return
    quantized = [name for name in ("teacher", "student") if getattr(spec, name).quantization]
    if device.name == "cpu" and quantized:
        yield f"{quantized[0]}.quantization: {getattr(spec, quantized[0]).quantization} needs a GPU; set it to null"
    if not device.has_bf16 and 2 in (setup.compute_bytes, DTYPE_BYTES[spec.teacher.dtype]):
        yield (
            f"{device.name} has no bfloat16 units and emulates bfloat16, which is many times slower; set "
            "training.precision: fp32, student.dtype: float32 and teacher.dtype: float32"
        )


def _notes(setup: Setup) -> Iterator[str]:
    yield "the numbers are for the built-in trainer, with the longest prompts and responses that the spec allows"
    yield "times assume a share of the device's peak speed; read them as a range"
    if setup.spec.teacher.served is not None:
        yield "the memory and time of the served teacher are not included"
    if setup.spec.launch.shard_teacher:
        yield (
            "a sharded teacher gathers its blocks from all processes in each forward pass, and sampling needs one pass "
            "per token: use it to score, and sample its responses before the run"
        )
    for whose, config in [("student", setup.student), *(("teacher", teacher) for teacher in setup.teachers)]:
        if config.approximate:
            yield f"the {whose}'s model type '{config.model_type}' is unknown; its size is a Llama-like estimate"
