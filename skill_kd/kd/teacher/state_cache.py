"""A cache of the frozen teacher's hidden states, so that the teacher reads each response once.

Final hidden states and the LM head give the exact distribution over the whole vocabulary. They take far less space than
the logits: about 1/40 for SmolLM2-135M, and 1/170 for Qwen2.5-0.5B.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..dataset.batch import Row, collate
from ..files import refuse_unsafe, replacing
from ..losses.projection import HiddenStates
from .teacher import Teacher


class TeacherStateCache:
    """One file per response, memory-mapped when read. At its quota the cache stops growing; ``clear`` deletes it."""

    def __init__(self, folder: Path, model: nn.Module, quota_gb: float) -> None:
        """Open the cache in ``folder``. This process may write ``quota_gb`` gigabytes. Raises as ``refuse_unsafe``."""
        self.folder = folder / _identity(model)
        refuse_unsafe(folder, self.folder)
        self.quota = int(quota_gb * 1e9)
        self.size = sum(file.stat().st_size for file in self.folder.glob("*.safetensors"))

    def get(self, row: Row) -> Tensor | None:
        """Return the states [T, H] of the row's response, or None if they are not in the cache."""
        path = self._path(row)
        try:
            return load_file(path)["states"] if path.is_file() else None
        except (SafetensorError, KeyError):
            path.unlink(missing_ok=True)
            return None

    def put(self, row: Row, states_TH: Tensor) -> None:
        """Keep the states [T, H] of a response if the quota allows it."""
        if self.size + states_TH.nbytes > self.quota:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(row)
        with replacing(path) as draft:
            save_file({"states": states_TH.contiguous().cpu()}, draft)
        self.size += states_TH.nbytes

    def clear(self) -> None:
        """Delete every file."""
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def _path(self, row: Row) -> Path:
        """Return the file of a row. Its token ids already depend on tokenizer, chat template and text."""
        key = hashlib.blake2b(repr((row.prompt, row.response)).encode(), digest_size=16)
        return self.folder / f"{key.hexdigest()}.safetensors"


def _identity(model: nn.Module) -> str:
    """Return a name of the weights, from their source, their commit or files, and their dtypes."""
    # A wrapper of a model has no configuration of its own.
    config = next((module.config for module in model.modules() if hasattr(module, "config")), None)
    source = Path(str(getattr(config, "_name_or_path", "")))
    files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(source.glob("*.safetensors"))]
    held = sorted({str(weight.dtype) for weight in model.parameters()})
    facts = (str(source), getattr(config, "_commit_hash", None), files, held)
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class TeacherStateFiller:
    """Adds the teacher's hidden states to rows before the first step that needs them."""

    teacher: Teacher
    pad: int
    device: torch.device
    rows_at_once: int
    cache: TeacherStateCache | None

    @torch.no_grad()
    def __call__(self, rows: Sequence[Row], *, lasting: bool) -> list[Row]:
        """Return the rows with the teacher's states. ``lasting`` reads known states from the cache, and adds new ones.

        If the teacher has no states, the rows come back unchanged.
        """
        if self.teacher.head is None:
            return list(rows)
        cache = self.cache if lasting else None
        known = [row if cache is None else replace(row, teacher_states=cache.get(row)) for row in rows]
        missing = [index for index, row in enumerate(known) if row.teacher_states is None]
        for start in range(0, len(missing), self.rows_at_once):
            piece = missing[start : start + self.rows_at_once]
            for index, states_TH in zip(piece, self._states([known[index] for index in piece]), strict=True):
                known[index] = replace(known[index], teacher_states=states_TH)
                if cache is not None:
                    cache.put(known[index], states_TH)
        return known

    def forget(self) -> None:
        """Delete the cache on disk."""
        if self.cache is not None:
            self.cache.clear()

    def _states(self, rows: list[Row]) -> list[Tensor]:
        view = self.teacher.view(collate(rows, self.pad, self.device))
        assert isinstance(view, HiddenStates)
        return [states_TH[: len(row.response)].clone() for row, states_TH in zip(rows, view.hidden_BTH, strict=True)]
