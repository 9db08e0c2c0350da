"""sampling: draws from exactly the distribution it reports, whatever the padding, the batch and the coins.

Tabular models are enumerated: every coin pattern and every cell of uniforms, so distributions agree to rounding. Tiny
real transformers are held against full forward passes of single unpadded rows, without cache or mask.
"""

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import reference
import torch
from torch import Tensor, nn

from skill_kd.kd.losses.divergences import log_probs
from skill_kd.kd.losses.estimators import minillm_exact
from skill_kd.kd.rollouts.decoding import MIXED_GROUP, Decoding, Rollout, draw, sample, sampling_logp
from skill_kd.kd.seeds import seeded, uniforms
from skill_kd.prove import enumeration
from skill_kd.prove.enumeration import AllResponses

torch.set_num_threads(1)  # Tensors this small only lose time to threads.

ALMOST_1 = 1 - 2.0**-53
NO_EOS = frozenset({99})


def decoding(
    max_new_tokens: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos_ids: frozenset[int] = NO_EOS,
    vocabulary: int = 5,
) -> Decoding:
    return Decoding(max_new_tokens, temperature, top_p, eos_ids, vocabulary)


def random_uniforms(rows: int, steps: int, seed: int = 0) -> Tensor:
    return uniforms([(seed, row) for row in range(rows)], steps)


# draw.


def test_each_token_is_drawn_for_exactly_its_share_of_uniforms() -> None:
    share = [0.05, 0.4, 0.0, 0.3, 0.25, 0.0]
    steps = 20_000
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    logp = torch.tensor(share, dtype=torch.float64).log().expand(steps, -1)
    counts = torch.bincount(draw(logp, grid), minlength=len(share))
    assert counts.tolist() == [round(x * steps) for x in share]


def test_the_edges_of_the_intervals_are_where_the_cumulative_distribution_puts_them() -> None:
    logp = log_probs(torch.randn(1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    edges = list(itertools.accumulate(logp[0].exp().tolist()))
    for token, edge in enumerate(edges[:-1]):
        below, above = draw(
            logp.expand(2, -1), torch.tensor([edge - 1e-14, edge + 1e-14], dtype=torch.float64)
        ).tolist()
        assert (below, above) == (token, token + 1)


def test_tokens_of_probability_zero_are_never_drawn_at_an_edge() -> None:
    logp = log_probs(torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf, -math.inf]]))
    edges = torch.tensor([0.0, 0.5, 0.5 - 1e-17, ALMOST_1], dtype=torch.float64)
    assert draw(logp.expand(4, -1), edges).tolist() == [1, 3, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_largest_uniform_stays_inside_the_support(dtype: torch.dtype) -> None:
    """The float32 probabilities of a large vocabulary do not sum to 1, on either side."""
    logits = 3 * torch.randn(64, 20_000, generator=torch.Generator().manual_seed(2)).to(dtype)
    logits[:, -100:] = -math.inf
    logp = log_probs(logits)
    ids = draw(logp, torch.full((64,), ALMOST_1, dtype=torch.float64))
    assert (ids < 20_000 - 100).all()
    assert (logp.gather(1, ids.unsqueeze(1)).exp() > 0).all()


def test_rare_tokens_keep_their_chance() -> None:
    rare = 1e-12
    logp = torch.tensor([[math.log1p(-2 * rare), math.log(rare), math.log(rare)]]).expand(3, -1)
    drawn = draw(logp, torch.tensor([0.5, 1 - 1.5 * rare, 1 - 0.5 * rare], dtype=torch.float64))
    assert drawn.tolist() == [0, 1, 2]


# sampling_logp.


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999, 1.0])
def test_nucleus_and_temperature_agree_with_the_reference(temperature: float, top_p: float) -> None:
    logits = 2 * torch.randn(30, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    logp = sampling_logp(logits, decoding(temperature=temperature, top_p=top_p, vocabulary=9))
    assert logp.shape == (30, 9)
    for row, drawn in zip(logits[:, :9].tolist(), logp, strict=True):
        expected = reference.nucleus(reference.softmax(row, temperature), top_p)
        torch.testing.assert_close(drawn.exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.25, 0.15]], dtype=torch.float64).log()
    for top_p, kept in ((0.49, {1}), (0.51, {1, 2}), (0.74, {1, 2}), (0.76, {1, 2, 3}), (0.95, {0, 1, 2, 3})):
        probabilities = sampling_logp(logits, decoding(top_p=top_p, vocabulary=4))[0].exp()
        assert {v for v in range(4) if probabilities[v] > 0} == kept
        assert float(probabilities.sum()) == pytest.approx(1)


