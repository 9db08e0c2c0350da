"""ZeRO on CPUs: the losses and weights of one process, a checkpoint and what it refuses.

DeepSpeed is installed by its lane of .ci/run alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from processes import ENVIRONMENT, KEPT, UPDATES, make_models, same_weights, start, train

pytestmark = [
    pytest.mark.script,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

TWO = {"strategy": "deepspeed", "processes": 2}
WITHOUT_COMPILER = """
import os

if "RANK" in os.environ:
    import deepspeed

    # It would be compiled first, for minutes, to exchange through shared memory; a GPU has no use for it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def on_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT_COMPILER)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setitem(ENVIRONMENT, "DS_ACCELERATOR", "cpu")


STAGES = [
    {"kind": "warm_start", "epochs": 0.3, "objective": {"kind": "forward_kl", "responses": "teacher"}},
    {"kind": "distill", "updates": UPDATES, "objective": {"kind": "minillm", "teacher_mix": 0.2}},
]
TRAINING = {"batch_size": 4, "accumulate": 2, "precision": "fp32", "learning_rate": 1e-3}


@pytest.mark.parametrize("changes", [{}, {"lora": {"r": 4, "alpha": 8}}], ids=["all weights", "adapters"])
@pytest.mark.parametrize("shard_teacher", [False, True])
def test_two_processes_train_to_the_weights_of_one(
    changes: dict[str, Any], shard_teacher: bool, models: Path, tmp_path: Path
) -> None:
    """Two stages, so that the moments begin anew, and two micro-batches a step."""
    student = {"model": str(models / "student"), "export_dtype": "float32", **changes}
    asked = {"stages": STAGES, "training": TRAINING, "student": student}
    losses = train(tmp_path / "alone", models, 1, **asked)
    launch = {**TWO, "shard_teacher": shard_teacher}
    assert train(tmp_path / "run", models, 2, launch=launch, **asked) == pytest.approx(losses, abs=1e-5)
    same_weights(tmp_path / "run", tmp_path / "alone")


def test_it_resumes_only_with_the_same_number_of_processes(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    losses = train(folder, models, 2, launch=TWO)
    (folder / "student").rename(tmp_path / "student")
    (last,) = (folder / "checkpoints").glob(f"*-{UPDATES:08d}")
    last.rename(tmp_path / "set aside")
    refused = start(folder, models, "--resume", launch={**TWO, "processes": 4})
    assert "has 2 parts, but this run has 4 processes" in refused.stderr
    assert train(folder, models, 2, "--resume", launch=TWO)[UPDATES:] == pytest.approx(losses[KEPT:], abs=1e-6)
    same_weights(folder, tmp_path)
