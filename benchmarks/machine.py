"""The machine and the versions that results depend on, and saving of results. All benchmarks use it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any


def machine(*distributions: str) -> dict[str, Any]:
    """Return this machine, its Python, and the versions of the measured distributions."""
    versions = {name.replace("-", "_"): importlib.metadata.version(name) for name in distributions}
    return {
        "system": platform.system(),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
