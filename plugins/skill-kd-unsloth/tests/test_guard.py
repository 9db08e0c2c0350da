"""The guard around the student: scoring is laid out for Unsloth and gives what plain transformers gives."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from skill_kd_unsloth import UnslothBackend
from specs import needs_unsloth, values
from tiny import build_model, make_tokenizer

from skill_kd.kd.config import Lora
from skill_kd.kd.dataset.batch import Batch, Row, collate
from skill_kd.kd.dataset.encoding import Encoded
from skill_kd.kd.errors import TrainingStopped
from skill_kd.kd.model.student import find_head, response_hidden_states, response_logits
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest
from skill_kd.spec.file import parse_spec

pytestmark = needs_unsloth
CPU = torch.device("cpu")
PROMPTS = [(5, 9, 30), (12, 7, 8, 40, 41, 42, 43), (6,)]


@pytest.fixture(scope="module")
def template(models: Path, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """Return the template as a module in a separate folder, because Unsloth writes next to it."""
    folder = tmp_path_factory.mktemp("template")
    source = Path(sys.modules[UnslothBackend.__module__].__file__ or "").parent / "templates" / "unsloth_trainer.py"
    script, config = folder / "unsloth_trainer.py", folder / "spec.json"
    script.write_text(source.read_text())
    config.write_text(json.dumps(parse_spec(values(models)).model_dump(mode="json")))
    spec = importlib.util.spec_from_file_location("unsloth_trainer", script)
    assert spec is not None
    assert spec.loader is not None
    module, arguments = importlib.util.module_from_spec(spec), sys.argv
    sys.argv = [str(script), str(config)]
    try:
        spec.loader.exec_module(module)
    finally:
        sys.argv = arguments
    return module


def model() -> Any:
    tokenizer = make_tokenizer()
    return build_model("llama", layers=2, vocabulary=len(tokenizer), tokenizer=tokenizer)


def batch(prompts: Sequence[tuple[int, ...]] = PROMPTS) -> Batch:
    rows = [Row(prompt, (20, 21, 22, 2)[: 2 + n], (True,) * (2 + n), "data") for n, prompt in enumerate(prompts)]
    return collate(rows, 0, CPU)


def test_scoring_is_padded_on_the_right_and_gives_the_same_logits(template: ModuleType) -> None:
    watched, plain, seen = model(), model(), []
    expected = response_logits(plain, batch(), 300)
    template.Guard().watch(watched)
    watched.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    found = response_logits(watched, batch(), 300)
    mask = batch().mask_BT
    assert torch.allclose(found[mask], expected[mask], atol=1e-5)
    attention = seen[0]["attention_mask"]
    assert bool((attention[:, 1:] <= attention[:, :-1]).all())
    assert not bool((batch().attention_mask_BL[:, 0]).all())
    # Nothing is left behind: an export merges adapters and runs what was inside of them.
    ids = torch.tensor([[5, 9, 30]])
    assert torch.allclose(copy.deepcopy(watched)(input_ids=ids).logits, plain(ids).logits, atol=1e-5)


def test_a_loss_that_works_before_the_head_sees_the_same_states(template: ModuleType) -> None:
    watched, plain = model(), model()
    template.Guard().watch(watched)
    found, expected = (
        response_hidden_states(each, batch(), find_head(each, 300)).hidden_BTH for each in (watched, plain)
    )
    mask = batch().mask_BT
    assert found.shape == expected.shape
    assert torch.allclose(found[mask], expected[mask], atol=1e-5)


def test_gradients_are_those_of_plain_transformers(template: ModuleType) -> None:
    watched, plain = model(), model()
    template.Guard().watch(watched)
    for each in (watched, plain):
        response_logits(each, batch(), 300)[batch().mask_BT].logsumexp(-1).sum().backward()
    pairs = zip(watched.parameters(), plain.parameters(), strict=True)
    assert all(torch.allclose(ours.grad, theirs.grad, atol=1e-4) for ours, theirs in pairs)


def test_labels_never_reach_unsloth(template: ModuleType) -> None:
    watched = model()
    template.Guard().watch(watched)
    with pytest.raises(AssertionError, match="labels"):
        watched(input_ids=torch.tensor([[5, 9]]), labels=torch.tensor([[5, 9]]))


class NoLogits:
    """As Unsloth answers where it computed the loss alone."""

    logits = "not a tensor"


@pytest.mark.parametrize("spoil", ["absent", "cut", "nan"])
def test_logits_that_are_not_what_was_asked_for_stop_the_run(
    spoil: str, template: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = model()
    honest = watched.forward

    def forward(**inputs: Any) -> Any:
        if spoil == "absent":
            return NoLogits()
        output = honest(**inputs)
        output.logits = output.logits[:, 1:] if spoil == "cut" else output.logits * torch.nan
        return output

    monkeypatch.setattr(watched, "forward", forward)
    template.Guard().watch(watched)
    with pytest.raises(TrainingStopped, match="Unsloth returned logits"):
        response_logits(watched, batch(), 300)


@pytest.mark.parametrize("kept", [9, 3], ids=["enough for all columns", "too few"])
def test_a_text_that_was_cut_is_refused(kept: int, template: ModuleType) -> None:
    """As Unsloth does it on a GPU, with a warning alone, to what is longer than max_seq_length."""
    watched, rows = model(), batch(PROMPTS[:2])
    whole = watched.model.forward

    def forward(**inputs: Any) -> Any:
        cut = {name: value[:, :kept] if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        return whole(**cut)

    watched.model.forward = forward
    template.Guard().watch(watched)
    with pytest.raises(TrainingStopped, match=f"Unsloth read {kept} of 10 tokens"):
        response_logits(watched, rows, 300)


def test_a_head_that_gets_another_number_of_columns_is_refused(template: ModuleType) -> None:
    watched = model()
    asked = watched.forward
    watched.forward = lambda **inputs: asked(**{**inputs, "logits_to_keep": 4})
    template.Guard().watch(watched)
    with pytest.raises(TrainingStopped, match="returned 4 hidden states, not 11"):
        response_logits(watched, batch(), 300)


def test_hidden_states_that_are_not_finite_stop_the_run(template: ModuleType) -> None:
    watched = model()
    watched.model.norm.weight.data.fill_(torch.nan)
    template.Guard().watch(watched)
    with pytest.raises(TrainingStopped, match="hidden states that are not finite"):
        response_logits(watched, batch(), 300)


def test_unsloth_compiles_into_the_folder_of_the_script(template: ModuleType) -> None:
    """On a CPU it compiles nothing; tests/gpu looks at the folder."""
    assert os.environ["UNSLOTH_COMPILE_LOCATION"] == str(Path(template.__file__ or "").parent / "compiled")


LORA = Lora(r=4, alpha=8.0, dropout=0.0, targets="all-linear")


@pytest.fixture
def configure(template: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change values of some sections of the template's configuration."""

    def change(**sections: dict[str, Any]) -> None:
        changed = {name: replace(getattr(template.CONFIG, name), **values) for name, values in sections.items()}
        monkeypatch.setattr(template, "CONFIG", replace(template.CONFIG, **changed))

    return change


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("wanted", [False, True])
def test_activations_are_recomputed_if_the_spec_says_so(
    wanted: bool, lora: Lora | None, template: ModuleType, configure: Callable[..., None]
) -> None:
    """Unsloth's own default is to recompute them always."""
    configure(student={"lora": lora}, training={"gradient_checkpointing": wanted})
    student, passes = template.load_unsloth_student()[0], []
    student.train()
    student.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_: passes.append(1))
    response_logits(student, batch(), 300).logsumexp(-1).sum().backward()
    assert len(passes) == 1 + wanted


def test_adapters_that_were_not_attached_are_missed(
    template: ModuleType, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a full fine-tune in the same process Unsloth returns the model as it was, with all weights to train."""
    configure(student={"lora": LORA})
    monkeypatch.setattr(template.unsloth.FastLanguageModel, "get_peft_model", lambda given, **_: given)
    with pytest.raises(TrainingStopped, match="attached no adapters"):
        template.load_unsloth_student()


def test_a_student_that_samples_and_scores_apart_is_refused(template: ModuleType) -> None:
    decoding = Decoding(8, 1.0, 1.0, frozenset({2}), 300)
    sampler = Sampler(decoding, 0, CPU)
    requests = [SampleRequest(Encoded(prompt), (0, "test"), row) for row, prompt in enumerate(PROMPTS)]
    watched = model()
    template.Guard().watch(watched)
    accelerator = Accelerator(cpu=True)
    template.check_sampling(watched, sampler, requests, accelerator)

    def scores_otherwise(module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if kwargs.get("use_cache") is False:
            module.lm_head.weight.data.mul_(-1)

    watched.register_forward_pre_hook(scores_otherwise, with_kwargs=True)
    with pytest.raises(TrainingStopped, match="differ by"):
        template.check_sampling(watched, sampler, requests, accelerator)
