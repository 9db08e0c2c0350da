"""prove: the exact estimator on transformers, over all possible responses; and verdicts on users' losses."""

from __future__ import annotations

import functools
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from skill_kd.cli import main
from skill_kd.errors import ExitCode, UsageError
from skill_kd.kd import config
from skill_kd.kd.dataset.batch import Row, collate, pad_left
from skill_kd.kd.losses.divergences import log_probs
from skill_kd.kd.losses.estimators import Estimator, Responses, minillm_exact, token_logp
from skill_kd.kd.losses.masking import suffix_sum
from skill_kd.kd.model.student import StudentWithLoss, find_head, response_hidden_states, response_logits
from skill_kd.kd.rollouts.decoding import Decoding, sample
from skill_kd.kd.seeds import uniforms
from skill_kd.kd.train.objectives import Objective, build_objective
from skill_kd.prove import Verdict, judging, load_loss
from skill_kd.prove.enumeration import all_responses
from skill_kd.prove.known import KNOWN
from skill_kd.spec import MiniLLM

torch.set_num_threads(1)

# --- real transformers ------------------------------------------------------------------------------------------------

EOS, CPU = 0, torch.device("cpu")
PROMPTS = ((3,), (1, 2, 3, 1))
"""Prompts of different lengths, so that one is padded on the left."""
SHAPES = {"4 tokens, length 4": (4, 4), "5 tokens, length 3": (5, 3)}


def transformer(vocabulary: int, seed: int) -> LlamaForCausalLM:
    """Return a random Llama in float64. Its norm is replaced, because the original computes in float32."""
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=1, initializer_range=0.5, **shape)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).double().eval()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(shape["hidden_size"], eps=module.variance_epsilon, dtype=torch.float64)
            model.set_submodule(name, norm)
    return model


def responses_of(vocabulary: int, limit: int) -> list[tuple[int, ...]]:
    enumerated = all_responses(vocabulary, limit, EOS)
    rows = zip(enumerated.ids_NT, enumerated.mask_NT, strict=True)
    return [tuple(ids[mask].tolist()) for ids, mask in rows]