@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_temperature_0_draws_the_likeliest_token_whatever_the_uniform(top_p: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [5.0, 0.0, 5.0, 1.0]])
    logp = sampling_logp(logits, decoding(temperature=0.0, top_p=top_p))
    for uniform in (0.0, 0.5, ALMOST_1):
        assert draw(logp, torch.full((2,), uniform, dtype=torch.float64)).tolist() == [1, 0]
    assert logp.exp().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]


def test_half_precision_logits_are_sampled_in_float32() -> None:
    logits = torch.randn(2, 6, generator=torch.Generator().manual_seed(4)).bfloat16()
    logp = sampling_logp(logits, decoding(vocabulary=6))
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.exp().sum(dim=-1), torch.ones(2))


# Seeds.


def test_streams_are_the_same_on_every_machine() -> None:
    """Frozen: a run that resumes elsewhere, or under a later release, must draw what it would have drawn."""
    expected = [
        ["0x1.2d3fcb9c85a6ap-1", "0x1.d59c02ba106eap-1"],
        ["0x1.85f6e109eb168p-1", "0x1.0c644d4913aafp-1"],
    ]
    assert [[value.hex() for value in row] for row in uniforms([("frozen", 1), ("frozen", 2)], 2).tolist()] == expected


def test_a_stream_depends_on_its_key_alone() -> None:
    several, alone = uniforms([(1, "a"), (2, "a"), (1, "b")], 50), uniforms([(2, "a")], 50)
    assert torch.equal(several[1], alone[0])
    assert len({tuple(row) for row in several.tolist()}) == 3
    assert torch.equal(torch.rand(3, generator=seeded(5, "x")), torch.rand(3, generator=seeded(5, "x")))


def test_uniforms_are_uniform_double_precision_numbers() -> None:
    values = uniforms([("spread", row) for row in range(100)], 100)
    assert values.dtype == torch.float64
    assert 0 <= float(values.min()) < 0.001
    assert 0.999 < float(values.max()) < 1
    assert float(values.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 10_000))
    # Streams of neighboring keys are not alike: the columns' correlation is that of chance.
    assert abs(float(torch.corrcoef(values)[0, 1])) < 0.5


# Tabular models: exact distributions.


class Tabular(nn.Module):
    """A row of logits for each response prefix, after a prompt of one token. Its cache is what it has read."""

    def __init__(self, theta_SV: Tensor, responses: AllResponses) -> None:
        super().__init__()
        self.theta_SV = theta_SV
        self.row_of = {
            tuple(ids[:t]): row
            for ids, rows, mask in zip(
                responses.ids_NT.tolist(), responses.prefix_NT.tolist(), responses.mask_NT.tolist(), strict=True
            )
            for t, (row, counted) in enumerate(zip(rows, mask, strict=True))
            if counted
        }

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Tensor | None,
        use_cache: bool,
        logits_to_keep: int,
    ) -> SimpleNamespace:
        read = input_ids if past_key_values is None else torch.cat([past_key_values, input_ids], dim=1)
        assert attention_mask.shape == read.shape
        length = read.shape[1]
        # Row 0 after the end, where the result must not matter.
        rows = [
            [self.row_of.get(tuple(ids[1:end]), 0) for end in range(length - logits_to_keep + 1, length + 1)]
            for ids in read.tolist()
        ]
        return SimpleNamespace(logits=self.theta_SV[torch.tensor(rows)], past_key_values=read)


ALPHA = 0.3


