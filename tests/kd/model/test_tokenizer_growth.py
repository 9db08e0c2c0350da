"""A tokenizer.json that makes gigabytes of a word is refused before it is loaded; those of real families are taken."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hub import edit
from tiny import make_model, make_tokenizer
from tokenizers import normalizers
from transformers import AutoTokenizer

from skill_kd.handoff.probe import model_folder
from skill_kd.kd.config import Teacher
from skill_kd.kd.errors import BadInput
from skill_kd.kd.model.loading import load_tokenizer
from skill_kd.kd.model.tokenizer_growth import growth, refuse_growing

Step = dict[str, Any]


def replace(old: str, new: str, kind: str = "String") -> Step:
    return {"type": "Replace", "pattern": {kind: old}, "content": new}


def row(name: str, *steps: Step) -> Step:
    return {"type": "Sequence", name: list(steps)}


def template(*pieces: str, ids: int = 1) -> Step:
    form = [{"Sequence": {"id": each, "type_id": 0}} for each in pieces]
    special = {"S": {"id": "S", "ids": [0] * ids, "tokens": ["S"] * ids}}
    return {"type": "TemplateProcessing", "single": form, "pair": form, "special_tokens": special}


def precompiled(longest: str) -> Step:
    table = (8).to_bytes(4, "little") + bytes(8) + f"a\0{longest}\0b\0".encode()
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DOUBLE = replace("x", "xx")
BOMBS: dict[str, tuple[str, Step]] = {
    "doubling": ("normalizer", row("normalizers", *[DOUBLE] * 24)),
    "nested": ("normalizer", row("normalizers", *[row("normalizers", *[DOUBLE] * 6)] * 4)),
    "one long text": ("normalizer", replace("x", "y" * 2000)),
    "a pattern": ("normalizer", replace("", "y" * 2000, "Regex")),
    "a prefix": ("normalizer", {"type": "Prepend", "prepend": "y" * 2000}),
    "a table": ("normalizer", precompiled("y" * 2000)),
    "tables": ("normalizer", row("normalizers", *[precompiled("y" * 30)] * 2)),
    "forms": ("normalizer", row("normalizers", *[{"type": "NFKD"}, replace("x", "y")] * 3)),
    "bytes": ("pre_tokenizer", row("pretokenizers", *[BYTES] * 24)),
    "the text many times": ("post_processor", row("processors", *[template("A", "A")] * 24)),
    "many ids": ("post_processor", template("A", ids=100_000)),
    "decoding": ("decoder", row("decoders", *[DOUBLE] * 24)),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("made") / "model")


@pytest.fixture
def folder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the files of a tokenizer, which must not be loaded."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    return tmp_path


@pytest.mark.parametrize("name", BOMBS)
def test_steps_that_make_gigabytes_are_refused_before_they_are_loaded(name: str, folder: Path) -> None:
    part, step = BOMBS[name]
    edit(folder / "tokenizer.json", **{part: step})
    with pytest.raises(
        BadInput, match=rf"tokenizer.json of '.*{part}.* can turn one byte into [\d,]+, and at most 500"
    ):
        load_tokenizer(Teacher(model="unused"), str(folder))
    with pytest.raises(BadInput, match="can turn"):
        model_folder.load_tokenizer(folder)


def test_steps_of_two_parts_multiply(folder: Path) -> None:
    edit(
        folder / "tokenizer.json",
        normalizer=row("normalizers", *[DOUBLE] * 5),
        pre_tokenizer=row("pretokenizers", *[BYTES] * 5),
    )
    with pytest.raises(BadInput, match=r"pre_tokenizer and post_processor can turn one byte into 1,0\d\d"):
        load_tokenizer(Teacher(model="unused"), str(folder))


@pytest.mark.parametrize("where", ["vocab", "added_tokens", "end_of_word_suffix"])
def test_a_token_of_many_characters_is_refused(where: str, folder: Path) -> None:
    described, long = json.loads((folder / "tokenizer.json").read_text()), "y" * 20_000
    if where == "vocab":
        described["model"]["vocab"][long] = 299
    elif where == "added_tokens":
        described["added_tokens"][0]["content"] = long
    else:
        described["model"][where] = long
    (folder / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(BadInput, match="a text in it has 20,000 characters, and at most 10,000 are allowed; put"):
        load_tokenizer(Teacher(model="unused"), str(folder))


def test_a_file_that_the_settings_name_is_checked_too(folder: Path) -> None:
    described = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.5.0.json").write_text(json.dumps({**described, "normalizer": BOMBS["doubling"][1]}))
    edit(folder / "tokenizer_config.json", fast_tokenizer_files=["tokenizer.json", "tokenizer.5.0.json"])
    with pytest.raises(BadInput, match=r"tokenizer\.5\.0\.json of '"):
        load_tokenizer(Teacher(model="unused"), str(folder))


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_ids": 10**9},
        {"offset": 10**9},
        {"vocab_size": 10**9},
        {"added_tokens_decoder": {"0": {}, "9" * 5000: {}}},
    ],
    ids=["extra_ids", "offset", "vocab_size", "added_tokens_decoder"],
)
def test_settings_that_make_a_billion_tokens_are_refused(settings: dict[str, Any], folder: Path) -> None:
    edit(folder / "tokenizer_config.json", **settings)
    with pytest.raises(
        BadInput, match=r"tokenizer_config.json of '.*': .* asks for \d+ tokens, and at most 1,000,000 are"
    ):
        load_tokenizer(Teacher(model="unused"), str(folder))


def test_a_tokenizer_made_from_other_files_is_checked_when_it_is_loaded() -> None:
    tokenizer = make_tokenizer()
    refuse_growing(tokenizer, "theirs")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("x", "xx")] * 24)
    with pytest.raises(BadInput, match=r"the tokenizer of 'theirs': .* can turn one byte into 3\d,\d+,\d+"):
        refuse_growing(tokenizer, "theirs")


REAL: dict[str, tuple[Step, float]] = {
    "ALBERT": (
        row(
            "normalizers",
            *[replace("``", '"'), replace("''", '"'), {"type": "NFKD"}, {"type": "StripAccents"}],
            *[{"type": "Lowercase"}, precompiled("y" * 33), replace(" {2,}", " ", "Regex")],
        ),
        66,
    ),
    "Llama": (row("normalizers", {"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")), 12),
    "Gemma": (replace(" ", "▁"), 3),
    "Qwen": ({"type": "NFC"}, 3),
    "BERT": ({"type": "BertNormalizer"}, 4),
    "T5": (precompiled("y" * 33), 33),
    "GPT-2": (BYTES, 2),
}


@pytest.mark.parametrize("name", REAL)
def test_the_steps_of_real_families_make_little(name: str) -> None:
    step, most = REAL[name]
    assert growth(step) == most
