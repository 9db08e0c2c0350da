"""An exported student is the same model in transformers 4, which many tools that take it on still use."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build_model, make_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from skill_kd.kd.model.export import export_student
from skill_kd.kd.model.packaged import cache_folder

pytestmark = pytest.mark.model

OLD = "4.57.1"
REQUIREMENTS = (f"transformers=={OLD}", "tokenizers==0.22.2", "huggingface_hub==0.36.2")
"""The rest of what it needs, torch above all, is that of this environment."""
UNREACHABLE = re.compile(r"Connection|timed out|Timeout|Name or service|Network is unreachable|ProxyError|SSLError")
TEXT = "the quick brown fox, 12 <tool> times"
CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "a dog"}]
ASK = """\
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

answers = {"version": transformers.__version__}
text, chat, folders = json.loads(sys.argv[1])
for folder in folders:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").train(False)
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].tolist()
        grown = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=5)[0].tolist()
    answers[folder] = {
        "ids": ids,
        "logits": logits,
        "grown": grown,
        "dtype": str(model.dtype),
        "pad": [tokenizer.pad_token_id, model.config.pad_token_id, model.generation_config.pad_token_id],
        "eos": [tokenizer.eos_token_id, model.generation_config.eos_token_id],
        "longest": tokenizer.model_max_length,
        "chat": tokenizer.chat_template and tokenizer.apply_chat_template(chat, tokenize=False),
    }
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def old_packages() -> Path:
    """The folder of the old release and of the two packages it needs in older versions, installed once."""
    folder = cache_folder() / f"transformers-{OLD}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            target = Path(scratch) / "packages"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target"]
            done = subprocess.run([*command, str(target), *REQUIREMENTS], capture_output=True, text=True, check=False)
            if done.returncode and (UNREACHABLE.search(done.stderr) or os.environ.get("PIP_NO_INDEX")):
                pytest.skip(f"the package index, for transformers {OLD}, cannot be reached")
            assert done.returncode == 0, done.stderr
            target.rename(folder)
    return folder


Student = tuple[PreTrainedModel, PreTrainedTokenizerFast, frozenset[int]]


def students() -> dict[str, Student]:
    chat = make_tokenizer()
    one_special = make_tokenizer(chat=False, pad="<|endoftext|>", special=("<|endoftext|>",))
    tools = make_tokenizer()
    tools.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    ends = frozenset({chat.eos_token_id})
    llama = build_model("llama", layers=2, vocabulary=len(chat), tokenizer=chat)
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    return {
        "llama": (llama, chat, ends),
        "llama, rope theta": (like(llama, rope_type="default", rope_theta=5e5), chat, ends),
        "llama, rope scaling": (like(llama, rope_type="llama3", rope_theta=5e5, **llama3), chat, ends),
        "llama, bfloat16, two ends": (like(llama, torch.bfloat16), chat, ends | {5}),
        "llama, more special tokens": (
            build_model("llama", layers=1, vocabulary=len(tools), tokenizer=tools),
            tools,
            ends,
        ),
        "gpt2": (build_model("gpt2", layers=2, vocabulary=len(chat), tokenizer=chat), chat, ends),
        "gpt2, one special token": (
            build_model("gpt2", layers=1, vocabulary=len(one_special), tokenizer=one_special),
            one_special,
            frozenset({one_special.eos_token_id}),
        ),
    }


def like(model: PreTrainedModel, dtype: torch.dtype = torch.float32, **rope: Any) -> PreTrainedModel:
    """Return the same weights, in another dtype or under other rotary positions."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = rope or config.rope_parameters
    other = AutoModelForCausalLM.from_config(config, dtype=dtype)
    other.load_state_dict(model.state_dict())
    return other.train(False)


NAMES = list(students())


@pytest.fixture(scope="module")
def answers(old_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the report of transformers 4 on each exported student, by name; one process loads all."""
    folder = tmp_path_factory.mktemp("students")
    made = students()
    for number, (model, tokenizer, ends) in enumerate(made.values()):
        export_student(model, tokenizer, ends, folder / str(number), str(model.dtype).removeprefix("torch."))
    folders = [str(folder / str(number)) for number in range(len(made))]
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps([TEXT, CHAT, folders])],
        env={**os.environ, "PYTHONPATH": str(old_packages), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    return {
        "version": told["version"],
        **{name: {**told[each], "folder": each} for name, each in zip(made, folders, strict=True)},
    }


def test_it_was_the_old_release_that_answered(answers: dict[str, Any]) -> None:
    assert answers["version"] == OLD


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_the_students_logits_and_completions(name: str, answers: dict[str, Any]) -> None:
    model, tokenizer, _ = students()[name]
    answer = answers[name]
    ids = tokenizer(TEXT)["input_ids"]
    assert answer["ids"] == ids
    assert answer["dtype"] == str(model.dtype)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
    tolerance = 1e-5 if model.dtype == torch.float32 else 0.05
    found = torch.tensor(answer["logits"])[:, : expected.shape[1]]
    torch.testing.assert_close(found, expected.float(), rtol=tolerance, atol=tolerance)
    exported = AutoModelForCausalLM.from_pretrained(answer["folder"]).train(False)
    if model.dtype == torch.float32:
        grown = exported.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=5)[0].tolist()
        assert answer["grown"] == grown


@pytest.mark.parametrize("name", NAMES)
def test_it_pads_ends_and_renders_alike(name: str, answers: dict[str, Any]) -> None:
    model, tokenizer, ends = students()[name]
    answer = answers[name]
    assert len(set(answer["pad"])) == 1
    assert answer["pad"][0] not in {None, *ends}
    assert answer["eos"] == [tokenizer.eos_token_id, sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id]
    assert answer["longest"] == model.config.max_position_embeddings
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False) if tokenizer.chat_template else None
    assert answer["chat"] == rendered
