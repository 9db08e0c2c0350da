"""What many tests share: the shortest spec, and a plugin installed for one test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skill_kd import plugins
from skill_kd.spec import Spec
from skill_kd.testing import minimal_spec


@pytest.fixture
def spec() -> Spec:
    return minimal_spec()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a distribution with one entry point in the group ``skill_kd``, for this test and its subprocesses."""
    site = tmp_path / "site"
    written: list[str] = []

    def install_plugin(
        distribution: str, backend: str, module: str, source: str | None = None, requires: str | None = None
    ) -> None:
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n{needs}")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{backend} = {module}\n")
        if source is not None:
            (site / f"{module}.py").write_text(source)
            written.append(module)
        plugins.forget()

    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    yield install_plugin
    for module in written:
        sys.modules.pop(module, None)
    plugins.forget()
