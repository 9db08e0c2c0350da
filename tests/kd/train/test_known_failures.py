"""Known failures of public implementations of distillation: each has its own test, which names the issue.

Most go through the path that training takes: rows, ``collate``, ``StudentWithLoss``, ``micro_batches``. Where another
file proves the same of one function, the test here calls that one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import test_data
import test_divergences
import test_loading
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from tiny import EOS, build_model, make_tokenizer, tiny_config
from torch import Tensor, nn

from skill_kd.kd import config
from skill_kd.kd.dataset.batch import Row, collate
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.endpoint import Endpoint
from skill_kd.kd.errors import BadInput, Missing
from skill_kd.kd.losses.divergences import bucketed, forward_kl, jsd, kl, log_probs, reverse_kl
from skill_kd.kd.losses.masking import through_first_eos
from skill_kd.kd.model.loading import LoadedTeacher
from skill_kd.kd.model.student import StudentWithLoss, find_head, response_hidden_states, response_logits
from skill_kd.kd.model.vocabulary import real_vocabulary, shared_vocabulary
from skill_kd.kd.rollouts.decoding import Decoding
from skill_kd.kd.rollouts.sampler import Sampler, SampleRequest
from skill_kd.kd.teacher import teacher as teachers
from skill_kd.kd.teacher.served import ServedTeacher
from skill_kd.kd.teacher.teacher import Teacher
from skill_kd.kd.train.experience import Experience, Sampling, Term, rows_source
from skill_kd.kd.train.loop import micro_batches
from skill_kd.kd.train.objectives import Objective, build_objective
from skill_kd.spec import JSD, Distill

torch.set_num_threads(1)

CPU = torch.device("cpu")
TOKENIZER = make_tokenizer(pad=EOS)
END = int(TOKENIZER.eos_token_id)
KINDS = ["forward_kl", "reverse_kl", "jsd", "adaptive_kl", "minillm exact", "minillm paper"]


def objective(name: str) -> Objective:
    kind, _, estimator = name.partition(" ")
    values = {"kind": kind, **({"estimator": estimator} if estimator else {})}
    stage = Distill.model_validate({"kind": "distill", "objective": values})
    return build_objective(config.Distill.of(stage.model_dump()).objective)


def model(seed: int, vocabulary: int | None = None) -> nn.Module:
    size = vocabulary or len(TOKENIZER)
    return build_model("llama", layers=1, vocabulary=size, tokenizer=TOKENIZER, seed=seed).double()


def row(response: tuple[int, ...], prompt: tuple[int, ...] = (40, 41), scored: bool = True) -> Row:
    sampled_with = tuple(-0.5 - 0.1 * t for t in range(len(response)))
    return Row(prompt, response, (scored,) * len(response), "student", sampled_with)


ROWS = [row((50, 51, 52, 53, END)), row((END,)), row((60, 61, END), prompt=(42,)), row((70, 71, 72, 73, 74, 75))]
"""From 1 to 6 tokens, so that means of parts differ from the mean of the whole."""


def gradient(policy: StudentWithLoss, teacher: nn.Module, rows: list[Row], name: str, accumulate: int) -> Tensor:
    """Return the gradient of one optimizer step, cut into ``accumulate`` micro-batches as training cuts it."""
    settings = tiny_config(
        training=config.Training(batch_size=len(rows)), rollout=config.Rollout(prompts=len(rows), inner_epochs=1)
    )
    sampler = Sampler(Decoding(8, 1.0, 1.0, frozenset({END}), policy.vocabulary), END, CPU)
    sampling = Sampling(sampler, Teacher(teacher, policy.vocabulary, lambda *_: []), process=0, processes=1)
    term = Term(Experience(settings, "distill", objective(name), rows_source(rows), sampling))
    policy.zero_grad()
    for piece, built, scale in micro_batches(Accelerator(cpu=True), [term], [rows], accumulate):
        batch = collate(piece, END, CPU)
        head = find_head(teacher, policy.vocabulary)
        assert head is not None
        with torch.no_grad():
            states = response_hidden_states(teacher, batch, head)
        (scale * policy(batch, built.loss, states, 1.0)).backward()
    return torch.cat([weight.grad.flatten() for weight in policy.parameters() if weight.grad is not None])


# --- what is trained on -----------------------------------------------------------------------------------------------


def test_a_pad_that_is_eos_hides_no_eos() -> None:
    """Trl PR 6357: the mask was read off the ids, so the EOS was masked with the pads, and students never stopped."""
    sampled = torch.tensor([[50, END, END, END], [50, 51, 52, 53]])
    assert through_first_eos(sampled, {END}).tolist() == [[True, True, False, False], [True] * 4]
    batch = collate(ROWS, pad=END, device=CPU)
    assert [int(mask.sum()) for mask in batch.mask_BT] == [len(each.response) for each in ROWS]
    student = torch.randn(len(ROWS), batch.width, len(TOKENIZER), dtype=torch.float64, requires_grad=True)
    teacher = log_probs(torch.randn(student.shape, dtype=torch.float64))
    objective("minillm exact").loss(log_probs(student), teacher, batch).sum().backward()
    assert student.grad is not None
    assert student.grad[0, 4].abs().max() > 0
    assert student.grad[1, 0].abs().max() > 0
    assert not student.grad[1, 1:].any()
    test_data.test_a_pad_token_that_is_eos_does_not_hide_the_eos()


@pytest.mark.parametrize("name", KINDS)
def test_padding_and_other_rows_change_no_gradient(name: str) -> None:
    """Padding invariance: a row's gradient is the same alone, with longer rows, and with its pads at either end."""
    student, teacher = StudentWithLoss(model(0), len(TOKENIZER)), model(1)
    each = [gradient(student, teacher, [one], name, 1) * objective(name).count([one]) for one in ROWS]
    together = gradient(student, teacher, ROWS, name, 1) * objective(name).count(ROWS)
    torch.testing.assert_close(sum(each), together, rtol=0, atol=1e-5)  # its norms compute in float32


