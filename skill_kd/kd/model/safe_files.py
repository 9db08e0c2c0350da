"""Refuses the files of a model that could run code: weights in other formats than safetensors, and unpinned code.

This module imports no torch, so that checks stay quick.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import BadInput, Missing
from ..files import read_object

CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CODE = "auto_map"
"""Key of a config that names a model's own classes, as ``module.Class`` or ``owner/name--module.Class``."""
KERNELS = ("attn_implementation", "experts_implementation")
"""Keys of a config that name a kernel. They may also begin with ``_``.

If the value is ``owner/name``, or a name such as ``flash_attention_2`` whose package is not installed, transformers
downloads code from the hub and imports it.
"""
BUILT_IN = ("eager", "sdpa", "flex_attention", "paged|eager", "grouped_mm", "batched_mm")
"""Kernels of torch and transformers."""

_SHARD, _NAMED = (re.compile(rf"[^/\\]+\.safetensors{end}") for end in ("", r"(\.index\.json)?"))
_ONLY = (
    "only safetensors are loaded, because other formats can run code; take a model that has them, or, if you trust "
    "this one's source, save it again with save_pretrained"
)


def local_code(place: str) -> str | None:
    """Return the reason why the code of the model ``place`` must not run, or None if ``place`` is a hub id."""
    if not os.path.lexists(place):
        return None
    return (
        f"trust_remote_code: true runs code of the hub only, and '{place}' is on this disk, where no revision pins the "
        "code; drop trust_remote_code, or name a model of the hub (if that is its name, rename the file or folder here)"
    )


def refuse_local_code(place: str, revision: str | None) -> None:
    """Refuse a model with ``trust_remote_code`` if code would come from this disk.

    transformers prefers a folder to a repository of the same name, also if a config takes code from there.

    Raises:
        BadInput: the model, or what its config takes code from, is on this disk.
    """
    if reason := local_code(place):
        raise BadInput(reason)
    for name in (CONFIG, TOKENIZER):
        for reference in code_references(_object(place, name, revision) or {}):
            repository, separator, _ = reference.partition("--")
            if separator and (reason := local_code(repository)):
                raise BadInput(f"{name} of '{place}' takes code from '{repository}': {reason}")


def code_references(config: dict[str, Any]) -> list[str]:
    """Return the classes of its own that a config names, at any depth."""
    return list(_texts_under(config, {CODE}))


def refuse_other_formats(place: str, name: str, revision: str | None) -> None:
    """Refuse a model whose weights are not safetensors in its own folder, or that asks for a kernel of the hub.

    transformers itself reads pickles, too, if an index or a config names them, whatever ``use_safetensors`` says.

    Args:
        place: folder or hub id.
        name: its name in the message.
        revision: commit, tag or branch of a hub id.

    Raises:
        Missing: the message names the file or the kernel.
        BadInput: the config or the index is not a JSON object.
    """
    config = _object(place, CONFIG, revision)
    if config is None:  # transformers reports the reason
        return
    for key in KERNELS:
        for kernel in _texts_under(config, {key, f"_{key}"}):
            if kernel not in BUILT_IN:
                raise Missing(
                    f"cannot load '{name}': {CONFIG} asks for the kernel '{kernel}', which may be code of the hub; "
                    f"remove {key} there, or set it to one of: {', '.join(BUILT_IN)}"
                )
    stated = config.get("transformers_weights")
    _refuse_names(name, CONFIG, [] if stated is None else [stated], _NAMED)
    files = (WEIGHTS, INDEX) if stated is None else (stated,)
    file = next((path for each in files if (path := cached(place, each, revision))), None)
    if file is None:
        where = "there" if os.path.isdir(place) else "on the hub, or offline in its cache"
        raise Missing(f"cannot load '{name}': no {' or '.join(files)} {where}; {_ONLY}")
    if file.endswith(".json"):
        shards = read_object(Path(file)).get("weight_map")
        _refuse_names(name, Path(file).name, shards.values() if isinstance(shards, dict) else [shards], _SHARD)


def _refuse_names(model: str, where: str, files: Iterable[object], allowed: re.Pattern[str]) -> None:
    for file in files:
        if not (isinstance(file, str) and allowed.fullmatch(file)):
            raise Missing(
                f"cannot load '{model}': {where} names {file!r}, which is not a safetensors file of its folder; {_ONLY}"
            )


def cached(place: str, name: str, revision: str | None) -> str | None:
    """Return the path of a model's file, downloaded if necessary. None if it does not exist, or the hub is away."""
    from transformers.utils.hub import cached_file

    try:
        found: str | None = cached_file(
            place,
            name,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # Loading the model fails for the same reason, and reports it.
        return None
    return found


def _object(place: str, name: str, revision: str | None) -> dict[str, Any] | None:
    path = cached(place, name, revision)
    return None if path is None else read_object(Path(path))


def _texts_under(value: object, keys: Collection[str], *, inside: bool = False) -> Iterator[str]:
    """Yield each text under one of ``keys``, at any depth. ``read_object`` limits the depth."""
    if isinstance(value, str) and inside:
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts_under(each, keys, inside=inside or key in keys)
    elif isinstance(value, list):
        for each in value:
            yield from _texts_under(each, keys, inside=inside)
