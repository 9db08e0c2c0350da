from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from warm_process import run_script


def run(tmp_path: Path, text: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "neighbor.py").write_text("")
    (tmp_path / "script.py").write_text(text)
    environment = {"PYTHONPATH": str(tmp_path / "path"), "SAID": "yes", "OMP_NUM_THREADS": "1"}
    return run_script(tmp_path / "script.py", "--an", cwd=tmp_path, environment=environment, timeout=timeout)


def test_a_script_has_the_streams_the_exit_code_and_the_environment_of_its_own_process(tmp_path: Path) -> None:
    text = """
import neighbor, os, sys
assert __name__ == "__main__"
print(os.environ["SAID"], sys.argv[1], os.getcwd())
os.write(2, b"raw\\n")
sys.exit(7)
"""
    done = run(tmp_path, text)
    assert (done.returncode, done.stdout, done.stderr) == (7, f"yes --an {tmp_path}\n", "raw\n")


def test_skill_kd_is_not_imported_and_not_on_the_path(tmp_path: Path) -> None:
    repository = Path(__file__).parents[1]
    text = f"import sys; assert 'skill_kd' not in sys.modules; assert {str(repository)!r} not in sys.path"
    assert run(tmp_path, text).returncode == 0


def test_a_script_without_an_end_is_killed(tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run(tmp_path, "import time; time.sleep(600)", timeout=3)