@pytest.fixture(scope="module")
def responses() -> AllResponses:
    return enumeration.all_responses(vocabulary=3, max_length=3)


@pytest.fixture(scope="module")
def policies(responses: AllResponses) -> tuple[Tensor, Tensor]:
    return enumeration.random_policy(responses, 0), enumeration.random_policy(responses, 1)


def cells(distributions: list[list[float]]) -> list[tuple[float, float]]:
    """Cut [0, 1) at every edge of every distribution; return (middle, length) of each piece, in which draws agree."""
    edges = sorted({0.0, 1.0, *(edge for p in distributions for edge in itertools.accumulate(p[:-1]))})
    return [((low + high) / 2, high - low) for low, high in itertools.pairwise(edges)]


@functools.cache
def depths(limit: int = 3, vocabulary: int = 3) -> list[int]:
    """Return the length of each prefix, in the order of the table's rows."""
    return [length for length in range(limit) for _ in range((vocabulary - 1) ** length)]


def enumerated_rollouts(
    responses: AllResponses, student: Tensor, teacher: Tensor, teacher_mix: float
) -> list[tuple[Tensor, Rollout]]:
    """Return (probability_B, rollout) for every coin pattern; the rows are all cells of the uniforms."""
    tables = torch.cat([student, teacher]).softmax(dim=-1).tolist()
    steps = [cells([p for p, depth in zip(tables, 2 * depths(), strict=True) if depth == t]) for t in range(3)]
    grid = list(itertools.product(*steps))
    uniform = torch.tensor([[middle for middle, _ in row] for row in grid], dtype=torch.float64)
    area = torch.tensor([math.prod(length for _, length in row) for row in grid], dtype=torch.float64)
    prompts = torch.ones(len(grid), 1, dtype=torch.long)
    chance = {0.0: teacher_mix, ALMOST_1: 1 - teacher_mix}
    rollouts = []
    for coins in itertools.product(chance, repeat=3):
        rollout = sample(
            Tabular(student, responses),
            prompts,
            prompts.bool(),
            uniform,
            decoding(3, eos_ids=frozenset({0}), vocabulary=3),
            teacher=Tabular(teacher, responses),
            teacher_mix=teacher_mix,
            coin_T=torch.tensor(coins, dtype=torch.float64),
        )
        rollouts.append((area * math.prod(chance[coin] for coin in coins), rollout))
    return rollouts


def which_response(responses: AllResponses, rollout: Rollout) -> Tensor:
    """Return the number of each row's response, by the tokens its mask holds."""

    def key(ids: list[int], mask: list[bool]) -> tuple[int, ...]:
        return tuple(token for token, counted in zip(ids, mask, strict=True) if counted)

    names = zip(responses.ids_NT.tolist(), responses.mask_NT.tolist(), strict=True)
    number = {key(*name): n for n, name in enumerate(names)}
    return torch.tensor(
        [number[key(*row)] for row in zip(rollout.ids_BT.tolist(), rollout.mask_BT.tolist(), strict=True)]
    )


def test_with_shared_coins_every_row_has_exactly_the_mixture_of_eq_4(
    responses: AllResponses, policies: tuple[Tensor, Tensor]
) -> None:
    expected = enumeration.mixture_logp(*policies, responses, ALPHA)
    marginal = torch.zeros(len(expected), dtype=torch.float64)
    for probability, rollout in enumerated_rollouts(responses, *policies, ALPHA):
        numbers = which_response(responses, rollout)
        marginal.index_add_(0, numbers, probability)
        reported = torch.where(rollout.mask_BT, rollout.behaviour_logp_BT, 0.0)
        torch.testing.assert_close(reported, expected[numbers], rtol=0, atol=1e-12)
    torch.testing.assert_close(marginal, expected.sum(dim=1).exp(), rtol=0, atol=1e-12)


