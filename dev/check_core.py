"""Check the core where torch is not installed: import every module that needs none, run the verbs that train nothing.

python dev/check_core.py    in an environment that has skill-kd without extras, on any system

The commands run in a temporary folder. It exits with 1 if one of them fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from skill_kd.spec.file import load_spec

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import test_imports  # noqa: E402 -- it has the list of modules, and needs the standard library only

LAYERS = {"teacher": 4, "student": 2}
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
SPEC = "name: core\nteacher: {model: teacher}\nstudent: {model: student}\ndata: {train: prompts.jsonl}\n"


def modules() -> list[str]:
    """Return the dotted names of all modules that are imported without torch."""
    light = [path for path in test_imports.LIGHT if test_imports.part(path) != "__main__"]
    names = [".".join(test_imports.dotted(path)).removesuffix(".__init__") for path in light]
    return [*names, *(f"skill_kd.kd.{name}" for name in test_imports.NO_TORCH)]


def fill(folder: Path) -> None:
    """Write a spec and the two model configurations that ``plan`` reads."""
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    for name, layers in LAYERS.items():
        (folder / name).mkdir()
        config = json.dumps({**MODEL, "num_hidden_layers": layers})
        (folder / name / "config.json").write_text(config, encoding="utf-8")


def commands() -> list[list[str]]:
    """Return the command lines; each must end with exit code 0."""
    examples = sorted((ROOT / "examples").glob("*.yaml"))
    built_in = [path for path in examples if load_spec(path).backend == "transformers"]
    return [
        ["--help"],
        ["schema"],
        ["backends"],
        *(["validate", str(path)] for path in examples),
        *(["generate", str(path), "-o", path.stem] for path in built_in),
        *(["generate", str(path), "-o", path.stem, "--check"] for path in built_in),
        ["plan", "spec.yaml", "--device", "H100"],
        ["diagnose", str(ROOT / "tests" / "data" / "logs" / "openai_proxy.jsonl"), "-o", "diagnosis"],
    ]


def main() -> int:
    """Import, run, print each command that fails, and return the exit code."""
    if find_spec("torch") is not None:
        print("note: torch is installed here, so this does not show that the core works without it")
    names, failed = modules(), 0
    for name in names:
        import_module(name)
    print(f"imported {len(names)} modules")
    with tempfile.TemporaryDirectory() as temporary:
        fill(Path(temporary))
        for words in commands():
            command = [sys.executable, "-m", "skill_kd", *words]
            done = subprocess.run(
                command, cwd=temporary, capture_output=True, encoding="utf-8", errors="replace", check=False
            )
            print(f"exit {done.returncode}  skill-kd {' '.join(words)}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stdout[-2000:], done.stderr[-2000:], sep="\n")
    print(f"core: {failed} commands failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
