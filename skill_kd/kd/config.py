"""The configuration of a trainer script: the spec's values as one frozen, readable literal."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn


class Config(SimpleNamespace):
    """Named values that cannot change: ``Config(name="demo", teacher=Config(model="…"))``."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"the configuration is frozen; edit '{name}' where it is written")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"the configuration is frozen; '{name}' stays")

    @classmethod
    def read(cls, path: str | Path) -> Config:
        """Read a resolved spec from JSON."""
        config = cls.of(json.loads(Path(path).read_text(encoding="utf-8")))
        if not isinstance(config, cls):
            raise ValueError(f"'{path}' holds no JSON object")
        return config

    @classmethod
    def of(cls, value: Any) -> Any:
        """Turn nested dicts and lists into nested ``Config`` objects and tuples."""
        if isinstance(value, dict):
            return cls(**{key: cls.of(item) for key, item in value.items()})
        if isinstance(value, list | tuple):
            return tuple(cls.of(item) for item in value)
        return value


def output_folder(script: str, arguments: list[str]) -> Path:
    """Return where a run writes: beside its script, or beside the JSON that an unfilled template was given."""
    given = arguments[1] if len(arguments) > 1 and arguments[1].endswith(".json") else script
    return Path(given).resolve().parent
