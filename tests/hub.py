"""The hub's cache in a folder of a test, and models that come with code of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from tiny import make_model
from transformers import dynamic_module_utils

COMMIT = "1" * 40


def use_cache(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Go offline, with the hub's cache in ``folder``, which ``repository`` fills."""
    patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))
    patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder / "modules"))


def repository(folder: Path, name: str) -> Path:
    """Return the empty snapshot of a repository at ``COMMIT``, which is also its main branch."""
    there = folder / "hub" / f"models--{name.replace('/', '--')}"
    (there / "refs").mkdir(parents=True)
    (there / "refs" / "main").write_text(COMMIT)
    snapshot = there / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write_code(folder: Path, ran: Path) -> None:
    """Write the classes of a model, as code that makes the folder ``ran``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "theirs.py").write_text(
        f"import os\nos.makedirs({str(ran)!r}, exist_ok=True)\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Config(LlamaConfig):\n    model_type = 'theirs'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "def generate(**_): ...\n"
    )


def model_with_code(folder: Path, ran: Path, place: str = "") -> Path:
    """Write a model whose classes are code, here or in ``place``, as ``owner/name--``."""
    make_model(folder)
    write_code(folder, ran)
    classes = {"AutoConfig": f"{place}theirs.Config", "AutoModelForCausalLM": f"{place}theirs.Model"}
    edit(folder / "config.json", model_type="theirs", auto_map=classes)
    return folder