# --- vocabularies -----------------------------------------------------------------------------------------------------


def test_padded_vocabularies_are_cut_to_the_ids_that_both_models_share() -> None:
    """LMOps issue 286, trl 2215 and 3028, torchtune 2119, ModelOpt 2489: Qwen2.5 comes with 151936 and 152064 rows."""
    student, teacher = model(0, vocabulary=384), model(1, vocabulary=352)
    sizes = [real_vocabulary(TOKENIZER, each) for each in (student, teacher)]
    shared = shared_vocabulary(TOKENIZER, make_tokenizer(), min(sizes))
    assert shared == len(TOKENIZER) == 300
    before = gradient(StudentWithLoss(student, shared), teacher, ROWS, "reverse_kl", 1)
    with torch.no_grad():
        for each in (student, teacher):
            each.get_output_embeddings().weight[shared:] += 100.0  # type: ignore[operator, union-attr]
    after = gradient(StudentWithLoss(student, shared), teacher, ROWS, "reverse_kl", 1)
    assert torch.equal(before, after)
    assert before.abs().max() > 0


def test_equal_sizes_do_not_make_equal_tokens() -> None:
    """Trl's DistillationTrainer compares sizes only, so tokenizers with permuted ids train, and teach nonsense."""
    test_loading.test_two_permuted_ids_are_refused_and_the_first_named()


# --- normalizers ------------------------------------------------------------------------------------------------------


def test_a_loss_is_divided_by_the_tokens_it_sums() -> None:
    """Trl issue 4719: the label tokens of the data set divided a loss over responses that were sampled anew."""
    from_data = [Row(each.prompt, each.response * 3, each.scored * 3, "data") for each in ROWS]
    for name, count in (("reverse_kl", 15), ("minillm paper", 15), ("minillm exact", 4)):
        assert objective(name).count(ROWS) == count
        assert objective(name).count(from_data) == (count if count == 4 else 3 * count)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_changes_no_gradient(name: str, accumulate: int) -> None:
    """Trl PR 6006, ms-swift PR 10165: each micro-batch was divided by its own tokens, so the split changed the loss."""
    student, teacher = StudentWithLoss(model(0), len(TOKENIZER)), model(1)
    whole, parts = (gradient(student, teacher, ROWS, name, split) for split in (1, accumulate))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)  # the norms of a llama compute in float32
    size = len(ROWS) // accumulate
    pieces = [ROWS[start : start + size] for start in range(0, len(ROWS), size)]
    mean_of_means = sum(gradient(student, teacher, piece, name, 1) for piece in pieces) / accumulate
    if objective(name).loss.normalizer == "tokens":
        assert (mean_of_means - whole).norm() > 0.05 * whole.norm()


