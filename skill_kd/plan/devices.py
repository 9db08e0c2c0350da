"""Devices to plan for: memory and speed. Peak numbers come from the vendors' public datasheets.

FLOP/s are dense, without sparsity. A datasheet's gigabyte counts as 10^9 bytes, a little less than the driver reports
and about what error correction leaves.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from skill_kd.errors import UsageError


@dataclass(frozen=True)
class Device:
    """One accelerator, or the CPU of this machine."""

    name: str
    memory: int
    """Bytes; 0 if unknown."""
    bf16_flops: float
    """Peak dense bfloat16 matrix FLOP/s (float32 accumulation)."""
    fp32_flops: float
    """Peak float32 FLOP/s, without TF32."""
    bandwidth: float
    """Peak memory bandwidth, bytes/s."""
    link: float
    """Peak bytes/s received from other devices of the machine, over NVLink if present, else PCIe x16."""
    has_bf16: bool = True
    """True if there are bfloat16 matrix units; without them bfloat16 is emulated, which is slow."""


# Each with NVIDIA's own page or whitepaper. Numbers given with sparsity are halved to get the dense ones.
_DEVICES = (
    # https://www.nvidia.com/en-us/data-center/tesla-t4/  65 TFLOP/s is float16: Turing has no bfloat16 units.
    Device("T4", 16 * 10**9, 8.1e12, 8.1e12, 320e9, 16e9, has_bf16=False),
    # https://www.nvidia.com/en-us/data-center/l4/
    Device("L4", 24 * 10**9, 121e12, 30.3e12, 300e9, 32e9),
    # https://www.nvidia.com/en-us/data-center/products/a10-gpu/
    Device("A10", 24 * 10**9, 125e12, 31.2e12, 600e9, 32e9),
    # NVIDIA Ampere GA102 GPU Architecture whitepaper, appendix A
    Device("RTX 3090", 24 * 10**9, 71e12, 35.6e12, 936e9, 32e9),
    # NVIDIA Ada GPU Architecture whitepaper, appendix A
    Device("RTX 4090", 24 * 10**9, 165e12, 82.6e12, 1008e9, 32e9),
    # https://www.nvidia.com/en-us/data-center/a100/ (SXM; the 40 GB version from its 2020 datasheet)
    Device("A100-40", 40 * 10**9, 312e12, 19.5e12, 1555e9, 300e9),
    Device("A100-80", 80 * 10**9, 312e12, 19.5e12, 2039e9, 300e9),
    # https://www.nvidia.com/en-us/data-center/l40s/
    Device("L40S", 48 * 10**9, 362e12, 91.6e12, 864e9, 32e9),
    # https://www.nvidia.com/en-us/data-center/h100/ (SXM)
    Device("H100", 80 * 10**9, 989e12, 67e12, 3350e9, 450e9),
    # https://www.nvidia.com/en-us/data-center/h200/
    Device("H200", 141 * 10**9, 989e12, 67e12, 4800e9, 450e9),
)

# FLOP/s per core that training reached (not peak), for models of 20M to 135M weights on two server cores: 30e9 to 55e9
# with AVX2 (benchmarks/results/plan_memory.json and busier runs), 59e9 with AVX-512. bfloat16: 109e9 with units for it,
# 1e9 or less if emulated.
_CORE_FP32_FLOPS = 40e9
_CORE_BF16_FLOPS = 109e9
_CORE_EMULATED_FLOPS = 1e9
_CPU_BANDWIDTH = 20e9
"""Bytes/s. Assumption: half the peak of two memory channels."""
_CPU_LINK = 1e9
"""Bytes/s through gloo over the loopback interface. Assumption."""


def known_devices() -> tuple[str, ...]:
    """Return the names that ``find_device`` accepts."""
    return (*(device.name for device in _DEVICES), "cpu")


def find_device(name: str) -> Device:
    """Return the device called ``name``; ignore case, spaces and dashes.

    Raises:
        UsageError: the device is not in the table.
    """
    if _plain(name) == "cpu":
        return this_cpu()
    table = {_plain(device.name): device for device in _DEVICES}
    table |= {"h100sxm": table["h100"], "a100": table["a10080"]}
    if found := table.get(_plain(name)):
        return found
    near = difflib.get_close_matches(_plain(name), table, n=1)
    hint = f"did you mean '{table[near[0]].name}'? " if near else ""
    raise UsageError(f"device '{name}' is not in the table; {hint}known: {', '.join(known_devices())}")


def this_cpu() -> Device:
    """Return this machine's CPU. Memory, core count and bfloat16 support are detected; speed per core is assumed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    has_bf16 = _has_bf16()
    bf16 = _CORE_BF16_FLOPS if has_bf16 else _CORE_EMULATED_FLOPS
    return Device("cpu", _host_memory(), cores * bf16, cores * _CORE_FP32_FLOPS, _CPU_BANDWIDTH, _CPU_LINK, has_bf16)


def _has_bf16() -> bool:
    """Return True if the CPU reports bfloat16 matrix units; only Linux reports them."""
    information = Path("/proc/cpuinfo")
    words = information.read_text(encoding="utf-8", errors="replace").split() if information.is_file() else []
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def _host_memory() -> int:
    """Return bytes of RAM, or the container's limit if it is lower."""
    physical = 0
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="ascii").strip() if limit.is_file() else ""
    return min(physical, int(text)) if text.isdecimal() else physical


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