def alone(model: nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """Return the log-probability of each response token by one pass over one row: no cache, padding or mask."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1).gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)


def weighted(estimator: Estimator) -> Estimator:
    """Return the estimator with each row's positions times a weight, which is passed as ``from_data_B``."""

    def loss(student_logp: Tensor, teacher_logp: Tensor, ids: Tensor, *given: Tensor) -> Tensor:
        *weights, share = given
        return share * estimator.loss(student_logp, teacher_logp, ids, *weights)

    def weights(responses: Responses, logq_BT: Tensor, logp_BT: Tensor) -> tuple[Tensor, ...]:
        assert responses.from_data_B is not None
        return (*estimator.weights(responses, logq_BT, logp_BT), responses.from_data_B.unsqueeze(1))

    return replace(estimator, loss=loss, weights=weights)


class Enumerated:
    """A student and a teacher, every response to every prompt, and the gradient of the mean KL(q ‖ p) by autograd."""

    def __init__(self, vocabulary: int, limit: int, seed: int) -> None:
        self.vocabulary = vocabulary
        self.student, self.teacher = transformer(vocabulary, seed), transformer(vocabulary, seed + 50)
        self.pairs = list(itertools.product(PROMPTS, responses_of(vocabulary, limit)))
        logq = [alone(self.student, *pair) for pair in self.pairs]
        with torch.no_grad():
            self.logp = [alone(self.teacher, *pair) for pair in self.pairs]
        self.logq = [each.detach() for each in logq]
        terms = [q.sum().exp() * (q.sum() - p.sum()) for q, p in zip(logq, self.logp, strict=True)]
        kl = torch.stack(terms).sum() / len(PROMPTS)
        self.gradient = torch.autograd.grad(kl, list(self.student.parameters()))

    def behavior(self, teacher_mix: float) -> list[Tensor]:
        pairs = zip(self.logq, self.logp, strict=True)
        return [(teacher_mix * p.exp() + (1 - teacher_mix) * q.exp()).log() for q, p in pairs]

    def expected(self, objective: Objective, teacher: nn.Module, dense: bool = False) -> tuple[Tensor, ...]:
        """Return E[∇ loss] of a batch with one rollout a prompt, by the path that training takes.

        That is from hidden states, in chunks; ``dense`` has all log-probabilities at once, as a served teacher needs.
        """
        drawn_with = self.behavior(objective.teacher_mix)
        rows = [
            Row(prompt, response, (True,) * len(response), "student", tuple(logp.tolist()))
            for (prompt, response), logp in zip(self.pairs, drawn_with, strict=True)
        ]
        batch = collate(rows, EOS, CPU)
        # A batch keeps these in float32; the proof is of the mathematics.
        wide = torch.nn.utils.rnn.pad_sequence(drawn_with, batch_first=True)
        probability_N = torch.stack([logp.sum().exp() for logp in drawn_with])
        batch = replace(batch, behaviour_logp_BT=wide, from_data_B=probability_N)
        policy, head = StudentWithLoss(self.student, self.vocabulary), find_head(teacher, self.vocabulary)
        assert policy.head is not None
        assert head is not None
        with torch.no_grad():
            view = (
                log_probs(response_logits(teacher, batch, self.vocabulary))
                if dense
                else response_hidden_states(teacher, batch, head)
            )
        total = policy(batch, weighted(objective.loss), view, 1.0)
        one_rollout_each = [next(row for row in rows if row.prompt == prompt) for prompt in PROMPTS]
        return torch.autograd.grad(total / objective.count(one_rollout_each), list(self.student.parameters()))


@functools.cache
def enumerated(shape: str, seed: int) -> Enumerated:
    return Enumerated(*SHAPES[shape], seed)


def exact(teacher_mix: float) -> Objective:
    return build_objective(config.MiniLLM.of(MiniLLM(estimator="exact", teacher_mix=teacher_mix).model_dump()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("teacher_mix", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("dense", [False, True], ids=["hidden states", "log-probabilities"])
def test_exact_has_the_gradient_of_reverse_kl_on_a_transformer(
    shape: str, seed: int, teacher_mix: float, dense: bool
) -> None:
    world = enumerated(shape, seed)
    gradients = world.expected(exact(teacher_mix), world.teacher, dense)
    for gradient, expected in zip(gradients, world.gradient, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)
    assert max(float(expected.abs().max()) for expected in world.gradient) > 0.01


@pytest.mark.parametrize("teacher_mix", [0.0, 0.5])
def test_transformer_as_its_own_teacher_has_no_gradient(teacher_mix: float) -> None:
    shape = "4 tokens, length 4"
    world = Enumerated(*SHAPES[shape], seed=0)
    world.logp = world.logq
    for gradient in world.expected(exact(teacher_mix), world.student):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


def test_paper_estimator_is_biased_on_a_transformer() -> None:
    world = enumerated("4 tokens, length 4", 0)
    paper = build_objective(config.MiniLLM.of(MiniLLM(estimator="paper").model_dump()))
    expected, gradient = (
        torch.cat([each.flatten() for each in parts])
        for parts in (world.gradient, world.expected(paper, world.teacher))
    )
    assert 0.3 < float(torch.cosine_similarity(gradient, expected, dim=0)) < 0.99


def test_sampler_reports_the_log_probs_of_the_mixture() -> None:
    student, teacher = transformer(5, 1), transformer(5, 51)
    uniform, coins = uniforms([(1, row) for row in range(4)], 6), uniforms([("coins",)], 6)[0]
    prompts, mask = pad_left([*PROMPTS, *PROMPTS], EOS)
    decoding = Decoding(6, 1.0, 1.0, frozenset({EOS}), 5)
    rollout = sample(student, prompts, mask, uniform, decoding, teacher, 0.4, coins)
    assert coins.min() < 0.4 < coins.max()
    for row, prompt in enumerate((*PROMPTS, *PROMPTS)):
        response = tuple(rollout.ids_BT[row][rollout.mask_BT[row]].tolist())
        with torch.no_grad():
            q, p = alone(student, prompt, response).exp(), alone(teacher, prompt, response).exp()
        reported = rollout.behaviour_logp_BT[row, : len(response)]
        torch.testing.assert_close(reported, (0.4 * p + 0.6 * q).log(), rtol=0, atol=1e-12)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def judge(loss: Any, name: str = "mine", seeds: int = 2, mixes: Sequence[float] = (0.0, 0.2, 0.5)) -> Verdict:
    return judging.judge(loss, name, seeds, mixes)


def kind(loss: Any, *mixes: float) -> str:
    return judge(loss, mixes=mixes or (0.0, 0.2, 0.5)).kind


EXPECTED = {
    "Single + Long, per-decision weights (`exact`)": "exact",
    "Single + Long, whole-sequence weight": "exact",
    "Eq 2, whole-sequence weight": "exact",
    "Eq 5 taken literally, Π_{≤t} on token t": "on_policy_only",
    "per-token weight w_t": "on_policy_only",
    "K1 back-propagated": "zero",
    "forward KL on sampled prefixes": "forward_kl",
    "forward KL on sampled prefixes ÷ each response's length": "forward_kl",
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_loss_gets_its_verdict_and_is_recognized(name: str) -> None:
    verdict = judge(KNOWN[name])
    assert verdict.kind == EXPECTED.get(name, "biased")
    twins = [known for known, expected in EXPECTED.items() if expected == "exact"]
    assert verdict.same_as == (twins[0] if name in twins else name)
    assert verdict.masked_positions_matter is (name == "`exact`, pads trained")


def published(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
    """Return the "reverse KL" of a widely copied guide: cross-entropy with the teacher, batchmean, without a mask."""
    return -(teacher.exp() * student).sum() / len(student)


def published_policy_gradient(
    student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None
) -> Tensor:
    """Return the same guide's policy gradient: minus the mean log-probability of the sampled tokens."""
    return -token_logp(student, ids).mean()


@pytest.mark.parametrize("loss", [published, published_policy_gradient])
def test_published_wrong_loss_fails_as_swapped_direction(loss: Any) -> None:
    verdict = judge(loss, "published")
    assert verdict.kind == "forward_kl"
    assert not verdict.exact
    assert "swapped" in verdict.says
    assert "KL(teacher ‖ student), not KL(student ‖ teacher)" in verdict.says
    assert verdict.masked_positions_matter
    assert "masked positions affect its gradient" in verdict.says


def test_loss_on_teacher_samples_is_forward_kl() -> None:
    """Sequence-level distillation: no gradient on the student's own samples, that of KL(p ‖ q) on the teacher's."""

    def imitation(*given: Tensor) -> Tensor:
        return torch.where(given[3], -token_logp(given[0], given[2]), 0.0)

    assert kind(imitation, 0.2, 0.5) == "forward_kl"
    assert kind(imitation) == "zero"


@pytest.mark.parametrize("factor", [0.25, 3.0])
def test_constant_factor_is_a_step_size(factor: float) -> None:
    verdict = judge(lambda *given: factor * minillm_exact(*given))
    assert (verdict.kind, verdict.exact) == ("step_size", True)
    assert verdict.says.endswith(f"times {factor:g}")


def test_factor_that_depends_on_the_policies_is_a_bias() -> None:
    def adaptive(*given: Tensor) -> Tensor:
        return minillm_exact(*given) * (1 + given[1][0, 0, 0].exp())

    assert kind(adaptive) == "biased"


def test_negative_factor_is_a_wrong_sign() -> None:
    assert kind(lambda *given: -minillm_exact(*given)) == "wrong_sign"


def test_mean_over_tokens_is_recognized() -> None:
    def mean(*given: Tensor) -> Tensor:
        return minillm_exact(*given).sum() / given[3].sum()

    assert judge(mean).same_as == "`exact` ÷ each response's length"


@pytest.mark.parametrize("form", ["[B, T]", "[B]", "scalar"])
def test_loss_may_be_summed_over_tokens_or_over_everything(form: str) -> None:
    def loss(*given: Tensor) -> Tensor:
        loss_BT = minillm_exact(*given)
        return {"[B, T]": loss_BT, "[B]": loss_BT.sum(dim=1), "scalar": loss_BT.sum()}[form]

    assert kind(loss) == "exact"


def test_float32_inside_a_loss_is_not_a_bias() -> None:
    def narrow(*given: Tensor) -> Tensor:
        return minillm_exact(*(g.float() if g is not None and g.is_floating_point() else g for g in given))

    assert kind(narrow) == "exact"


def test_on_policy_loss_is_exact_without_teacher_mixing() -> None:
    def unweighted(*given: Tensor) -> Tensor:
        return minillm_exact(*given[:4])

    assert kind(unweighted) == "on_policy_only"
    assert kind(unweighted, 0.0) == "exact"


def test_undetached_return_from_the_next_token_adds_variance_but_no_bias() -> None:
    def undetached(student: Tensor, teacher: Tensor, ids: Tensor, mask: Tensor, behavior: Tensor | None) -> Tensor:
        reward = torch.where(mask, token_logp(teacher, ids) - token_logp(student, ids), 0.0)
        later = suffix_sum(reward) - reward
        pull = torch.where(mask, (later.detach() - later) * token_logp(student, ids), 0.0)
        return minillm_exact(student, teacher, ids, mask, behavior) + pull

    assert kind(undetached, 0.0) == "exact"


def test_values_at_masked_positions_are_detected_without_gradient_there() -> None:
    def leaky(*given: Tensor) -> Tensor:
        return minillm_exact(*given) * (1 + given[0][:, -1:, 0].detach())

    assert judge(leaky, "mine", seeds=1).masked_positions_matter


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradient_that_is_not_finite_is_reported(value: float) -> None:
    verdict = judge(lambda *given: value * minillm_exact(*given), "mine", seeds=1)
    assert verdict.kind == "not_finite"
    assert not verdict.exact
    json.loads(json.dumps(verdict.to_json(), allow_nan=False))


def test_loss_that_writes_into_its_arguments_affects_only_its_row() -> None:
    def greedy(*given: Tensor) -> Tensor:
        loss_BT = minillm_exact(*given)
        given[2].zero_()
        return loss_BT

    assert kind(greedy) == "exact"


def test_loss_with_a_failing_backward_pass_is_reported() -> None:
    def spoiling(*given: Tensor) -> Tensor:
        loss_BT = minillm_exact(*given)
        given[3].zero_()
        return loss_BT

    with pytest.raises(UsageError, match=r"mine has no gradient that torch can compute: .*inplace"):
        kind(spoiling)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda student, teacher: student, "raised TypeError"),
        (lambda *given: given[0].gather(-1, given[2]), "raised RuntimeError"),
        (lambda *given: 0.0, "must return a tensor"),
        (lambda *given: given[0].detach(), "without gradient"),
    ],
)
def test_loss_that_cannot_be_called_names_the_arguments(loss: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        judge(loss, "mine:loss", seeds=1)
    assert str(refused.value).startswith("mine:loss")
    assert "\n" not in str(refused.value)


def test_table_shows_the_largest_error_and_the_range() -> None:
    verdict = judge(KNOWN["Single alone (`reverse_kl`, on-policy)"], "mine", seeds=3)
    head, _, body = verdict.table().partition("\n\n")
    assert "verdict           biased" in head
    rows = [line.split("  ")[0] for line in body.splitlines()]
    assert rows == ["teacher_mix", "0", "0.2", "0.5"]
    cosines = [case.cosine for case in verdict.cases if case.teacher_mix == 0]
    assert f"{min(cosines):.3f} … {max(cosines):.3f}" in body.splitlines()[1]


def test_json_has_every_case() -> None:
    document = json.loads(json.dumps(judge(minillm_exact).to_json()))
    assert (document["kind"], document["exact"], document["loss"]) == ("exact", True, "mine")
    assert [(case["teacher_mix"], case["seed"]) for case in document["cases"]] == [
        *((0.0, seed) for seed in range(2)),
        *((0.2, seed) for seed in range(2)),
        *((0.5, seed) for seed in range(2)),
    ]
    assert max(case["error"] for case in document["cases"]) < 1e-10


# --- from a user's folder ---------------------------------------------------------------------------------------------

MINE = """
from helper_of_{name} import scale
from skill_kd.kd.losses.divergences import reverse_kl

def single(student, teacher, ids, mask, behavior):
    return scale(reverse_kl(student, teacher)) * mask

not_a_function = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a user's loss and a module that the loss imports; the names differ for each test."""
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MINE.format(name=name))
    (tmp_path / f"helper_of_{name}.py").write_text("def scale(x):\n    return x\n")
    (tmp_path / f"broken_{name}.py").write_text("raise SystemExit('stop\\nhere')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # undone after the test
    return tmp_path


def module_of(folder: Path) -> str:
    return next(path.stem for path in folder.glob("mine_*.py"))


@pytest.mark.parametrize("form", ["module", "file", "path"])
def test_loss_is_loaded_by_module_or_by_file(form: str, folder: Path) -> None:
    name = module_of(folder)
    source = {"module": name, "file": f"{name}.py", "path": str(folder / f"{name}.py")}[form]
    loss = load_loss(f"{source}:single")
    assert judge(loss, "mine", seeds=1).same_as == "Single alone (`reverse_kl`, on-policy)"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("just_a_name", "is not the name of a loss"),
        (":single", "is not the name of a loss"),
        ("MODULE:", "is not the name of a loss"),
        ("MODULE:nothing_here", "has no function 'nothing_here'"),
        ("MODULE:not_a_function", "'not_a_function'"),
        ("no_such_module_at_all:single", "ModuleNotFoundError"),
        ("no/such/file.py:single", "there is no such file"),
        ("broken_MODULE:single", "SystemExit: stop here"),
    ],
)
def test_loading_error_is_one_line(name: str, words: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=words) as refused:
        load_loss(name.replace("MODULE", module_of(folder)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("skill_kd.kd.losses.estimators:minillm_exact", ExitCode.OK),
        ("skill_kd.kd.losses.estimators:minillm_paper", ExitCode.NO_GO),
        ("skill_kd.kd.losses.estimators:no_such_loss", ExitCode.USAGE),
        ("skill_kd.kd.losses.estimators:log_weights", ExitCode.USAGE),
    ],
)
def test_verb_exits_with_its_code(name: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prove", name, "--seeds", "1", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["exit_code" if "errors" in document else "exact"] in (code, code == ExitCode.OK)


def test_verb_prints_the_table_for_the_given_mixes(capsys: pytest.CaptureFixture[str]) -> None:
    name = "skill_kd.prove.known:eq_5"
    assert main(["prove", name, "--seeds", "1", "--teacher-mix", "0"]) == ExitCode.OK
    assert "verdict           exact" in capsys.readouterr().out
    assert main(["prove", name, "--seeds", "1", "--teacher-mix", "0", "--teacher-mix", "0.3"]) == ExitCode.NO_GO


def test_verb_without_torch_names_torch() -> None:
    """A machine that only plans and generates has no torch."""
    ask = "import sys; sys.modules['torch'] = None\nfrom skill_kd.cli import main\nsys.exit(main(['prove', 'a:b']))"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "torch" in done.stderr
    assert done.stderr.count("\n") == 1