# --- no number --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_rows_without_a_scored_token_give_zero_and_no_nan(name: str) -> None:
    """LMOps issue 38: a mean over an empty mask is 0 / 0."""
    student, teacher = StudentWithLoss(model(0), len(TOKENIZER)), model(1)
    empty = [row((50, 51), scored=False), row((60,), scored=False)]
    assert not gradient(student, teacher, empty, name, 1).any()
    beside = gradient(student, teacher, [ROWS[0], empty[0]], name, 1)
    assert beside.isfinite().all()
    assert beside.any()


def test_zero_times_minus_infinity_is_zero() -> None:
    """Trl issue 5594: reverse KL of a token that both models rule out is 0 · (−inf − −inf)."""
    student = torch.tensor([[0.3, -math.inf, 1.0]], requires_grad=True)
    teacher = torch.tensor([[0.1, -math.inf, 0.2]])
    expected = kl(torch.tensor([[0.3, 1.0]]).log_softmax(-1), torch.tensor([[0.1, 0.2]]).log_softmax(-1))
    for divergence in (reverse_kl, forward_kl):
        assert divergence(log_probs(student), log_probs(teacher)).isfinite().all()
    torch.testing.assert_close(reverse_kl(log_probs(student), log_probs(teacher)), expected)


@test_divergences.every_divergence
def test_a_finite_loss_has_a_finite_gradient(case: test_divergences.Case) -> None:
    """Infinities hidden by a mask or a zero come back in the backward pass, also at p → 0 and at a low temperature."""
    for temperature in (0.01, 1.0):
        test_divergences.test_value_and_gradient_are_finite(case, torch.float32, temperature)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_only_response_positions_meet_the_output_head() -> None:
    """DistillKit issue 4, ms-swift 7295: logits of whole sequences over a large vocabulary do not fit."""
    student = model(0)
    seen: list[int] = []
    student.get_output_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda _module, given, _output: seen.append(given[0].shape[1])
    )
    batch = collate([row((50, 51, END), prompt=tuple(range(40, 140)))], END, CPU)
    assert response_logits(student, batch, 300).shape == (1, 3, 300)
    assert seen == [batch.width + 1]


# --- truncated distributions ------------------------------------------------------------------------------------------


