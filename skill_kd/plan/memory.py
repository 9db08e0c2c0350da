"""Memory of one process, in bytes and by part, for each phase of the run that could hold the peak.

Compared with real updates and rollouts on CPU (benchmarks/results/plan_memory.json), the planned sum of live tensors
has a median error of 0% and at most 3%. Resident memory is higher, because the C allocator keeps some freed memory.
With ``HOST_SLACK``, fitted to the same cases, resident memory is planned within 25%. Nothing was measured on a GPU,
with quantized weights or with more than one process.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from skill_kd.plan.loss import measured_logits, scored_logits
from skill_kd.plan.model_source import ModelConfig
from skill_kd.plan.setup import DTYPE_BYTES, SAMPLED_AT_ONCE, WRITTEN_AT_ONCE, Setup, teacher_writes
from skill_kd.plan.update import update_phases
from skill_kd.plan.weights import Part, Phase, lasting, read_weights
from skill_kd.spec import Distill, MiniLLM, SelfTrain, Stage, Student, Teacher

SAMPLING_COPIES = 5
"""Number of float32 tensors [rows, V] alive while sampling a token: log-probs, and two float64 that count double."""

NUCLEUS_COPIES = 8
"""The same with top_p below 1, which sorts the tokens."""

HOST_LIBRARIES = 400 * 10**6
"""On CPU, bytes of Python and its libraries before any model. Measured: 345 MB without datasets and peft."""

HOST_SLACK = (150 * 10**6, 0.3)
"""On CPU, freed memory that the C allocator keeps: bytes, and a share of temporary memory. Fitted to glibc."""


def phases(setup: Setup, *, on_cpu: bool = False) -> list[Phase]:
    """Return every phase that could hold the peak.

    Args:
        setup: the run.
        on_cpu: the run uses the CPU, where the optimizer works weight by weight, export shares memory and the
            allocator keeps some freed memory.
    """
    found = list(update_phases(setup, on_cpu=on_cpu))
    for stage in setup.spec.stages:
        found += _rollout_phases(setup, stage, on_cpu)
    found += _other_phases(setup, on_cpu)
    if on_cpu:
        lasts = sum(part.bytes for part in lasting(setup))
        found = [Phase(phase.name, (*phase.parts, *_host_parts(phase.bytes - lasts))) for phase in found]
    return [Phase(phase.name, _by_name(phase.parts)) for phase in found]


def _by_name(parts: Sequence[Part]) -> tuple[Part, ...]:
    sums: dict[str, int] = {}
    for part in parts:
        sums[part.name] = sums.get(part.name, 0) + part.bytes
    return tuple(Part(name, size) for name, size in sums.items() if size)


def _host_parts(passing: int) -> tuple[Part, Part]:
    fixed, share = HOST_SLACK
    return Part("libraries", HOST_LIBRARIES), Part("allocator slack", fixed + int(share * passing))


def cache_bytes(config: ModelConfig, rows: int, length: int, width: int) -> int:
    """Return bytes of the keys and values of ``rows`` sequences; a key and a value together take ``width`` bytes.

    A sliding window, which needs less, is ignored.
    """
    return rows * length * config.layers * config.kv_heads * config.head_dim * width


def _rollout_phases(setup: Setup, stage: Stage, on_cpu: bool) -> Iterator[Phase]:
    rows = setup.sampled_rows(stage)
    mix = stage.objective.teacher_mix if isinstance(stage, Distill) and isinstance(stage.objective, MiniLLM) else 0.0
    if rows:
        chunk = _longest_run(mix, setup.new) if mix else 1
        cached = _teacher_cache(setup, rows) if mix else 0
        parts = (_student_cache(setup, rows), Part("teacher KV cache", cached), _drawing(setup, rows, chunk))
        orders = (_students_order(setup, on_cpu), _teachers_order(setup, on_cpu and mix > 0))
        yield Phase(f"rollouts ({stage.kind})", (*lasting(setup), read_weights(setup), *parts, *orders))
    if teacher_writes(stage) and setup.teachers:
        yield _writing(setup, f"teacher's responses ({stage.kind})", WRITTEN_AT_ONCE, on_cpu)
    if isinstance(stage, SelfTrain) and setup.teachers:
        yield Phase(f"teacher's scores ({stage.kind})", (*lasting(setup), scored_logits(setup)))


def _other_phases(setup: Setup, on_cpu: bool) -> Iterator[Phase]:
    rows = min(SAMPLED_AT_ONCE, setup.spec.checkpoint.measure_prompts)
    if setup.teachers:
        yield _writing(setup, "teacher's held-out samples", rows, on_cpu)
    lasts, order = (*lasting(setup), read_weights(setup)), _students_order(setup, on_cpu)
    yield Phase("held-out samples", (*lasts, _student_cache(setup, rows), _drawing(setup, rows, 1), order))
    yield Phase("held-out measure", (*lasts, measured_logits(setup)))
    width = DTYPE_BYTES[setup.spec.student.dtype]
    # Export copies and merges the student. On a CPU the exported folder is also loaded next to that copy, and shards
    # are gathered in one more copy.
    copies = (2 if on_cpu else 1) + (1 if on_cpu else -1) * setup.sharded
    yield Phase("export", (*lasting(setup), Part("copies of the student", copies * setup.student.parameters * width)))


def _writing(setup: Setup, name: str, rows: int, on_cpu: bool) -> Phase:
    parts = (Part("teacher KV cache", _teacher_cache(setup, rows)), _drawing(setup, rows, 1))
    return Phase(name, (*lasting(setup), *parts, _teachers_order(setup, on_cpu)))


def _students_order(setup: Setup, copied: bool) -> Part:
    return _order(setup, setup.spec.student, [setup.student], copied)


def _teachers_order(setup: Setup, copied: bool) -> Part:
    return _order(setup, setup.spec.teacher, setup.teachers, copied)


def _order(setup: Setup, of: Student | Teacher, configs: Sequence[ModelConfig], copied: bool) -> Part:
    """Return the copies of float32 weights that a CPU decodes from; autocast makes none."""
    plain = copied and of.dtype == "float32" and of.quantization is None and not setup.autocast
    return Part("reordered weights", plain * sum(map(_linear_bytes, configs)))


def _linear_bytes(config: ModelConfig) -> int:
    """Return bytes of the float32 weights in ``nn.Linear`` modules; the blocks of GPT-2 have none."""
    blocks = () if config.model_type == "gpt2" else config.linears
    matrices = sum(linear.copies * linear.inputs * linear.outputs for linear in blocks if not linear.expert)
    return 4 * (matrices + config.vocab_size * config.hidden_size)


def _student_cache(setup: Setup, rows: int) -> Part:
    # Rotary positions cast keys to the dtype of the residual stream; values keep the dtype of the matrix products.
    width = setup.residual_bytes + setup.compute_bytes
    return Part("student KV cache", cache_bytes(setup.student, rows, setup.length, width))


def _teacher_cache(setup: Setup, rows: int) -> int:
    width = 2 * DTYPE_BYTES[setup.spec.teacher.dtype]
    return sum(cache_bytes(config, rows, setup.length, width) for config in setup.teachers)


def _drawing(setup: Setup, rows: int, chunk: int) -> Part:
    copies = SAMPLING_COPIES if setup.spec.rollout.top_p == 1 else NUCLEUS_COPIES
    return Part("sampling logits", 4 * copies * rows * chunk * setup.vocabulary)


def _longest_run(mix: float, steps: int) -> int:
    """Return about the longest run of tokens that one model samples before the other scores them in one pass."""
    rarer = min(mix, 1 - mix)
    return min(steps, 1 + math.ceil(math.log(max(steps * rarer, 2)) / -math.log1p(-rarer)))
