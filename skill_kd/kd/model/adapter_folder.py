"""PEFT adapters in place of a model: a folder with only the weights that were trained on top of a base model.

This module imports no torch, so that checks stay quick.
"""

from __future__ import annotations

import reprlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadInput, Missing
from ..files import read_object

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE = "base_model_name_or_path"
MOST_ADAPTERS = 8
"""A chain of this many adapters is refused. Adapters that name each other form an endless chain."""


@dataclass(frozen=True)
class Adapter:
    """An adapter and the model that it was trained on."""

    place: str
    """Its folder or hub id."""
    base: str
    """Folder or hub id of its base model."""
    revision: str | None = None
    """Commit, tag or branch of the base model on the hub."""

    def check_depth(self, depth: int) -> int:
        """Return one more than ``depth``, the number of adapters on top of this one.

        Raises:
            BadInput: there are too many.
        """
        if depth + 1 >= MOST_ADAPTERS:
            raise BadInput(
                f"'{self.place}' is one of {MOST_ADAPTERS} adapters that name each other as their base model; name a "
                f"whole model as {BASE} in its {CONFIG}"
            )
        return depth + 1

    @property
    def on_itself(self) -> bool:
        """Return True if the base model is in the same folder."""
        return "\0" not in self.base and Path(self.base).resolve() == Path(self.place).resolve()


def adapter_in(folder: Path) -> Adapter | None:
    """Return the adapter in ``folder``. None if there is none, or if it is left over next to merged weights.

    Raises:
        BadInput: the adapter cannot be merged into a base model.
        Missing: the adapter has no weights, or they are a pickle.
    """
    if not (folder / CONFIG).is_file():
        return None
    values, whole = read_object(folder / CONFIG), _has_whole_model(folder)
    if whole and not Adapter(str(folder), str(values.get(BASE) or "?")).on_itself:
        return None
    adapter = adapter_of(values, str(folder))
    if adapter.on_itself and not whole:
        raise BadInput(f"'{folder}' is an adapter that names itself as its base model; name the base in its {CONFIG}")
    if (folder / WEIGHTS).is_file():
        return adapter
    if whole and not (folder / PICKLE).is_file():
        return None
    raise no_weights(folder)


def no_weights(folder: Path) -> Missing:
    """Return the error for an adapter without safetensors."""
    if (folder / PICKLE).is_file():
        return Missing(f"cannot load '{folder}': {PICKLE} is a pickle; save the adapter as {WEIGHTS}")
    return Missing(f"cannot load '{folder}': it has {CONFIG}, but neither {WEIGHTS} nor a whole model")


@contextmanager
def without_adapter(place: str) -> Iterator[str]:
    """Yield ``place``. If it is a folder with an adapter, yield a view of it that has all other files.

    transformers would put the adapter on the model, or fail if only its config was left behind.
    """
    folder = Path(place)
    if not (folder / CONFIG).is_file():
        yield place
        return
    with tempfile.TemporaryDirectory() as view:
        for file in folder.resolve().iterdir():
            if file.is_file() and file.name not in {CONFIG, WEIGHTS, PICKLE}:
                try:
                    Path(view, file.name).symlink_to(file)
                except OSError:  # Windows allows links only to some users.
                    shutil.copyfile(file, Path(view, file.name))
        yield view


def adapter_of(values: Mapping[str, object], place: str) -> Adapter:
    """Return the adapter that an adapter_config.json describes.

    Raises:
        BadInput: it names no base model, or is of a kind that cannot be merged into one.
    """
    base, kind, revision = (values.get(key) for key in (BASE, "peft_type", "revision"))
    if not (isinstance(base, str) and base and "\0" not in base):
        raise BadInput(f"'{place}' is an adapter whose {CONFIG} names no base model; {MERGE}")
    if kind != "LORA":
        shown = reprlib.repr(kind)
        raise BadInput(f"'{place}' is an adapter of peft_type {shown}, and only LORA can be merged here; {MERGE}")
    if revision is not None and not isinstance(revision, str):
        raise BadInput(f"'{place}': revision in {CONFIG} is {reprlib.repr(revision)}, not a text; {MERGE}")
    return Adapter(place, base, revision)


MERGE = "merge it into its base yourself (peft's merge_and_unload), save the result, and give that folder"


def _has_whole_model(folder: Path) -> bool:
    patterns = ("model*.safetensors", "pytorch_model*.bin")
    return (folder / "config.json").is_file() and any(any(folder.glob(pattern)) for pattern in patterns)
