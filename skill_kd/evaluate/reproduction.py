"""The facts that are needed to repeat an evaluation: policy, files, models, versions."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata

from skill_kd import __version__
from skill_kd.evaluate.generations import Generations
from skill_kd.evaluate.measurements import NO_MODELS, ModelMeasurements
from skill_kd.evaluate.policy import GatePolicy
from skill_kd.evaluate.samples import Samples
from skill_kd.evaluate.sides import Compared
from skill_kd.report.evaluation_document import Reproduction


def reproduction(
    samples: Samples,
    read: Mapping[str, Generations],
    policy: GatePolicy,
    compared: Compared | None,
    measured: ModelMeasurements,
    started: float,
) -> Reproduction:
    """Return the reproduction block. ``started`` is in seconds of the monotonic clock."""
    return {
        "policy": policy.model_dump(mode="json"),
        "policy_name": policy.name,
        "policy_hash": policy.hash,
        "files": [
            {"role": f"{role} generations", "name": each.name, "sha256": each.sha256, "rows": each.rows}
            for role, each in read.items()
        ],
        **(measured.facts or NO_MODELS),
        "prompts": len(samples.prompts),
        "samples": samples.count,
        "seed": policy.seed,
        "resamples": policy.resamples,
        "word_budget": compared.words if compared else policy.word_budget,
        "features": "lexical",
        "versions": versions(("scipy", "numpy", "torch", "transformers")),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
    }


def versions(packages: Sequence[str]) -> dict[str, str | None]:
    """Return the versions of skill_kd, Python and ``packages``; None for a package that is not installed."""

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {"skill_kd": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
