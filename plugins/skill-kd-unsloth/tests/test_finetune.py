"""The fine-tuning script of the handoff sets everything that importing Unsloth would change."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import fields
from pathlib import Path

from specs import REPOSITORY, needs_unsloth

pytestmark = needs_unsloth

NEVER_READ = {"per_device_eval_batch_size", "eval_accumulation_steps"}
"""Nothing is evaluated."""


def changed_by_unsloth() -> set[str]:
    """Return the arguments whose defaults the installed version replaces where it rewrites a trainer (on a GPU)."""
    spec = importlib.util.find_spec("unsloth")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "models" / "rl.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "grpo_trainer" in ast.unparse(node.test):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id="replacements")], value=ast.Dict(keys=keys)):
                names |= {key.value for key in keys if isinstance(key, ast.Constant)}
            case ast.Assign(targets=[ast.Subscript(value=ast.Name(id="replacements"), slice=ast.Constant(value=name))]):
                names.add(name)
    return names


def told_by_the_script() -> set[str]:
    tree = ast.parse((REPOSITORY / "templates" / "unsloth_finetune.py").read_text(encoding="utf-8"))
    (call,) = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "SFTConfig"
    ]
    return {keyword.arg for keyword in call.keywords if keyword.arg}


def test_every_default_that_unsloth_changes_is_set() -> None:
    from trl import SFTConfig

    changed = changed_by_unsloth() & {field.name for field in fields(SFTConfig)}
    assert {"learning_rate", "optim", "seed", "warmup_steps", "loss_type", "weight_decay"} <= changed
    assert changed - told_by_the_script() == NEVER_READ


def test_other_settings_that_change_training_are_set() -> None:
    decisive = """max_length packing num_train_epochs max_steps lr_scheduler_type adam_beta1 adam_beta2 adam_epsilon
        max_grad_norm gradient_checkpointing data_seed eval_strategy save_strategy"""
    assert set(decisive.split()) <= told_by_the_script()
