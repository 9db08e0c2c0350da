"""A teacher in shards, read by two processes that need it unequally often."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_distributed import ENVIRONMENT
from tiny import make_model

pytestmark = pytest.mark.script

SCRIPT = """
import sys

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from skill_kd.runtime.config import Config
from skill_kd.runtime.loading import load_teacher
from skill_kd.runtime.sharding import InStep

accelerator = Accelerator(cpu=True)
members = tuple(Config(model=name, weight=1.0, revision=None) for name in sys.argv[1:])
source = Config(model=members, dtype="float32", quantization=None, revision=None)
whole = load_teacher(source).model
empty = load_teacher(source, weights=accelerator.is_main_process).model
assert accelerator.is_main_process or all(weight.is_meta for weight in empty.parameters())
split = InStep(empty, accelerator)
assert not split.training

for name, weight in split.model.named_parameters():
    in_block = ".layers." in name or ".h." in name
    full = whole.get_parameter(name)
    assert isinstance(weight, DTensor) == in_block, name
    local = weight.to_local() if in_block else weight
    assert local.numel() == (full.numel() // 2 if in_block else full.numel()), name

with torch.no_grad():
    rank, passes = accelerator.process_index, (3, 1)[accelerator.process_index]
    with split.together():
        for number in range(passes):
            with split.together():
                ids = torch.arange(5 + number + rank)[None]
                torch.testing.assert_close(split(input_ids=ids).logits, whole(input_ids=ids).logits)
    with split.together():
        pass
    try:
        split(input_ids=ids)
    except AssertionError as error:
        assert "together" in str(error)
    else:
        raise SystemExit("a pass that nobody joins was begun")
sys.stdout.write(f"{rank} made {passes}\\n")
"""


@pytest.mark.parametrize("kinds", [("llama",), ("gpt2",), ("llama", "qwen2")], ids="+".join)
def test_processes_read_in_step(kinds: tuple[str, ...], tmp_path: Path) -> None:
    models = [make_model(tmp_path / kind, kind, layers=2, seed=seed) for seed, kind in enumerate(kinds)]
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), *map(str, models)],
        env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(done.stdout.splitlines()) == ["0 made 3", "1 made 1"]
