"""Files and models that a run's spec names, looked for on this machine: a run folder may come from another one."""

from __future__ import annotations

from pathlib import Path


def located(name: str, home: Path) -> Path | None:
    """Return the file ``name`` from the folder in which the run was started, or from this one; None if it is gone."""
    return next((place for place in (home / name, Path(name)) if place.is_file()), None)


def names_a_file(name: str) -> bool:
    """Return True for a path of a file, and False for the id of a data set on the hub."""
    return name.startswith(("/", ".", "~")) or Path(name).suffix[1:].isalpha()


def is_absent_folder(model: str) -> bool:
    """Return True if ``model`` is a path, not the id of a model on the hub, and nothing is there."""
    return model.startswith(("/", ".", "~")) and not Path(model).expanduser().exists()