def test_top_k_reverse_kl_keeps_a_bucket_for_the_tail() -> None:
    """Verl PR 5041: reverse KL over the top k alone falls when mass leaves the top k, so training empties it."""
    teacher = log_probs(torch.randn(1, 1, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2)
    top = teacher.topk(4).indices
    aim = float(teacher.gather(-1, top).exp().sum())
    mass = {}
    for tail in (True, False):
        logits = torch.zeros(1, 1, 20, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([logits], lr=0.1)
        for _ in range(400):
            pair = [bucketed(each, top) for each in (log_probs(logits), teacher)]
            student, goal = pair if tail else [each[..., :-1] for each in pair]
            optimizer.zero_grad()
            kl(student, goal).sum().backward()
            optimizer.step()
        mass[tail] = float(log_probs(logits.detach()).gather(-1, top).exp().sum())
    assert mass[True] == pytest.approx(aim, abs=0.01)
    assert mass[False] < aim / 2


# --- teachers ---------------------------------------------------------------------------------------------------------

OTHER_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
EXAMPLE = Example((("user", "the quick brown fox"),), None)


class Recorder(nn.Module):
    """A teacher that keeps the first ids it is asked about."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.config, self.generation_config = inner, inner.config, inner.generation_config
        self.asked: list[list[int]] = []

    def forward(self, input_ids: Tensor, **rest: Any) -> Any:
        self.asked.append(input_ids[0].tolist())
        return self.inner(input_ids=input_ids, **rest)


def opened(
    monkeypatch: pytest.MonkeyPatch, kind: str, *templates: str, ours: str | None = None, **options: bool
) -> tuple[teachers.Teacher, Recorder, Encoder]:
    """Open a teacher, or several, with the student's tokens and chat templates of their own."""
    tokenizers = [make_tokenizer(pad=EOS) for _ in templates]
    for tokenizer, template in zip(tokenizers, templates, strict=True):
        tokenizer.chat_template = template
    theirs, others = tokenizers[0], tuple((f"teacher {at}", each) for at, each in enumerate(tokenizers[1:], start=2))
    teacher = Recorder(build_model("llama", layers=1, vocabulary=300, tokenizer=theirs))
    loaded = LoadedTeacher(teacher, theirs, 300, others)
    monkeypatch.setattr(teachers, "load_teacher", lambda _source, **_options: loaded)
    student = make_tokenizer(pad=EOS)
    student.chat_template = ours or student.chat_template
    ends = frozenset({END})
    sampler, encoder = Sampler(Decoding(4, 1.0, 1.0, ends, 300), END, CPU), Encoder(student, ends, options)
    settings = tiny_config(
        data=config.Data(train="train.jsonl", max_prompt_tokens=64),
        rollout=config.Rollout(max_new_tokens=4),
        stages=(config.Distill.of({"objective": {"kind": kind}}),),
    )
    return teachers.open_teacher(settings, student, sampler, encoder), teacher, encoder


@pytest.mark.parametrize("kind", ["reverse_kl", "sequence_kd"])
def test_a_teacher_of_the_same_template_reads_the_prompt_that_serving_will_send(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, recorder, encoder = opened(monkeypatch, kind, str(TOKENIZER.chat_template))
    prompt = encoder.prompt(EXAMPLE)
    teacher.write([EXAMPLE], [SampleRequest(prompt, (1,), 0)], Decoding(4, 1.0, 1.0, frozenset({END}), 300))
    rendered = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "the quick brown fox"}], add_generation_prompt=True, tokenize=True
    )
    assert recorder.asked[0] == list(prompt.prompt) == list(rendered["input_ids"])


def test_a_teacher_with_another_chat_template_is_not_asked_about_prompts_it_never_saw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tinker-cookbook issue 796: a base student's prompts went to an instruct teacher, whose probabilities were off."""
    with pytest.raises(BadInput, match="chat template"):
        opened(monkeypatch, "reverse_kl", OTHER_TEMPLATE)


def test_a_teacher_with_another_chat_template_writes_with_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same, if only the teacher's text is trained on."""
    teacher, recorder, encoder = opened(monkeypatch, "sequence_kd", OTHER_TEMPLATE)
    request = SampleRequest(encoder.prompt(EXAMPLE), (1,), 0)
    written = teacher.write([EXAMPLE], [request], Decoding(4, 1.0, 1.0, frozenset({END}), 300))
    assert TOKENIZER.decode(recorder.asked[0]) == "user: the quick brown fox\n\nassistant:"
    assert written[0].prompt == request.prompt.prompt
    assert "by way of text: the student's chat template renders a prompt as" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["reverse_kl", "sequence_kd"])
