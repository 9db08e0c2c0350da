"""The one hook of skill-kd."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from skill_kd.backend import Backend

hookspec = pluggy.HookspecMarker("skill_kd")
hookimpl = pluggy.HookimplMarker("skill_kd")


@hookspec
def register_backends(register: Callable[[type[Backend]], None]) -> None:
    """Call ``register(YourBackend)`` once for each backend class of the plugin."""
