"""Tiny models, made once, and the key that only tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import state_home  # noqa: F401 -- a fixture
from tiny import make_model

# How a sum is split over threads changes its last bits, and losses are compared to 1e-5.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of one tokenizer, and a teacher of another one."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", layers=3, seed=0)
    make_model(folder / "student", layers=2, seed=1)
    make_model(folder / "stranger", layers=1, seed=0, special=("<|im_end|>", "<|im_start|>", "<|endoftext|>"))
    return folder
