"""``retrain.py OUTPUTS FILE STUDENT``: run an agent's training script in a fresh copy, and measure its student.

The copy is next to the same ``teacher/``, ``student/`` and prompts, and has no earlier student, run or checkpoint.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = 900


def main(outputs: Path, file: str, student: str) -> int:
    """Return 0 if the script ends well and leaves a student that is nearer to the teacher."""
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Path(scratch) / "workspace"
        stale = shutil.ignore_patterns("student", "runs", "checkpoints", "outputs", ".git", ".claude", ".agents")
        shutil.copytree(outputs, workspace / "outputs", ignore=stale)
        for path in outputs.parent.iterdir():
            if path.name in ("teacher", "student"):
                shutil.copytree(path, workspace / path.name)
            elif path.is_file():
                shutil.copy(path, workspace / path.name)
        done = subprocess.run(  # the script is what is graded
            [sys.executable, str(workspace / "outputs" / file)], cwd=workspace, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            print(f"exit code {done.returncode}: {done.stderr[-800:]}")
            return 1
        places = [path for path in (workspace / "outputs").rglob(student) if (path / "config.json").is_file()]
        places += [path for path in workspace.rglob("runs/**/student") if (path / "config.json").is_file()]
        if not places:
            print(f"it left no folder '{student}' that holds a model")
            return 1
        measure = [sys.executable, str(Path(__file__).parent / "measure.py"), str(workspace), str(places[0]), "any"]
        return subprocess.run(measure, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