def test_sampler_and_exact_estimator_together_follow_the_gradient_of_reverse_kl(
    responses: AllResponses, policies: tuple[Tensor, Tensor]
) -> None:
    student, teacher = policies
    leaf = student.detach().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for probability, rollout in enumerated_rollouts(responses, student, teacher, ALPHA):
        rows = responses.prefix_NT[which_response(responses, rollout)]
        loss = minillm_exact(
            log_probs(leaf)[rows],
            log_probs(teacher)[rows],
            rollout.ids_BT,
            rollout.mask_BT,
            rollout.behaviour_logp_BT,
        )
        total = total + (probability * loss.sum(dim=1)).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    expected = enumeration.exact_gradient(student, teacher, responses)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


def test_the_teacher_speaks_where_the_coin_is_below_the_mix_and_only_there(
    responses: AllResponses, policies: tuple[Tensor, Tensor]
) -> None:
    """A teacher and a student that are each certain of one token show who spoke."""
    sure = torch.full((2, responses.prefixes, 3), -math.inf, dtype=torch.float64)
    sure[0, :, 1], sure[1, :, 2] = 0.0, 0.0
    coins = torch.tensor([math.nextafter(ALPHA, 0), ALPHA, 0.0], dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.long)
    rollout = sample(
        Tabular(sure[0], responses),
        one,
        one.bool(),
        torch.full((1, 3), 0.5, dtype=torch.float64),
        decoding(3, vocabulary=3),
        Tabular(sure[1], responses),
        ALPHA,
        coins,
    )
    assert rollout.ids_BT.tolist() == [[2, 1, 2]]
    expected = torch.tensor([[ALPHA, 1 - ALPHA, ALPHA]], dtype=torch.float64).log()
    torch.testing.assert_close(rollout.behaviour_logp_BT, expected)


def test_empirical_frequencies_follow_eq_4(responses: AllResponses, policies: tuple[Tensor, Tensor]) -> None:
    student, teacher = policies
    groups, prompts = 250, torch.ones(MIXED_GROUP, 1, dtype=torch.long)
    models = Tabular(student, responses), Tabular(teacher, responses)
    counts = torch.zeros(3, dtype=torch.float64)
    for group in range(groups):
        rollout = sample(
            models[0],
            prompts,
            prompts.bool(),
            uniforms([("frequencies", group, row) for row in range(MIXED_GROUP)], 1),
            decoding(1, vocabulary=3),
            models[1],
            ALPHA,
            uniforms([("coin", group)], 1)[0],
        )
        counts += torch.bincount(rollout.ids_BT[:, 0], minlength=3)
    q, p = student[0].softmax(dim=-1), teacher[0].softmax(dim=-1)
    mixed = ALPHA * p + (1 - ALPHA) * q
    within = ALPHA * p * (1 - p) + (1 - ALPHA) * q * (1 - q)
    between = ALPHA * (1 - ALPHA) * (p - q) ** 2
    sigma = ((within / MIXED_GROUP + between) / groups).sqrt()
    frequencies = counts / (groups * MIXED_GROUP)
    assert ((frequencies - mixed).abs() < 4 * sigma).all()
    assert ((frequencies - q).abs() > 4 * sigma).any()


# Real transformers, tiny and random.


@functools.cache
def tiny(family: str, vocabulary: int = 7, seed: int = 0) -> nn.Module:
    import transformers

    shape = {
        "vocab_size": vocabulary,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "initializer_range": 0.5,
    }
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **shape)
    elif family == "mamba":  # recurrent: its cache has another name, and reads one token at a time
        config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=4, **shape)
    elif family == "qwen3_next":  # a recurrent layer, then attention
        config = transformers.Qwen3NextConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            layer_types=["linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=8,
            shared_expert_intermediate_size=8,
            **shape,
        )
    else:
        blocks = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
        if family in {"qwen3", "gemma3"}:
            blocks["head_dim"] = 8
        if family in {"mistral", "gemma3"}:
            blocks["sliding_window"] = 4  # shorter than the prompts and the responses
        if family == "gemma3":
            blocks["layer_types"] = ["sliding_attention", "full_attention"]
        kinds = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral", "gemma3": "Gemma3Text"}
        kind = f"{kinds[family]}Config"
        config = getattr(transformers, kind)(**blocks, num_key_value_heads=2, max_position_embeddings=64, **shape)
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


