"""Load a user's loss by ``module:function`` or ``path/to/file.py:function``. The import runs the user's code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from skill_kd.errors import UsageError

if TYPE_CHECKING:
    from skill_kd.prove.enumeration import Loss


def load_loss(name: str) -> Loss:
    """Import and return the function ``name``. It can import modules from the folder of its file.

    Raises:
        UsageError: the name has a different form, or the module or the function cannot be loaded.
    """
    source, colon, function = name.rpartition(":")
    if not (colon and source and function.isidentifier()):
        raise UsageError(f"{name!r} is not the name of a loss; write module:function or path/to/file.py:function")
    found = getattr(_module(source), function, None)
    if not callable(found):
        problem = f"has no function {function!r}" if found is None else f"has {function!r}, which is not a function"
        raise UsageError(f"{source} {problem}; name a function that takes log-probabilities and returns a loss")
    loss: Loss = found
    return loss


def _module(source: str) -> ModuleType:
    is_file = source.endswith(".py")
    folder = str(Path(source).resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return _module_of_file(Path(source)) if is_file else importlib.import_module(source)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        words = " ".join(str(error).split())
        raise UsageError(f"{source} cannot be imported: {type(error).__name__}: {words}") from error


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError("there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look up their own module
    spec.loader.exec_module(module)
    return module
