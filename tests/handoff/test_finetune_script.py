"""The fine-tuning script: it encodes rows as the student's training did, for every style of chat template."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from chat_templates import FAMILIES, STYLES, styled
from tiny import EOS, tiny_config
from transformers import GenerationConfig, PreTrainedTokenizerFast

from skill_kd.handoff.step_files import FinetuneTask, script
from skill_kd.jobs.folder import fill_kd
from skill_kd.kd.config import Data, WarmStart
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.training_data import load_training_data
from skill_kd.kd.model.vocabulary import eos_ids
from skill_kd.spec import Handoff
from skill_kd.testing import minimal_spec

ONE_TURN = ("hello", "<think>fox</think>dog")
TWO_TURNS = (*ONE_TURN, "the lazy", "<think>quick</think>brown")
STAND_INS = {"unsloth": ("FastLanguageModel", "is_bfloat16_supported"), "trl": ("SFTConfig", "SFTTrainer")}


@pytest.fixture(scope="module")
def finetune(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The script next to its ``kd/``. Unsloth and TRL are empty stand-ins, because only the data is tested."""
    folder = tmp_path_factory.mktemp("handoff")
    task = FinetuneTask(minimal_spec().model_copy(update={"handoff": Handoff()}), None, 500, 2)
    (folder / "finetune.py").write_text(script(task))
    fill_kd(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, parts in STAND_INS.items():
            module = ModuleType(name)
            vars(module).update(dict.fromkeys(parts))
            patch.setitem(sys.modules, name, module)
        patch.setenv("UNSLOTH_COMPILE_LOCATION", "")  # the script sets it
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.syspath_prepend(folder)
        yield importlib.import_module("finetune")
        for name in [each for each in sys.modules if each.partition(".")[0] in ("finetune", "kd")]:
            del sys.modules[name]


class Step:
    """A hand-off folder with a student's tokenizer and two rows of data."""

    def __init__(self, finetune: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, style: str) -> None:
        self.finetune, self.monkeypatch, self.folder = finetune, monkeypatch, folder
        self.tokenizer, self.options = styled(style)
        self.settings = GenerationConfig(eos_token_id=self.tokenizer.eos_token_id)
        self.tokenizer.save_pretrained(folder / "student")
        self.settings.save_pretrained(folder / "student")
        monkeypatch.setattr(finetune, "STUDENT", folder / "student")
        monkeypatch.setattr(finetune, "HERE", folder)
        self.write(ONE_TURN, TWO_TURNS)

    def write(self, *conversations: tuple[str, ...]) -> None:
        roles = ("user", "assistant") * 2
        rows = [
            {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}
            for texts in conversations
        ]
        (self.folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def rows(self, **settings: Any) -> list[dict[str, list[int]]]:
        """Return the rows of the script."""
        config = self.finetune.Config(template_options=tuple(self.options.items()), **settings)
        self.monkeypatch.setattr(self.finetune, "CONFIG", config)
        return list(self.finetune.encoded_data())


@pytest.fixture
def step(finetune: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> Step:
    return Step(finetune, monkeypatch, tmp_path, getattr(request, "param", "chat"))


def learned(tokenizer: PreTrainedTokenizerFast, row: dict[str, list[int]]) -> str:
    """Return the text of the tokens in the loss."""
    return str(tokenizer.decode([label for label in row["labels"] if label != -100]))


@pytest.mark.parametrize("step", [*STYLES, *(name for name, family in FAMILIES.items() if family[0])], indirect=True)
def test_rows_have_the_tokens_and_the_loss_mask_of_the_trainer(step: Step) -> None:
    held_out = step.folder / "held_out.jsonl"
    held_out.write_text('{"prompt": "lazy dog"}\n')
    data = Data(train=str(step.folder / "data.jsonl"), held_out=str(held_out), chat_template_options=step.options)
    ends = eos_ids(step.tokenizer, step.settings, step.options)
    encoder = Encoder(step.tokenizer, ends, step.options)
    trained = load_training_data(tiny_config(data=data, stages=(WarmStart(),)), encoder).answered
    expected = []
    for row in trained:
        assert row is not None
        answer = [token if scored else -100 for token, scored in zip(row.response, row.scored, strict=True)]
        labels = [-100] * len(row.prompt) + answer
        expected.append({"input_ids": [*row.prompt, *row.response], "labels": labels})
    assert step.rows() == expected
    assert all(row["labels"][-1] in ends for row in expected)


@pytest.mark.parametrize(
    ("step", "one", "two"),
    [
        ("opens reasoning", "fox</think>dog", "quick</think>brown"),
        ("drops reasoning", "<think>fox</think>dog", "<think>quick</think>brown"),
        ("forgets reasoning", "<think>fox</think>dog", "<think>quick</think>brown"),
    ],
    indirect=["step"],
)
def test_reasoning_that_the_template_drops_stays_in_the_loss(step: Step, one: str, two: str) -> None:
    assert [learned(step.tokenizer, row) for row in step.rows()] == [one + EOS, two + EOS]


@pytest.mark.parametrize("step", ["does not think"], indirect=True)
def test_the_options_of_the_template_reach_the_rows(step: Step) -> None:
    step.write(("hello", "dog"))
    [row] = step.rows()
    assert learned(step.tokenizer, row) == f"dog{EOS}"
    assert "<think>\n\n</think>\n\ndog" in step.tokenizer.decode(row["input_ids"])
    step.options = {}
    assert learned(step.tokenizer, step.rows()[0]) == f"<think>\n\n</think>\n\ndog{EOS}"


def test_every_token_is_in_the_loss_unless_it_covers_only_responses(step: Step) -> None:
    assert all(row["labels"] == row["input_ids"] for row in step.rows(responses_only=False))


def test_a_row_beyond_the_limit_is_cut_and_teaches_no_end(step: Step) -> None:
    whole, cut = step.rows()[0], step.rows(max_tokens=len(step.rows()[0]["labels"]) - 1)[0]
    assert cut == {name: values[:-1] for name, values in whole.items()}


def test_a_row_without_an_answer_is_named(step: Step) -> None:
    step.write(ONE_TURN, TWO_TURNS[:3])
    with pytest.raises(AssertionError, match=r"data\.jsonl line 2: the last turn is not the assistant's"):
        step.rows()