PROMPTS = ([3], [1, 4, 2, 2, 6], [5, 3, 1])


def left_padded(prompts: tuple[list[int], ...] = PROMPTS, pad: int = 0, extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts)) + extra
    rows = [[*[pad] * (width - len(prompt)), *prompt] for prompt in prompts]
    mask = [[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts]
    return torch.tensor(rows), torch.tensor(mask)


@torch.no_grad()
def next_distributions(
    model: nn.Module, prompt: list[int], responses: list[list[int]], how: Decoding
) -> list[list[list[float]]]:
    """Return the distribution of each token of responses of one length, by full passes: no cache, padding or mask."""
    logits_BTV = model(torch.tensor([prompt + ids for ids in responses])).logits[:, len(prompt) - 1 : -1].double()
    return [
        [reference.nucleus(reference.softmax(row, how.temperature), how.top_p) for row in rows]
        for rows in logits_BTV[..., : how.vocabulary].tolist()
    ]


def expected_behaviour(
    student: nn.Module, teacher: nn.Module | None, teacher_mix: float, prompt: list[int], ids: list[int], how: Decoding
) -> list[float]:
    (q,) = next_distributions(student, prompt, [ids], how)
    (p,) = (q,) if teacher is None else next_distributions(teacher, prompt, [ids], how)
    share = 0.0 if teacher is None else teacher_mix
    return [math.log(share * p[t][v] + (1 - share) * q[t][v]) for t, v in enumerate(ids)]


def rolled_out(
    student: nn.Module,
    how: Decoding,
    teacher: nn.Module | None = None,
    teacher_mix: float = 0.0,
    coins: list[float] | None = None,
    prompts: tuple[Tensor, Tensor] | None = None,
    uniform: Tensor | None = None,
) -> Rollout:
    ids, mask = prompts or left_padded()
    coin_T = None if coins is None else torch.tensor(coins, dtype=torch.float64)
    uniform = random_uniforms(len(ids), how.max_new_tokens) if uniform is None else uniform
    return sample(student, ids, mask, uniform, how, teacher, teacher_mix, coin_T)


COINS = {
    "teacher throughout": [0.0] * 8,
    "student throughout": [ALMOST_1] * 8,
    "in turns": [0.0, ALMOST_1] * 4,
    "late teacher": [ALMOST_1] * 5 + [0.0] * 3,
    "random": uniforms([("coins", 3)], 8)[0].tolist(),
}


@pytest.mark.parametrize("coins", COINS)
@pytest.mark.parametrize("teacher_mix", [0.0, 0.3, 1 - 1e-6])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3", "mistral", "gemma3", "mamba", "qwen3_next"])
def test_reported_log_probabilities_are_those_of_full_forward_passes(
    family: str, teacher_mix: float, coins: str
) -> None:
    student, teacher = tiny(family), tiny(family, seed=1)
    how = decoding(8, eos_ids=frozenset({0, 2}), vocabulary=7)
    rollout = rolled_out(student, how, teacher, teacher_mix, COINS[coins])
    for row, prompt in enumerate(PROMPTS):
        counted = int(rollout.mask_BT[row].sum())
        ids = rollout.ids_BT[row, :counted].tolist()
        expected = expected_behaviour(student, teacher, teacher_mix, prompt, ids, how)
        assert rollout.behaviour_logp_BT[row, :counted].tolist() == pytest.approx(expected, abs=3e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (1.5, 1.0), (1.0, 0.7), (1.3, 0.8)], ids=str)
def test_temperature_and_nucleus_are_in_the_reported_log_probabilities(temperature: float, top_p: float) -> None:
    student, teacher = tiny("llama"), tiny("llama", seed=1)
    how = decoding(8, temperature, top_p, vocabulary=7)
    for given, coins in ((None, None), (teacher, COINS["random"])):
        rollout = rolled_out(student, how, given, 0.3, coins)
        for row, prompt in enumerate(PROMPTS):
            ids = rollout.ids_BT[row].tolist()
            expected = expected_behaviour(student, given, 0.3, prompt, ids, how)
            assert rollout.behaviour_logp_BT[row].tolist() == pytest.approx(expected, abs=3e-5)


