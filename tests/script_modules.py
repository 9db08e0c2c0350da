"""Import a script of the repository, which no package contains."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load_script(path: str, name: str | None = None) -> ModuleType:
    """Return the script at ``path``, relative to the root, as a module; ``name`` is its stem by default."""
    name = name or Path(path).stem
    source = importlib.util.spec_from_file_location(name, ROOT / path)
    assert source is not None
    assert source.loader is not None
    module = importlib.util.module_from_spec(source)
    sys.modules[name] = module  # dataclasses look their module up there
    source.loader.exec_module(module)
    return module
