"""A response ends at any end of the student, of its teachers, or of the chat template."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import CHAT_TEMPLATE, build_model, make_tokenizer, tiny_config
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from skill_kd.evaluate.opened_models import Writer, together
from skill_kd.kd import config
from skill_kd.kd.dataset.encoding import Encoded, Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.dataset.training_data import TrainingData
from skill_kd.kd.errors import BadInput
from skill_kd.kd.model.loading import LoadedTeacher
from skill_kd.kd.model.vocabulary import eos_ids
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest
from skill_kd.kd.teacher import teacher as teachers

CPU = torch.device("cpu")
TEXT_END, BEGIN, TURN_END, CALL_END = 0, 1, 2, 300
LLAMA = CHAT_TEMPLATE.replace("<|im_end|>", "<|call_end|>")
EXAMPLE = Example((("user", "hello"),), None)


class Speaker(nn.Module):
    """A teacher that says fixed tokens, whatever it is asked."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, ends: list[int], says: Sequence[int]) -> None:
        super().__init__()
        self.inner = build_model("llama", layers=1, vocabulary=len(tokenizer), tokenizer=tokenizer)
        self.inner.generation_config.eos_token_id = ends
        self.config, self.generation_config = self.inner.config, self.inner.generation_config
        self.says = iter(says)

    def forward(self, **inputs: object) -> object:
        output = self.inner(**inputs)
        logits: Tensor = torch.full_like(output.logits, -1e4)
        logits[..., next(self.says)] = 0
        output.logits = logits
        return output


def tokenizer_of(eos: str, template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|call_end|>"]})
    tokenizer.eos_token, tokenizer.chat_template = eos, template
    return tokenizer


def opened(
    monkeypatch: pytest.MonkeyPatch,
    student: PreTrainedTokenizerFast,
    teacher: PreTrainedTokenizerFast,
    ends: list[int],
    says: Sequence[int],
    kind: str = "reverse_kl",
    prompt: tuple[int, ...] | None = None,
) -> tuple[teachers.Teacher, Decoding, Encoder]:
    model = build_model("llama", layers=1, vocabulary=len(student), tokenizer=student)
    model.generation_config.eos_token_id = None
    decoding = Decoding(6, 1.0, 1.0, eos_ids(student, model.generation_config), len(student))
    encoder = Encoder(student, decoding.eos_ids)
    loaded = LoadedTeacher(Speaker(teacher, ends, says), teacher, len(teacher))
    monkeypatch.setattr(teachers, "load_teacher", lambda _source, **_options: loaded)
    settings = tiny_config(
        data=config.Data(train="train.jsonl", max_prompt_tokens=64),
        rollout=config.Rollout(max_new_tokens=6),
        stages=(config.Distill.of({"objective": {"kind": kind}}),),
    )
    data = TrainingData([], [Encoded(prompt)], [None], [], []) if prompt else None
    found = teachers.open_teacher(settings, student, Sampler(decoding, TEXT_END, CPU), encoder, data=data)
    return found, decoding, encoder


BASE, INSTRUCT = "<|endoftext|>", "<|im_end|>"


@pytest.mark.parametrize(
    ("student", "template", "ends", "expected"),
    [
        pytest.param(BASE, CHAT_TEMPLATE, [TURN_END, TEXT_END], {TEXT_END, TURN_END}, id="qwen"),
        pytest.param(BASE, LLAMA, [TEXT_END, CALL_END], {TEXT_END, CALL_END}, id="llama 3"),
        pytest.param(BASE, CHAT_TEMPLATE, [TEXT_END, 5], {TEXT_END, TURN_END, 5}, id="one more of the teacher"),
        pytest.param(INSTRUCT, CHAT_TEMPLATE, [TURN_END], {TURN_END}, id="mistral"),
        pytest.param(BASE, "", [TEXT_END], {TEXT_END}, id="gpt-2"),
    ],
)
def test_student_and_teacher_stop_at_the_ends_of_both_and_of_the_template(
    student: str, template: str, ends: list[int], expected: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher_eos = INSTRUCT if TURN_END in ends else BASE
    ours, theirs = tokenizer_of(student, template), tokenizer_of(teacher_eos, template)
    for end in sorted(expected):
        teacher, decoding, encoder = opened(monkeypatch, ours, theirs, ends, [40, end, 50, 51, 52, 53])
        assert teacher.shared(decoding).eos_ids == expected
        request = SampleRequest(encoder.prompt(EXAMPLE), (1,), 0)
        [row] = teacher.write([EXAMPLE], [request], teacher.shared(decoding))
        assert row.response == (40, end)


def test_a_teacher_with_another_template_ends_where_its_own_template_ends_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = tokenizer_of(BASE), tokenizer_of(BASE, LLAMA)
    teacher, decoding, encoder = opened(monkeypatch, ours, theirs, [TEXT_END], [40, CALL_END, 50, 51], "sequence_kd")
    assert teacher.shared(decoding).eos_ids == {TEXT_END, TURN_END}
    [row] = teacher.write([EXAMPLE], [SampleRequest(encoder.prompt(EXAMPLE), (1,), 0)], decoding)
    assert row.response[-1] == TURN_END  # the student's own
    assert ours.decode(row.response[:-1]) == ours.decode([40])


def test_a_prompt_with_a_token_that_the_teacher_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tokenizer_of(INSTRUCT), make_tokenizer()
    opened(monkeypatch, ours, theirs, [TURN_END], [], prompt=(40, 50))
    with pytest.raises(
        BadInput, match=r"'<\|call_end\|>', id 300 of 301 tokens, and the teacher has only the first 300"
    ):
        opened(monkeypatch, ours, theirs, [TURN_END], [], prompt=(40, CALL_END))


def test_a_teacher_that_lacks_a_prompts_token_can_still_write(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = tokenizer_of(INSTRUCT), make_tokenizer()
    prompt = (40, CALL_END)
    teacher, decoding, _ = opened(monkeypatch, ours, theirs, [TURN_END], [40, TURN_END, 50, 51], "sequence_kd", prompt)
    [row] = teacher.write([EXAMPLE], [SampleRequest(Encoded(prompt), (1,), 0)], decoding)
    assert row.response[-1] == TURN_END


def test_the_evaluated_models_stop_at_the_ends_of_both() -> None:
    writers = []
    for eos, ends in ((BASE, {TEXT_END}), (INSTRUCT, {TURN_END, 5})):
        tokenizer = tokenizer_of(eos)
        sampler = Sampler(Decoding(4, 1.0, 1.0, frozenset(ends), 301), TEXT_END, CPU)
        writers.append(Writer(eos, nn.Linear(1, 1), tokenizer, Encoder(tokenizer, frozenset(ends)), sampler))
    student, teacher = together(writers[0], writers[1], 301, [EXAMPLE])
    for writer in (student, teacher):
        assert writer.sampler.decoding.eos_ids == {TEXT_END, TURN_END, 5}
    with pytest.raises(BadInput, match=r"'<\|im_end\|>' has only the first 2"):
        together(writers[0], writers[1], 2, [EXAMPLE])
