"""The checks of a student's folder that do not load the model: it is complete, and its files are consistent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from skill_kd.errors import UsageError
from skill_kd.files import as_usage_error, open_input, read_object
from skill_kd.jobs.student import BrokenStudent, header
from skill_kd.kd.model.safe_files import CODE, CONFIG, code_references

NEEDED = (CONFIG, "generation_config.json", "tokenizer.json", "tokenizer_config.json")
FOREIGN = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py")
"""File name endings that can run code when loaded."""
WEIGHTS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Check(TypedDict):
    """One finding. ``passed`` is None if there was nothing to compare with."""

    name: str
    passed: bool | None
    detail: str


def standalone(folder: Path) -> list[Check]:
    """Return the findings on a folder's files.

    Raises:
        UsageError: the folder does not exist, or has no readable config.
    """
    if not folder.is_dir():
        raise UsageError(f"'{folder}' is missing; the run exported no student, so start it again with another name")
    names = sorted(path.name for path in folder.iterdir())
    missing = [name for name in NEEDED if name not in names]
    foreign = [name for name in names if name.endswith(FOREIGN) or name == "adapter_config.json"]
    linked = [name for name in names if (folder / name).is_symlink()]
    config = read_json(folder / CONFIG)
    odd = [f"quantization_config in {CONFIG}"] if "quantization_config" in config else []
    for name in names:
        # llama.cpp's converter runs the code that such a file names, also a tokenizer's.
        if name.endswith(CONFIG) and code_references(read_json(folder / name)):
            odd.append(f"{CODE} in {name}")
    stated, found = str(config.get("dtype") or config.get("torch_dtype")), weight_dtypes(folder)
    of_weights = ", ".join(sorted(found)) or "gone"
    return [
        _check("files", not missing, f"missing: {', '.join(missing)}" if missing else ", ".join(NEEDED)),
        _check("safetensors only", bool(found) and not foreign, ", ".join(foreign) or f"{len(found)} dtype"),
        _check("standalone", not linked and not odd, ", ".join([*linked, *odd]) or "no link, no code, no adapter"),
        _check("dtype", found == {stated}, f"config.json says {stated}, weights are {of_weights}"),
    ]


def failures(checks: Iterable[Check]) -> list[str]:
    """Return one line for each check that failed."""
    return [f"{each['name']}: {each['detail']}" for each in checks if each["passed"] is False]


def _check(name: str, passed: bool, detail: str) -> Check:
    return {"name": name, "passed": passed, "detail": detail}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UsageError: the file cannot be read, or is not a JSON object.
    """
    with as_usage_error():
        return read_object(path)


def weight_dtypes(folder: Path) -> set[str]:
    """Return the dtypes of all weights, from the headers of the safetensors files.

    Raises:
        UsageError: a file is not complete.
    """
    try:
        headers = [header(path) for path in folder.glob("*.safetensors")]
    except BrokenStudent as error:
        raise UsageError(str(error)) from error
    return {WEIGHTS.get(tensor.dtype, tensor.dtype) for each in headers for tensor in each.values()}


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open_input(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
