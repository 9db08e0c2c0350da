"""Run a script in a process that has already imported torch and transformers.

These imports take 5 seconds, most of the time of a tiny training run. A server process imports them once for each
worker of the tests; each script then runs in a fork of it. This module must not import skill_kd, because generated
scripts run where it is not installed.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

PRELOADED = ["torch", "transformers", "transformers.modeling_utils", "transformers.generation", "accelerate", "peft"]


def run_script(
    script: Path, *arguments: str, cwd: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a Python script, as ``subprocess.run`` would with the interpreter of the tests.

    Args:
        environment: the variables of the process; ``PYTHONPATH`` must be one folder.
        timeout: seconds after which the process is killed.

    Raises:
        TimeoutExpired: it was killed.
    """
    context = multiprocessing.get_context("forkserver")
    with mock.patch.dict(os.environ, environment, clear=True):  # libraries read some variables at their import
        context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    command = [str(script), *arguments]
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch, name) for name in ("stdout", "stderr")]
        process = context.Process(target=_script, args=(command, str(cwd), dict(environment), list(map(str, outputs))))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout)
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in outputs]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _script(command: list[str], cwd: str, environment: dict[str, str], outputs: list[str]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    sys.path[:] = [str(Path(command[0]).parent), environment["PYTHONPATH"], *filter(_is_installed, sys.path)]
    runpy.run_path(command[0], run_name="__main__")


def _is_installed(folder: str) -> bool:
    """Return True for the standard library and site-packages, and False for the folders of this repository."""
    return Path(folder).is_relative_to(sys.prefix) or Path(folder).is_relative_to(sys.base_prefix)
