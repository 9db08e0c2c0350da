"""A limit on the whole time of a request. httpx limits only the wait for each next byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self

CONNECTED = ("connect_tcp.complete", "start_tls.complete")
"""Ends of the names of httpcore's trace events that bring a new connection."""


class Deadline:
    """Shuts the connection of a request down when its time is over. The request then fails at once.

    Pass ``trace`` as the ``trace`` extension of an httpx request that opens its own connection.
    """

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._socket: socket.socket | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._socket = None  # a later request may get the same descriptor

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Take note of the connection that the request opened."""
        if event.endswith(CONNECTED):
            with self._lock:
                self._socket = info["return_value"].get_extra_info("socket")
                if self.passed:
                    self._shut_down()

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)