def test_an_option_of_the_template_reaches_every_teacher(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trl issue 6510: with the option on one side only, one template seemed to be two."""
    template = f"{TOKENIZER.chat_template}{{% if not thinking | default(true) %}}<|im_start|>{{% endif %}}"
    teacher, recorder, encoder = opened(monkeypatch, kind, template, template, ours=template, thinking=False)
    assert teacher.scores
    prompt = encoder.prompt(EXAMPLE)
    assert TOKENIZER.decode(prompt.prompt).endswith("assistant\n<|im_start|>")
    teacher.write([EXAMPLE], [SampleRequest(prompt, (1,), 0)], Decoding(4, 1.0, 1.0, frozenset({END}), 300))
    assert recorder.asked[0] == list(prompt.prompt)


@pytest.mark.parametrize("kind", ["reverse_kl", "sequence_kd"])
def test_each_of_several_teachers_needs_the_template_of_the_first(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tinker-cookbook issue 796 again: the second teacher's prompts were not its own."""
    same = str(TOKENIZER.chat_template)
    with pytest.raises(BadInput, match=r"teacher\.model: the chat template of 'teacher 3' renders a prompt as"):
        opened(monkeypatch, kind, same, same, OTHER_TEMPLATE)


def test_a_teacher_whose_template_refuses_a_prompt_says_so_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + OTHER_TEMPLATE
    teacher, _, _ = opened(monkeypatch, "sequence_kd", strict)
    teacher.check_prompts([EXAMPLE], "train.jsonl")
    long = Example((("system", "fox"), ("user", "dog")), None, "line 2")
    with pytest.raises(BadInput, match=r"1 of 2 prompts of 'train\.jsonl', first line 2: .*one turn only"):
        teacher.check_prompts([EXAMPLE, long], "train.jsonl")


def server(monkeypatch: pytest.MonkeyPatch, texts: list[str], shift: int = 0) -> ServedTeacher:
    """A server that lists, for each position, the token that stands ``shift`` positions on, with the text it has."""

    def answer(_self: Endpoint, _path: str, body: dict[str, Any], _most: int) -> object:
        ids = body["prompt"]
        listed = [{str(ids[(at + shift) % len(ids)]): {"logprob": -1.0}} for at in range(len(ids))]
        for position, text in zip(listed, itertools.cycle(texts)):
            next(iter(position.values()))["decoded_token"] = text
        return {"choices": [{"prompt_logprobs": [None, *listed[1:]]}]}

    monkeypatch.setattr(Endpoint, "post", answer)
    monkeypatch.setattr(Endpoint, "get", lambda *_: None)  # it lists no models
    address = {"url": "http://127.0.0.1:1/v1", "model": "served", "top_logprobs": 1, "concurrency": 1}
    return ServedTeacher(config.Served(**address, api_key_env=None, timeout=1.0, patience=0.0), 300)


def test_a_servers_log_probabilities_must_stand_at_our_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """ms-swift issue 9671: the teacher's tokens did not line up with the student's, and were used all the same."""
    rows = [([40, 41], [50, 51])]
    assert server(monkeypatch, ["?"]).score(rows) == [[{50: -1.0}, {51: -1.0}]]
    with pytest.raises(Missing, match="do not belong to their positions"):
        server(monkeypatch, ["?"], shift=1).score(rows)


def test_a_servers_tokens_must_be_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """ms-swift issue 9671 again: the ids line up, and mean other tokens there."""
    ends = frozenset({END})
    settings = tiny_config(teacher=config.Teacher(served=server(monkeypatch, ["nonsense"]).served))
    sampler = Sampler(Decoding(4, 1.0, 1.0, ends, 300), END, CPU)
    with pytest.raises(BadInput, match="another tokenizer"):
        teachers.open_teacher(settings, TOKENIZER, sampler, Encoder(TOKENIZER, ends))


# --- objectives -------------------------------------------------------------------------------------------------------


def test_an_interior_beta_near_an_end_is_refused_for_it_kills_the_gradient() -> None:
    """Trl issue 6780: generalized JSD does not become a KL near β = 0 or 1; its gradient vanishes there."""
    logits = torch.randn(2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    teacher = log_probs(logits[:1])

    def slope(loss: Any) -> float:
        student = logits[1:].clone().requires_grad_()
        return float(torch.autograd.grad(loss(log_probs(student), teacher).sum(), student)[0].norm())

    ends = [slope(forward_kl), slope(reverse_kl)]
    for beta, end in ((0.001, 0), (0.999, 1)):
        assert slope(lambda q, p, beta=beta: jsd(q, p, beta)) < 0.01 * ends[end]
        with pytest.raises(ValidationError, match=f"use kind: {('forward_kl', 'reverse_kl')[end]}"):
            JSD(beta=beta)
    assert slope(lambda q, p: jsd(q, p, 0.5)) > 0.1 * min(ends)
