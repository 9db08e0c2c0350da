"""Graders: each runs the files that an agent left in ``outputs/``, and compares them with a truth unknown to the agent.

A model wrote these files: run evaluations where they can do no harm (a container without credentials).
Each grader takes the outputs, and returns if it passed, with the evidence. It never raises.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # skill_kd is read from where the cases lie
Grade = tuple[bool, str]
SECONDS = 900
"""Time limit of each subprocess, in seconds."""


def grade(outputs: Path, checks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row ``{text, passed, evidence}`` for each check ``{text, check, **arguments}``."""
    rows = []
    for each in checks:
        arguments = {name: value for name, value in each.items() if name not in ("text", "check")}
        try:
            passed, evidence = GRADERS[each["check"]](outputs, **arguments)
        except Exception as error:  # what an agent wrote may fail in any way, and that is a finding
            passed, evidence = False, f"{type(error).__name__}: {error}"
        rows.append({"text": each["text"], "passed": passed, "evidence": evidence[:2000]})
    return rows


def _run(command: Sequence[str], folder: Path, seconds: int = SECONDS) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip


def _kd(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return _run([sys.executable, "-m", "skill_kd", *args], folder)


def _json(path: Path) -> dict[str, Any]:
    loaded = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(loaded, dict):
        raise ValueError(f"{path.name} holds no object")
    return loaded


# --- losses -----------------------------------------------------------------------------------------------------------


def loss_proved(outputs: Path, file: str, function: str, kinds: Sequence[str], same_as: Sequence[str] = ()) -> Grade:
    """Judge the expected gradient of a loss with ``skill-kd prove``: one of ``kinds``, or ``same_as``."""
    done = _kd(outputs, "prove", f"{file}:{function}", "--teacher-mix", "0", "--json")
    if not done.stdout:
        return False, done.stderr
    verdict = json.loads(done.stdout)
    passed = verdict.get("kind") in kinds or verdict.get("same_as") in same_as
    return passed, str(verdict.get("says", verdict.get("errors")))


def loss_numbers(outputs: Path, file: str, function: str, direction: str) -> Grade:
    """Compare the values of a loss on random logits with its definition, a mean over the tokens of the mask."""
    done = _run([sys.executable, str(HERE / "loss_numbers.py"), str(outputs / file), function, direction], outputs)
    return done.returncode == 0, (done.stdout or done.stderr).strip()[-600:]


# --- specs and scripts ------------------------------------------------------------------------------------------------


def spec(outputs: Path, file: str, kinds: Sequence[str], coverage: bool = False) -> Grade:
    """Check that ``skill-kd validate`` accepts a spec, and that its last objective is one of ``kinds``."""
    done = _kd(outputs, "validate", file, "--json")
    if done.returncode:
        return False, done.stdout or done.stderr
    from skill_kd.spec.file import load_spec

    objectives = [stage.objective for stage in load_spec(outputs / file).stages if stage.kind != "self_train"]
    objective = objectives[-1]
    weight = getattr(objective, "coverage_weight", 0.0)
    passed = objective.kind in kinds or (coverage and objective.kind == "minillm" and weight > 0)
    return passed, f"objective {objective.kind}, coverage_weight {weight}"


def script(outputs: Path, file: str = "train.py", student: str = "student") -> Grade:
    """Check that a script trains: in a copy of ``outputs`` it succeeds, and its student is nearer to the teacher."""
    done = _run([sys.executable, str(HERE / "retrain.py"), str(outputs), file, student], outputs, 2 * SECONDS)
    return done.returncode == 0, (done.stdout + done.stderr).strip()[-1200:]


def student(outputs: Path, folder: str = "student", dtype: str | None = None) -> Grade:
    """Check that a folder loads, has no pickle, and is nearer to the teacher than the base student."""
    command = [sys.executable, str(HERE / "measure.py"), str(outputs.parent), str(outputs / folder), dtype or "any"]
    done = _run(command, outputs)
    return done.returncode == 0, (done.stdout + done.stderr).strip()[-600:]


def hand_written(outputs: Path, most: int) -> Grade:
    """Check that there are a few hand-written lines. Generated scripts, which have a hash, and ``kd/`` do not count."""
    found = [path for path in outputs.rglob("*") if path.suffix in (".py", ".yaml", ".yml", ".toml")]
    total = 0
    for path in found:
        text = path.read_text(encoding="utf-8", errors="replace")
        if "kd" not in path.relative_to(outputs).parts and '\n# body = "' not in text:
            total += sum(bool(line.strip()) for line in text.splitlines())
    return bool(found) and total <= most, f"{total} lines in {len(found)} files"


# --- findings ---------------------------------------------------------------------------------------------------------


def answer(outputs: Path, file: str, expects: Mapping[str, Sequence[Any]]) -> Grade:
    """Check that the values of a JSON object are among the right ones."""
    found = _json(outputs / file)
    wrong = {key: found.get(key) for key, right in expects.items() if _plain(found.get(key)) not in map(_plain, right)}
    return not wrong, f"not right: {wrong}" if wrong else "all right"


def _plain(value: Any) -> Any:
    return value.strip().lower().replace("-", "_").replace(" ", "_") if isinstance(value, str) else value


def dated(outputs: Path, file: str, key: str, truth: str, days: int = 1) -> Grade:
    """Check that a date in a JSON object is within ``days`` of the truth."""
    value = str(_json(outputs / file).get(key))
    apart = abs((date.fromisoformat(value[:10]) - date.fromisoformat(truth)).days)
    return apart <= days, f"{value}, {apart} days from the truth"


def figures(outputs: Path, file: str, student: str, tolerance: float = 0.01) -> Grade:
    """Compare both KLs of a JSON object with a new measurement on the same text."""
    command = [sys.executable, str(HERE / "measure.py"), str(outputs.parent), str(outputs.parent / student), "figures"]
    done = _run(command, outputs)
    if done.returncode:
        return False, done.stderr[-600:]
    truth, found = json.loads(done.stdout), _json(outputs / file)
    apart = {name: abs(float(found[name]) / value - 1) for name, value in truth.items()}
    return max(apart.values()) <= tolerance, f"truth {truth}, said { {name: found[name] for name in truth} }"


def latency(outputs: Path, file: str) -> Grade:
    """Check that a latency names its device and its number of runs, or is null with a reason."""
    found = _json(outputs / file).get("latency")
    if found is None:
        return False, "no key 'latency'"
    complete = {"hardware", "repeats", "p50_s"} <= found.keys()
    passed = complete and bool(found["hardware"]) and found["repeats"] >= 5 and found["p50_s"] > 0
    return passed, json.dumps(found)


GRADERS: dict[str, Callable[..., Grade]] = {
    each.__name__: each
    for each in (loss_proved, loss_numbers, spec, script, student, hand_written, answer, dated, figures, latency)
}
