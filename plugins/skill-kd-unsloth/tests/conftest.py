"""Tiny models, made once, and the key that only tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import state_home  # noqa: F401 -- a fixture
from tiny import make_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student of one tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    make_model(folder / "teacher", layers=3, seed=0)
    make_model(folder / "student", layers=2, seed=1)
    return folder
