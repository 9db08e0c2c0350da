"""Seals of runs: a key that only tests use, and the seal of a run folder that a test writes or changes by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from skill_kd.jobs.manifest import Manifest
from skill_kd.jobs.trust import read_spec, sealed


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep the key of the seals in a temporary folder, also for the processes that tests start."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_STATE_HOME", str(folder))
        yield folder


def own(folder: Path, manifest: Manifest | None = None) -> Path:
    """Seal a run folder with its present spec, and with its own or another manifest, as this user's run."""
    sealed(manifest or Manifest.read(folder), read_spec(folder)).write(folder)
    return folder
