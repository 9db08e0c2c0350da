"""The files of the fine-tuning step: script, notebook, Unsloth's YAML, Ollama's Modelfile."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from skill_kd.handoff import gguf
from skill_kd.render import MARKER, Value, fill_standalone, literal, templates_folder
from skill_kd.spec import Spec

TEMPLATE = "unsloth_finetune.py"
SCRIPT, NOTEBOOK, CONFIG, MODELFILE, DATA = "finetune.py", "finetune.ipynb", "unsloth.yaml", "Modelfile", "data.jsonl"
OUT, MERGED, FINETUNED = "out", "merged", "finetuned"
"""The folder where the script saves, the 16-bit folder in it, and the stem of its GGUF files."""
BATCH, ACCUMULATE = 2, 4
RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
"""Learning rates by method. The rate of adapters is ten times the rate of full training."""
WARMUP = 5
"""Warm-up steps of the learning rate, as in Unsloth's examples. Below 50 steps it is a tenth of them."""

SETUP = (
    "pip install unsloth==2026.10.9",
    'pip install trl==1.16.0 transformers==5.23.0 "datasets>=4.7,<5" "peft>=0.18" accelerate',
)
"""Set-up with which the script was tested on a GPU."""
SETUP_CPU = (
    "pip install torch==2.13.0",
    "pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9",
    SETUP[1],
)
"""The same without a GPU. A plain install would choose an Unsloth that needs one."""


