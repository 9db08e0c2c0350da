"""The speed of both models, one response at a time."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from skill_kd.evaluate.opened_models import Writer
from skill_kd.evaluate.policy import GatePolicy
from skill_kd.report.shown_document import Latency, ModelSpeed, SecondsQuantiles, Side

if TYPE_CHECKING:
    from skill_kd.kd.dataset.reading import Example

TIMED = 20
"""Number of timed responses per model."""


def measure_latency(
    policy: GatePolicy, teacher: Writer, student: Writer, examples: Sequence[Example], load: float | None
) -> Latency:
    """Time both models' first ``TIMED`` responses. ``load`` is the machine's load before the evaluation."""
    import torch

    device, asked = teacher.sampler.device, examples[:TIMED]
    threads = torch.get_num_threads()
    cpu = f"{_processor()}, {threads} thread{'s' * (threads > 1)} of {os.cpu_count()} processors"
    writers: dict[Side, Writer] = {"teacher": teacher, "student": student}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    speeds = timed(writers, asked, policy.seed)
    return {
        "load": load,
        "hardware": name,
        "batch": 1,
        "concurrency": 1,
        "responses": len(asked),
        "memory": "peak" if device.type == "cuda" else "weights",
        "dtypes": {who: str(next(each.model.parameters()).dtype)[6:] for who, each in writers.items()},
        "teacher": speeds["teacher"],
        "student": speeds["student"],
        "cost_per_1k": None,
    }


def _processor() -> str:
    """Return the name of the processor, or of its architecture if the system does not give one."""
    import platform

    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or f"{platform.machine()} CPU"


def timed(writers: Mapping[Side, Writer], examples: Sequence[Example], seed: int) -> dict[Side, ModelSpeed]:
    """Time one response at a time. The models take turns, so that other work on the machine slows all of them equally.

    Returns:
        For each model, ``seconds`` of every response, their median ``p50_s`` with 95% bounds from order statistics
        (valid for any distribution), ``p95_s`` by nearest rank, ``tokens_per_s``, mean ``tokens`` of a response, and
        ``memory_bytes``: its own share of the peak on a GPU, otherwise the weights.
    """
    import torch

    from skill_kd.kd.rollouts.reordered import reordered_weights

    seconds: dict[Side, list[float]] = {name: [] for name in writers}
    tokens, memory = dict.fromkeys(writers, 0), dict.fromkeys(writers, 0)
    with ExitStack() as prepared:
        # A server prepares its weights once. Without this, each response on a CPU would include that time.
        for writer in writers.values():
            prepared.enter_context(reordered_weights(writer.model))
            writer.write(examples[:1], 1, (seed, "warm-up"), 0)
        for index, example in enumerate(examples):
            for name, writer in writers.items():
                on_gpu = writer.sampler.device.type == "cuda"
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated() if on_gpu else 0
                begun = time.perf_counter()
                [[row]] = writer.write([example], 1, (seed, "timed"), index)
                if on_gpu:
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - begun)
                tokens[name] += len(row.response)
                memory[name] = max(memory[name], torch.cuda.max_memory_allocated() - held if on_gpu else 0)
    return {
        name: {
            **quantiles(seconds[name]),
            "tokens_per_s": tokens[name] / sum(seconds[name]),
            "tokens": tokens[name] / len(examples),
            "memory_bytes": memory[name] + sum(w.numel() * w.element_size() for w in writer.model.parameters()),
            "seconds": seconds[name],
        }
        for name, writer in writers.items()
    }


def quantiles(seconds: Sequence[float]) -> SecondsQuantiles:
    """Return the median with its bounds, and the 95th percentile.

    The number of n draws below the median has the distribution of heads in n coin tosses. Below 6 draws, the bounds are
    None.
    """
    from scipy.stats import binom

    ordered, count = sorted(seconds), len(seconds)
    outer = int(binom.ppf(0.025, count, 0.5))
    return {
        "p50_s": statistics.median(ordered),
        "p50_low_s": ordered[outer - 1] if outer else None,
        "p50_high_s": ordered[count - outer] if outer else None,
        "p95_s": ordered[math.ceil(0.95 * count) - 1],
    }