def test_models_of_two_families_and_vocabulary_sizes_mix() -> None:
    student, teacher = tiny("gpt2", vocabulary=6), tiny("qwen3", vocabulary=9, seed=1)
    how = decoding(8, vocabulary=5)
    prompts = ([3], [1, 4, 2, 2, 4], [2, 3, 1])
    rollout = rolled_out(student, how, teacher, 0.3, COINS["in turns"], prompts=left_padded(prompts))
    for row, prompt in enumerate(prompts):
        ids = rollout.ids_BT[row].tolist()
        expected = expected_behaviour(student, teacher, 0.3, prompt, ids, how)
        assert rollout.behaviour_logp_BT[row].tolist() == pytest.approx(expected, abs=3e-5)


@pytest.mark.parametrize(
    "coins", [None, (0.0, 0.0, 0.0), (ALMOST_1, 0.0, ALMOST_1)], ids=["student", "teacher", "turns"]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_response_is_drawn_for_exactly_its_share_of_uniforms(
    family: str, coins: tuple[float, ...] | None
) -> None:
    """For each of the 125 responses, uniforms just inside both ends of its interval at each step must draw it."""
    student, teacher = tiny(family, vocabulary=5), tiny(family, vocabulary=5, seed=1)
    how, prompt, inside = decoding(3), [3, 1], 1e-5
    wanted = [list(response) for response in itertools.product(range(5), repeat=3)]
    by_student, by_teacher = (next_distributions(model, prompt, wanted, how) for model in (student, teacher))
    low, high = [], []
    for response, q, p in zip(wanted, by_student, by_teacher, strict=True):
        spoken = [(p if coins and coins[t] == 0 else q)[t] for t in range(3)]
        assert all(spoken[t][v] > 2 * inside for t, v in enumerate(response))
        low.append([math.fsum(spoken[t][:v]) + inside for t, v in enumerate(response)])
        high.append([math.fsum(spoken[t][: v + 1]) - inside for t, v in enumerate(response)])
    uniform = torch.tensor(low + high, dtype=torch.float64)
    prompts = left_padded((prompt,) * len(uniform), extra=1)
    given = (teacher, 0.3, list(coins)) if coins else ()
    rollout = rolled_out(student, how, *given, prompts=prompts, uniform=uniform)
    assert rollout.ids_BT.tolist() == wanted + wanted


@pytest.mark.parametrize("mixed", [False, True], ids=["student", "mixed"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "qwen3_next"])
def test_a_row_is_the_same_alone_among_others_and_under_more_padding(family: str, mixed: bool) -> None:
    student = tiny(family)
    given = (tiny(family, seed=1), 0.3, COINS["random"]) if mixed else ()
    how = decoding(8, eos_ids=frozenset({2}), vocabulary=7)
    uniform = random_uniforms(len(PROMPTS), 8, seed=5)
    together = rolled_out(student, how, *given, uniform=uniform)
    for row, prompt in enumerate(PROMPTS):
        alone = rolled_out(
            student, how, *given, prompts=left_padded((prompt,), pad=4, extra=3), uniform=uniform[row : row + 1]
        )
        counted = int(together.mask_BT[row].sum())
        assert int(alone.mask_BT.sum()) == counted
        assert torch.equal(alone.ids_BT[0, :counted], together.ids_BT[row, :counted])
        torch.testing.assert_close(
            alone.behaviour_logp_BT[0, :counted], together.behaviour_logp_BT[row, :counted], rtol=0, atol=1e-5
        )


def test_the_same_seed_gives_the_same_rollout_and_another_seed_another() -> None:
    how = decoding(8, vocabulary=7)
    first, again, other = (
        rolled_out(tiny("llama"), how, uniform=random_uniforms(3, 8, seed=seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.ids_BT, again.ids_BT)
    assert torch.equal(first.behaviour_logp_BT, again.behaviour_logp_BT)
    assert not torch.equal(first.ids_BT, other.ids_BT)


@pytest.mark.parametrize("eos_ids", [frozenset({2}), frozenset({1, 2, 5})], ids=["one eos", "several"])
def test_a_response_ends_with_its_first_eos_which_the_mask_includes(eos_ids: frozenset[int]) -> None:
    prompts = left_padded(tuple([prompt % 7, 3] for prompt in range(40)))
    rollout = rolled_out(tiny("llama"), decoding(8, eos_ids=eos_ids, vocabulary=7), prompts=prompts)
    expected = [reference.through_first_eos(ids, set(eos_ids)) for ids in rollout.ids_BT.tolist()]
    assert rollout.mask_BT.tolist() == expected
    lengths = rollout.mask_BT.sum(dim=1).tolist()
    ended = [rollout.ids_BT[row, length - 1].item() in eos_ids for row, length in enumerate(lengths)]
    assert any(ended)
    assert all(length == 8 for length, end in zip(lengths, ended, strict=True) if not end)


def test_a_pad_equal_to_eos_neither_ends_a_response_nor_hides_its_end() -> None:
    eos = pad = 2
    how = decoding(8, eos_ids=frozenset({eos}), vocabulary=7)
    with_eos, with_other = (rolled_out(tiny("llama"), how, prompts=left_padded(pad=given)) for given in (pad, 6))
    assert torch.equal(with_eos.ids_BT, with_other.ids_BT)
    assert torch.equal(with_eos.mask_BT, with_other.mask_BT)
    assert (with_eos.ids_BT[with_eos.mask_BT] == eos).any()


def test_sampling_stops_once_every_row_has_ended(responses: AllResponses) -> None:
    theta = torch.zeros(responses.prefixes, 3, dtype=torch.float64)
    theta[0] = torch.tensor([0.0, 0.0, -math.inf])
    theta[1:] = torch.tensor([0.0, -math.inf, -math.inf])  # EOS, for sure, as the second token.
    two = torch.ones(2, 1, dtype=torch.long)
    uniform = torch.tensor([[0.1, 0.5, 0.5], [0.9, 0.5, 0.5]], dtype=torch.float64)
    how = decoding(3, eos_ids=frozenset({0}), vocabulary=3)
    given = (two, two.bool(), uniform, how, Tabular(theta, responses), 0.5)
    for coins in ([0.0] * 3, [ALMOST_1] * 3):
        rollout = sample(Tabular(theta, responses), *given, torch.tensor(coins))
        assert rollout.ids_BT.shape == rollout.mask_BT.shape == rollout.behaviour_logp_BT.shape == (2, 2)
        assert rollout.mask_BT.tolist() == [[True, False], [True, True]]


def test_ids_above_the_shared_vocabulary_are_never_drawn() -> None:
    student, teacher = tiny("llama", vocabulary=50), tiny("llama", vocabulary=60, seed=1)
    how = decoding(8, vocabulary=7)
    prompts = left_padded(tuple([token] for token in range(7)) * 20)
    for given in ((), (teacher, 0.5, COINS["random"])):
        drawn = rolled_out(student, how, *given, prompts=prompts).ids_BT
        assert int(drawn.max()) == 6


def test_types_of_a_rollout() -> None:
    rollout = rolled_out(tiny("llama"), decoding(3, vocabulary=7))
    assert (rollout.ids_BT.dtype, rollout.mask_BT.dtype) == (torch.int64, torch.bool)
    assert rollout.behaviour_logp_BT.dtype == torch.float32
    assert not rollout.behaviour_logp_BT.requires_grad


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_a_model_that_returns_no_cache_is_refused() -> None:
    """Gradient checkpointing in training mode turns caches off; sampling on would lose the context without a word."""
    model = tiny("llama", seed=9)
    model.train()
    model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="eval mode"):
        rolled_out(model, decoding(3, vocabulary=7))
    assert rolled_out(model.eval(), decoding(3, vocabulary=7)).ids_BT.shape == (3, 3)
