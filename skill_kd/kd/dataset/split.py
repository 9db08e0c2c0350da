"""The split of the data into training and held-out examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import Data
from ..errors import BadInput
from ..seeds import seeded
from .bad_rows import BadRows
from .reading import Example, read_source


@dataclass(frozen=True)
class Split:
    """Training examples and held-out examples."""

    train: list[Example]
    held_out: list[Example]
    bad_train: BadRows
    """The rows of ``data.train`` without an example."""
    bad_held_out: BadRows
    """The rows of the held-out file without an example. It is ``bad_train`` if the prompts come from ``data.train``."""


def load_split(data: Data, seed: int) -> Split:
    """Read the training data and the held-out prompts: a share of the data, or a file that is checked for overlap."""
    train, bad = read_source(data.train, data.split, data.max_bad_rows)
    if isinstance(data.held_out, str):
        held_out, bad_held_out = read_source(data.held_out, data.split, data.max_bad_rows)
        _refuse_overlap(train, held_out, data)
        return Split(train, held_out, bad, bad_held_out)
    by_key: dict[str, list[Example]] = {}
    for example in train:
        by_key.setdefault(example.key, []).append(example)
    groups = list(by_key.values())
    # Whole groups move, so a repeated prompt cannot be on both sides.
    order = torch.randperm(len(groups), generator=seeded(seed, "held_out")).tolist()
    count = max(1, round(data.held_out * len(groups)))
    if count >= len(groups):
        raise BadInput(
            f"data.held_out: {data.held_out} of {len(groups)} different prompts leaves none to train on; lower it"
        )
    chosen = set(order[:count])
    return Split(
        [example for index, group in enumerate(groups) if index not in chosen for example in group],
        [groups[index][0] for index in order[:count]],
        bad,
        bad,
    )


def _refuse_overlap(train: list[Example], held_out: list[Example], data: Data) -> None:
    known = {example.key for example in train}
    shared = sum(example.key in known for example in held_out)
    if shared > data.max_overlap * len(held_out):
        raise BadInput(
            f"{shared} of {len(held_out)} held-out prompts of '{data.held_out}' are also in '{data.train}', so the "
            "held-out measures would look too good; remove them, or allow a share with data.max_overlap"
        )
