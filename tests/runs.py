"""Run folders that a test writes or changes by hand, with the seal that ``skill-kd run`` gives them."""

from __future__ import annotations

from pathlib import Path

from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.trust import read_spec, sealed


def own(folder: Path, manifest: Manifest | None = None) -> Path:
    """Seal a run folder with its present spec, and with its own or another manifest, as this user's run."""
    sealed(manifest or Manifest.read(folder), read_spec(folder)).write(folder)
    return folder
