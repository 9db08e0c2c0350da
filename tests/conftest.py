"""Fixtures and lanes for all tests: the shortest spec, a plugin for one test, and the choice of slow tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Workers share the cores. torch reads this at its import, and scripts that tests start inherit it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from skill_kd import plugins
from skill_kd.spec import Spec
from skill_kd.testing import minimal_spec

TESTS = Path(__file__).parent


LANES = {
    "faults": (
        *("jobs/test_faults.py", "jobs/test_kill.py", "documents/test_soak.py", "documents/test_damage_study.py"),
        "diagnose/test_diagnose_signals.py",
    ),
    "processes": ("kd/train/test_distributed.py", "kd/model/test_sharding.py"),
    "browser": ("report/test_report_browser.py", "diagnose/test_diagnose_browser.py"),
    "studies": ("documents/test_evals.py", "evaluate/test_evaluate_honesty.py", "test_demo.py"),
    "families": ("documents/test_model_families.py",),
    "install": ("test_kd.py", "documents/test_skill_installed.py", "kd/model/test_old_transformers.py"),
}
"""Files of slow tests, by lane of .ci/run. Plain `pytest` leaves them out."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--lane", help=f"run only this lane ({', '.join(LANES)}), or 'all' (default: all but the lanes)")


def pytest_configure(config: pytest.Config) -> None:
    """Set the default lane. A file that the command line names runs in any lane."""
    # A background job of a shell ignores SIGINT. The runs that tests stop with SIGINT would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.lane is None:
        whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
        config.option.lane = "tests" if whole else "all"
    if config.option.lane not in (*LANES, "tests", "all"):
        raise pytest.UsageError(f"--lane {config.option.lane}: unknown; known: {', '.join(LANES)}, tests, all")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that are not in the chosen lane."""
    lanes = {TESTS / file: lane for lane, files in LANES.items() for file in files}
    asked = config.option.lane
    kept, left_out = [], []
    for item in items:
        (kept if asked in ("all", lanes.get(item.path, "tests")) else left_out).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture
def spec() -> Spec:
    return minimal_spec()


@pytest.fixture
def at_once() -> Iterator[None]:
    """Let a test fail that waits for something, such as the other end of a pipe."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


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
