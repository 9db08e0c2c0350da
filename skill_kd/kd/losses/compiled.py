"""torch.compile with a fallback: if compiling fails, the plain function runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch


class _Fused:
    """A function run through torch.compile, or run plainly after that has failed once."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain
        self.fast: Callable[..., Any] | None = torch.compile(plain, dynamic=True)

    def __call__(self, *args: Any) -> Any:
        if self.fast is not None:
            try:
                return self.fast(*args)
            except Exception as error:  # Compilers fail in many ways, and the plain function always works.
                self.fast = None
                reason = " ".join(str(error).split())[:200]
                warnings.warn(f"torch.compile fails here, so the loss is not compiled: {reason}", stacklevel=2)
        return self.plain(*args)


@lru_cache
def fused(plain: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``plain`` run through torch.compile, for tensors of any size; a failure gives one warning.

    ``plain`` must write to its arguments only at its end: after a failure it is called again with the same arguments.
    """
    return _Fused(plain)