@dataclass(frozen=True)
class FinetuneTask:
    """The facts about one fine-tune, from the spec, the student and the data."""

    spec: Spec
    parts: dict[str, str] | None
    """Parts of the chat template for Ollama, from the probe; None if it is not a plain sequence of turns."""
    longest: int
    """Number of tokens of the longest row."""
    rows: int
    max_steps: int = -1
    targets: tuple[str, ...] = ()
    """Names of the layers that adapters are attached to; empty for those of the template."""

    @property
    def max_tokens(self) -> int:
        """The length limit of rows in tokens. No row is longer."""
        return 64 * math.ceil(max(self.longest, 1) / 64)

    @property
    def steps(self) -> int | None:
        """Number of optimizer steps, or None while there is no data."""
        if self.max_steps > 0:
            return self.max_steps
        assert self.spec.handoff is not None
        return math.ceil(self.spec.handoff.epochs * self.rows / (BATCH * ACCUMULATE)) or None

    def values(self) -> dict[str, Value]:
        """Return the values of the script's frozen config."""
        handoff = self.spec.handoff
        assert handoff is not None
        return {
            "student": "../student",
            "data": DATA,
            "method": handoff.method,
            "export": self._saved(handoff.export),
            "responses_only": handoff.responses_only,
            "template_options": [[name, value] for name, value in self.spec.data.chat_template_options.items()],
            "max_tokens": self.max_tokens,
            "epochs": handoff.epochs,
            "max_steps": self.max_steps,
            "batch_size": BATCH,
            "accumulate": ACCUMULATE,
            "learning_rate": RATES[handoff.method],
            "warmup": WARMUP if self.steps is None else min(WARMUP, self.steps // 10),
            **({"targets": self.targets} if self.targets else {}),
            "seed": self.spec.seed,
        }

    def _saved(self, exports: Sequence[str]) -> list[Value]:
        """Return what the script saves. llama.cpp's tools make GGUF files from the merged folder."""
        made_of = [MERGED] if gguf.among(exports) else []
        return list(dict.fromkeys([name for name in exports if not name.startswith(gguf.PREFIX)] + made_of))


def files(task: FinetuneTask) -> dict[str, str]:
    """Return the text of every file, by its name in the hand-off folder."""
    text = script(task)
    written = {SCRIPT: text, NOTEBOOK: notebook(text), CONFIG: cli_config(task)}
    handoff = task.spec.handoff
    return written | ({MODELFILE: modelfile(task)} if handoff is not None and handoff.ollama else {})


def script(task: FinetuneTask) -> str:
    """Return the template with this task's values, as literals, at its one marked line."""
    template = (templates_folder() / TEMPLATE).read_text(encoding="utf-8")
    values = "\n".join(f"    {name}={literal(value)}," for name, value in task.values().items())
    return fill_standalone(template, f"CONFIG = Config(  {MARKER}\n{values}\n)", TEMPLATE)


def cli_config(task: FinetuneTask) -> str:
    """Return the configuration of ``unsloth train``. It sets every key, since Unsloth has its own defaults."""
    values, handoff = task.values(), task.spec.handoff
    assert handoff is not None
    whole = handoff.epochs == int(handoff.epochs)
    training: dict[str, Any] = {
        "training_type": "full" if handoff.method == "full" else "lora",
        "max_seq_length": task.max_tokens,
        "load_in_4bit": handoff.method == "qlora",
        "output_dir": "./out-cli",
        # Unsloth counts only whole epochs.
        "num_epochs": int(handoff.epochs) if whole else 1,
        "max_steps": task.max_steps if task.max_steps > 0 else 0 if whole else task.steps or 1,
        "learning_rate": values["learning_rate"],
        "batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "warmup_steps": values["warmup"],
        "weight_decay": 0.01,
        "random_seed": task.spec.seed,
        "packing": False,
        "train_on_completions": handoff.responses_only,
    }
    config: dict[str, Any] = {
        "model": "../student",
        "data": {"local_dataset": [f"./{DATA}"], "format_type": "auto"},
        "training": training,
    }
    if handoff.method != "full":
        targets = {"target_modules": ",".join(task.targets)} if task.targets else {}
        config["lora"] = {"lora_r": 16, "lora_alpha": 16, "lora_dropout": 0.0, **targets}
    return f"# In this folder: unsloth train -c {CONFIG}\n" + yaml.safe_dump(config, sort_keys=False)


def notebook(text: str) -> str:
    """Return an .ipynb that writes the script to a file and runs it, because the script needs its own path."""
    head = "# Fine-tune the distilled student with Unsloth\n\nPut `student/` and this folder next to each other."
    try_it = 'from transformers import pipeline\n\nanswer = pipeline("text-generation", "out/merged")\n'
    cells = [
        ("markdown", head),
        ("code", "\n".join(f"%{line} --quiet" for line in SETUP)),
        ("code", f"%%writefile {SCRIPT}\n{text}"),
        ("code", f'import sys\n\n!"{{sys.executable}}" {SCRIPT}'),
        ("code", try_it + 'answer([{"role": "user", "content": "Hello"}])'),
    ]
    document = {
        "cells": [_cell(number, *cell) for number, cell in enumerate(cells)],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(document, indent=1) + "\n"


def _cell(number: int, kind: str, source: str) -> dict[str, Any]:
    outputs: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    lines = source.splitlines(keepends=True)
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": lines, **outputs}


# --- Ollama -----------------------------------------------------------------------------------------------------------

_OPENING = '{{ if ne (index .Messages 0).Role "system" }}%s{{ end }}'
_TURN = '{{ if eq .Role "%s" }}%s{{ .Content }}%s{{ end }}'


def modelfile(task: FinetuneTask) -> str:
    """Return a Modelfile for the first GGUF file of the fine-tuned model.

    If the chat template is a plain sequence of turns, the Modelfile has it. Otherwise, or if Ollama cannot read its
    text in a Modelfile, Ollama uses the GGUF file's own.
    """
    assert task.spec.handoff is not None
    file = gguf.file_name(FINETUNED, gguf.among(task.spec.handoff.export)[0])
    lines = [
        "# In this folder: ollama create NAME -f Modelfile",
        f"# skill-kd handoff --execute makes the file, or llama.cpp's tools make it from {OUT}/{MERGED}.",
        f"FROM ./{OUT}/{file}",
    ]
    parts = task.parts or {}
    if "before_system" in parts and not any(map(_reads_as_action, parts.values())):
        turns = (
            _TURN % ("system", parts["before_system"], parts["after_system"]),
            _TURN % ("user", parts["instruction_part"], parts["after_user"]),
            _TURN % ("assistant", parts["response_part"], parts["after_assistant"]),
        )
        opening = _OPENING % parts["opening"] if parts["opening"] else ""
        body = f"{opening}{{{{ range .Messages }}}}{''.join(turns)}{{{{ end }}}}{parts['response_part']}"
        if (quoted := _quoted(body)) is not None:
            lines.append(f"TEMPLATE {quoted}")
    if "note" in parts:
        lines.append(f"# {' '.join(parts['note'].split())}")
    stop = parts.get("after_assistant", "").strip()
    if stop and (quoted := _quoted(stop)) is not None:
        lines.append(f"PARAMETER stop {quoted}")
    return "\n".join([*lines, ""])


def _reads_as_action(text: str) -> bool:
    """Return True if Ollama would read braces of the text as its own template language."""
    return "{{" in text or text.endswith("{")


def _quoted(text: str) -> str | None:
    """Return a value for a Modelfile, or None if Ollama cannot read it back.

    Ollama has no escapes. It ends the value at the next quotes of the same kind, and drops characters that cannot be
    printed.
    """
    quotes = '"""' if any(each in text for each in '"\n') else '"'
    kept = all(each.isprintable() or each in "\n\t" for each in text)
    return f"{quotes}{text}{quotes}" if kept and '"""' not in text else None
