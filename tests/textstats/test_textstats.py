"""Text statistics: compared with slow, independent reference implementations, and on arbitrary text."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import unicodedata
import zlib
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skill_kd.textstats import (
    LOOPING,
    SIMILAR,
    NearDuplicates,
    at_budget,
    compression,
    distinct,
    ead,
    entropy,
    looping,
    ngrams,
    opening,
    opening_share,
    refusal,
    repetition,
    rouge_l,
    self_bleu,
    vendi,
    words,
)

WILD = st.text(alphabet=st.characters(), max_size=200)  # lone surrogates and unassigned characters included
WORDS = st.lists(st.sampled_from("abcdefg"), max_size=40)
SAMPLES = st.lists(WORDS, min_size=1, max_size=6)
PROSE = "The tide rises twice a day because the moon pulls at the sea, and the sea follows as the earth turns below."


def drawn(seed: int, count: int, vocabulary: int = 400) -> list[str]:
    return [f"w{number}" for number in random.Random(seed).choices(range(vocabulary), k=count)]


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic, it's 2 o’clock!", ["don't", "panic", "it's", "2", "o’clock"]),
        ("snake_case __init__ ____", ["snake_case", "init"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("e\u0301tude ÉTUDE", ["étude", "étude"]),
        ("hello 😀😀 world 👩\u200d🚀 1\ufe0f\u20e3", ["hello", "world", "1"]),
        ("我爱你。Hello世界", ["我", "爱", "你", "hello", "世", "界"]),
        ("カタカナ・ひらがな", [*"カタカナひらがな"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שָׁלוֹם עולם", [unicodedata.normalize("NFC", "שָׁלוֹם"), "עולם"]),
        ("می\u200cروم", ["می\u200cروم"]),
        ("ไม่ดี", ["ไ", "ม่", "ดี"]),
        ("ភាសា", ["ភា", "សា"]),
        ("𠀀𠀁 ab", ["𠀀", "𠀁", "ab"]),
        ("\ud800 lone \udfff", ["lone"]),
        ("!!! ... —", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(WILD)
def test_words_of_any_text_have_no_space_and_equal_those_of_its_normal_forms(text: str) -> None:
    found = words(text)
    assert all(word and not any(map(str.isspace, word)) and word[0].isalnum() for word in found)
    assert found == words(unicodedata.normalize("NFD", text)) == words(unicodedata.normalize("NFC", text))


@given(st.text(alphabet=st.characters(max_codepoint=0x2BFF, categories=("L", "N", "P", "Z")), max_size=60))
def test_fast_paths_equal_the_general_one(text: str) -> None:
    assert [*words(text), "一"] == words(f"{text} 一")


# --- one text ---------------------------------------------------------------------------------------------------------


@given(WORDS, st.integers(1, 5))
def test_repetition_counts_repeated_ngrams(text: list[str], n: int) -> None:
    seen: list[list[str]] = []
    repeated = 0
    for start in range(len(text) - n + 1):
        repeated += (gram := text[start : start + n]) in seen
        seen.append(gram)
    assert repetition(text, n) == pytest.approx(repeated / len(seen) if seen else 0.0)


LOOPS = {
    "tail phrase": f"{PROSE} And so it was. " + "I will say it again. " * 4,
    "one word": "The answer is " + "very " * 20,
    "cut in the middle": "It goes on and on. " * 9 + "It goes on",
    "repetition anywhere": " ".join([*["one", "two", "three", "four", "five"] * 6, *drawn(0, 30)]),
    "one character": f"Wow {'!' * 60} {PROSE}",
    "emoji": "😀" * 45,
    "no spaces": "ha" * 30,
    "han": "好的我明白" * 8,
    "long ruler": f"Title\n{'-' * 250}\n{PROSE}",
    "dots to the end": "Let me think" + "." * 300,
}
NO_LOOPS = {
    "prose": PROSE,
    "empty": "",
    "spaces": " " * 500,
    "short laugh": "ha ha ha",
    "said twice": f"{' '.join(drawn(2, 70))} {' '.join(drawn(3, 18))} {' '.join(drawn(3, 18))}",
    "refrain": f"{PROSE} I said no. I said no. {' '.join(drawn(1, 60))}",
    "markdown ruler": f"# Title\n{PROSE}\n{'=' * 60}",
    "table": f"| a | b | c |\n{'| --- ' * 20}|",
    "code": "def f(x):\n    return x + 1\n\n\ndef g(x):\n    return f(x) + f(x + 2)\n",
    "numbers": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "indented": "list:\n" + "\n".join(f"{' ' * 60}item {number}" for number in range(5)),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_loops_are_detected(kind: str) -> None:
    assert looping(LOOPS[kind])


@pytest.mark.parametrize("kind", NO_LOOPS)
def test_other_texts_are_not_loops(kind: str) -> None:
    assert not looping(NO_LOOPS[kind])


def test_repetition_needs_sixteen_words() -> None:
    text = [*"abcdefg", *"abcdefg", "x"]
    assert repetition(text) > LOOPING
    assert not looping(" ".join(text))
    assert looping(" ".join([*text, "y"]))


@given(WILD, st.text(alphabet=st.characters(categories=("L",)), min_size=1, max_size=12))
def test_any_text_followed_by_one_word_forty_times_is_a_loop(text: str, word: str) -> None:
    looping(text)
    assert looping(text + f" {word}" * 40)


def test_large_text_takes_linear_time() -> None:
    """Quadratic time would take hours on these texts."""
    for text in ("'" * 10**6, "a'" * 10**6, "e\u0301" * 10**6, "\u0301" * 10**6, "x" + "_" * 10**6):
        assert words(text) is not None
        assert looping(text)


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot assist with that request.",
    "I cannot provide instructions for this.",
    "I can't help with that",
    "I am unable to comply.",
    "I won't write that.",
    "As an AI language model, I do not have personal opinions.",
    "Unfortunately, as an AI, I can't browse the web.",
    "I must respectfully decline.",
    "I apologize, but this goes against my guidelines.",
    "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "Je suis désolé, mais je ne peux pas répondre.",
    "Lo siento, pero no puedo ayudar con eso.",
    "К сожалению, я не могу помочь.",
    "抱歉，我无法回答这个问题。",
    "申し訳ありませんが、お答えできません。",
]
ANSWERS = [
    "",
    PROSE,
    "I can't wait to help you with this!",
    "I cannot help but admire the plan.",
    "Sorry for the delay. Here is your summary.",
    "You can't divide by zero, so the function raises an error.",
    "AI models cannot think; they predict.",
    "The court declined to hear the case.",
    "If you are unable to log in, reset the password.",
    PROSE * 3 + "I'm sorry, but I can't help with that.",  # after the first 200 characters
]


def test_refusals_are_detected() -> None:
    texts = [*REFUSALS, *map(str.upper, REFUSALS)]
    assert texts
    failures = [text for text in texts if not refusal(text)]
    assert not failures, "\n".join(failures)


def test_answers_are_not_refusals() -> None:
    assert ANSWERS
    failures = [repr(text) for text in ANSWERS if refusal(text)]
    assert not failures, "\n".join(failures)


@given(st.binary(max_size=500))
def test_compression_is_the_ratio_of_zlib_level_6(raw: bytes) -> None:
    assert compression(raw) == (len(zlib.compress(raw, 6)) / len(raw) if raw else 1.0)


def test_repeated_text_compresses_better() -> None:
    assert compression(b"again and again " * 64) < 0.1 < compression(random.Random(0).randbytes(1024))


# --- openings ---------------------------------------------------------------------------------------------------------


def test_opening_share_is_of_the_most_frequent_opening() -> None:
    openings = [opening(words(text), 2) for text in ("Sure, here it is", "Sure, here!", "No", "b c d")]
    assert opening_share(openings) == (("sure", "here"), 0.5)
    assert opening_share([("b",), ("a",)]) == opening_share([("a",), ("b",)]) == (("a",), 0.5)
    assert opening_share([]) == ((), 0.0)


@given(st.lists(st.integers(0, 10**6), max_size=30))
def test_entropy_equals_that_of_the_shares(counts: list[int]) -> None:
    shares = np.array([count for count in counts if count], dtype=float)
    shares /= shares.sum() if shares.size else 1
    assert entropy(counts) == pytest.approx(float(-(shares * np.log(shares)).sum()), abs=1e-9)
    assert 0 <= entropy(counts) <= math.log(max(1, len(counts))) + 1e-9


# --- the samples of one prompt ----------------------------------------------------------------------------------------


def test_distinct_pools_all_samples() -> None:
    assert distinct([["a", "b", "a"], ["a", "c"]], 1) == 3 / 5
    assert distinct([["a", "b", "a"], ["a", "b"]], 2) == 2 / 3
    assert distinct([["a"], []], 2) == 0.0


def test_ead_divides_by_the_expected_distinct_words() -> None:
    """Equation 2 of arXiv 2202.13587, term by term: the expectation of distinct draws is 1 for a uniform writer."""
    texts = [drawn(seed, 50, 100) for seed in range(3)]
    expected = 100 * (1 - (99 / 100) ** 150)
    assert ead(texts, 1, 100) == pytest.approx(len({word for text in texts for word in text}) / expected)
    uniform = [ead([drawn(seed, 200, 50)], 1, 50) for seed in range(400)]
    assert np.mean(uniform) == pytest.approx(1, abs=0.01)
    assert ead([]) == 0.0


def test_ead_depends_less_on_length_than_distinct() -> None:
    short, long = [drawn(0, 50, 300)], [drawn(0, 400, 300)]
    assert ead(long, 1, 300) / ead(short, 1, 300) > 0.9
    assert distinct(long, 1) / distinct(short, 1) < 0.7


def vendi_reference(texts: list[list[str]], sizes: tuple[int, ...], budget: int) -> float:
    """The definition of arXiv 2210.02410, with a general eigenvalue solver and dictionaries for vectors."""
    texts = [text[:budget] for text in texts]
    kernel = np.zeros((len(texts), len(texts)))
    for size in sizes:
        bags = [
            Counter(" ".join(text[i : i + size]) for i in range(len(text) - size + 1)) or Counter([" ".join(text)])
            for text in texts
        ]
        for i, a in enumerate(bags):
            for j, b in enumerate(bags):
                dot = sum(a[gram] * b[gram] for gram in a)
                norm = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
                kernel[i, j] += dot / norm / len(sizes)
    eigenvalues = np.linalg.eigvals(kernel / len(texts)).real
    return float(np.exp(-sum(value * math.log(value) for value in eigenvalues if value > 1e-12)))


@given(SAMPLES, st.sampled_from([(1,), (1, 2), (1, 2, 3, 4)]), st.integers(1, 30))
def test_vendi_is_the_entropy_of_the_eigenvalues(texts: list[list[str]], sizes: tuple[int, ...], budget: int) -> None:
    assert vendi(texts, sizes, budget) == pytest.approx(vendi_reference(texts, sizes, budget), rel=1e-6)


def test_vendi_counts_different_texts() -> None:
    different = [drawn(seed, 20, 10**9) for seed in range(6)]
    assert vendi(different) == pytest.approx(6)
    assert vendi([different[0]] * 6) == pytest.approx(1)
    assert vendi([*different[:2]] * 3) == pytest.approx(2)
    assert vendi([]) == 0.0
    assert vendi([[], []]) == pytest.approx(1)


@given(SAMPLES, st.randoms(use_true_random=False))
def test_diversity_is_bounded_and_independent_of_order(texts: list[list[str]], order: random.Random) -> None:
    shuffled = order.sample(texts, len(texts))
    assert 1 <= vendi(texts) <= len(texts)
    assert 0 <= distinct(texts, 1) <= 1
    assert 0 <= self_bleu(texts) <= 1 + 1e-9
    for measure in (vendi, ead, self_bleu, lambda them: distinct(them, 2)):
        assert measure(texts) == pytest.approx(measure(shuffled), abs=1e-9)


def bleu_reference(candidate: list[str], references: list[list[str]], n: int) -> float:
    """BLEU (Papineni et al. 2002) by hand: clipped precisions, brevity penalty of the closest reference."""
    product, orders = 1.0, min(n, len(candidate))
    if not orders:
        return 0.0
    for size in range(1, orders + 1):
        grams = [tuple(candidate[i : i + size]) for i in range(len(candidate) - size + 1)]
        clipped = 0
        for gram in set(grams):
            best = max(sum(tuple(r[i : i + size]) == gram for i in range(len(r))) for r in references)
            clipped += min(grams.count(gram), best)
        product *= (clipped or 0.1) / len(grams)
    closest = min((abs(len(r) - len(candidate)), len(r)) for r in references)[1]
    return min(1.0, math.exp(1 - closest / len(candidate))) * product ** (1 / orders)


@given(st.lists(WORDS, min_size=2, max_size=5), st.integers(1, 4))
def test_self_bleu_is_the_mean_bleu_against_the_others(texts: list[list[str]], n: int) -> None:
    expected = [bleu_reference(text, texts[:i] + texts[i + 1 :], n) for i, text in enumerate(texts)]
    assert self_bleu(texts, n) == pytest.approx(np.mean(expected), rel=1e-9)


def test_self_bleu_of_equal_texts_and_of_one_text() -> None:
    assert self_bleu([drawn(0, 12)] * 3) == pytest.approx(1)
    assert self_bleu([drawn(0, 12)]) == 0.0


def common_reference(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(a: list[str], b: list[str]) -> None:
    common = common_reference(a, b)
    expected = 0.0
    if common:
        precision, recall = common / len(a), common / len(b)
        expected = 2 * precision * recall / (precision + recall)
    assert rouge_l(a, b) == pytest.approx(expected) == rouge_l(b, a)


@pytest.mark.parametrize("text", [PROSE, "我喜欢编程和音乐", "Сегодня хорошая погода", "मुझे संगीत पसंद है"])
def test_rouge_l_of_a_text_with_itself_is_one_in_every_alphabet(text: str) -> None:
    assert rouge_l(words(text), words(text)) == 1.0


@given(SAMPLES, st.integers(0, 50))
def test_budget_cuts_and_never_pads(texts: list[list[str]], budget: int) -> None:
    cut = at_budget(texts, budget)
    assert [len(text) for text in cut] == [min(budget, len(text)) for text in texts]
    assert all(text == whole[: len(text)] for text, whole in zip(cut, texts, strict=True))


# --- near-duplicates --------------------------------------------------------------------------------------------------


def jaccard(a: list[str], b: list[str]) -> float:
    one, other = ({tuple(text[i : i + 5]) for i in range(max(1, len(text) - 4))} for text in (a, b))
    return len(one & other) / len(one | other)


def edited(text: list[str], edits: int, rng: random.Random) -> list[str]:
    out = list(text)
    for place in rng.sample(range(len(out)), edits):
        out[place] = f"new{rng.random()}"
    return out


def clustered(texts: dict[int, list[str]]) -> set[frozenset[int]]:
    index: NearDuplicates[int] = NearDuplicates()
    for key, text in texts.items():
        index.add(key, text)
    return {frozenset(cluster) for cluster in index.clusters()}


def brute_force(texts: dict[int, list[str]], threshold: float) -> set[frozenset[int]]:
    groups = {key: {key} for key in texts}
    for a, b in combinations(texts, 2):
        if jaccard(texts[a], texts[b]) >= threshold and groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for key in groups[b]:
                groups[key] = groups[a]
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def corpus(seed: int) -> dict[int, list[str]]:
    """Return 60 texts from 15 originals, with pairs above and below the threshold but not within .05 of it."""
    rng = random.Random(seed)
    originals = [drawn(rng.randrange(10**6), rng.choice([3, 8, 40, 120])) for _ in range(15)]
    texts: list[list[str]] = []
    while len(texts) < 60:
        base = rng.choice(originals)
        candidate = edited(base, rng.choice([0, 0, 1, 3, 10]) if len(base) > 10 else 0, rng)
        if not any(abs(jaccard(candidate, other) - SIMILAR) < 0.05 for other in texts):
            texts.append(candidate)
    return dict(enumerate(texts))


@pytest.mark.parametrize("seed", range(5))
def test_clusters_equal_brute_force(seed: int) -> None:
    texts = corpus(seed)
    assert clustered(texts) == brute_force(texts, SIMILAR)
    assert clustered(texts)


def test_clusters_do_not_depend_on_the_order_of_adding() -> None:
    texts = corpus(7)
    backwards = dict(reversed(list(texts.items())))
    assert clustered(texts) == clustered(backwards)


def test_most_pairs_at_the_threshold_are_found_and_none_below() -> None:
    found = total = 0
    for seed in range(300):
        base = drawn(seed, 100, 10**6)
        other = edited(base, 1 + seed % 6, random.Random(seed))
        similar = jaccard(base, other) >= SIMILAR
        total += similar
        pair = bool(clustered({0: base, 1: other}))
        assert similar or not pair
        found += pair
    assert total > 100
    assert found / total > 0.95


def test_largest_cluster_is_first_with_keys_in_the_order_of_adding() -> None:
    index: NearDuplicates[str] = NearDuplicates()
    for key, seed in [("a", 1), ("b", 2), ("c", 2), ("d", 1), ("e", 2), ("f", 3)]:
        index.add(key, drawn(seed, 30))
    assert index.clusters() == [["b", "c", "e"], ["a", "d"]]


def test_index_is_bounded_and_counts_dropped_texts() -> None:
    index: NearDuplicates[int] = NearDuplicates(cap=3)
    index.add(0, [])
    for key in range(1, 6):
        index.add(key, ["the", "same"])
    assert index.clusters() == [[1, 2, 3]]
    assert index.dropped == 2


def test_order_does_not_matter_with_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skill_kd.textstats.duplicates._GROUPS", 1)
    monkeypatch.setattr("skill_kd.textstats.duplicates._MEMBERS", 1)
    rng = random.Random(0)
    base = drawn(0, 100)
    texts = {key: edited(base, 3, rng) for key in range(80)}  # pairwise similarity around the threshold
    found = clustered(texts)
    assert found != brute_force(texts, SIMILAR), "the bound has not bitten"
    for _ in range(5):
        assert clustered(dict(rng.sample(list(texts.items()), len(texts)))) == found


@given(st.lists(WILD, max_size=8))
def test_any_text_can_be_added(texts: list[str]) -> None:
    index: NearDuplicates[int] = NearDuplicates()
    for key, text in enumerate(texts * 2):
        index.add(key, words(text))
    keys = [key for cluster in index.clusters() for key in cluster]
    assert len(keys) == len(set(keys)) == 2 * sum(bool(words(text)) for text in texts)


# --- the module -------------------------------------------------------------------------------------------------------


def test_short_text_has_no_ngrams() -> None:
    assert list(ngrams(["a", "b", "c"], 2)) == list(pairwise("abc"))
    assert list(ngrams(["a"], 2)) == []


@pytest.mark.parametrize("seed", ["0", "1"])
def test_results_are_the_same_in_every_process(seed: str) -> None:
    ask = (
        "from skill_kd.textstats import *; import random; r = random.Random(3); d = NearDuplicates();"
        "t = [[str(r.randrange(9)) for _ in range(30)] for _ in range(40)] * 2;"
        "[d.add(k, w) for k, w in enumerate(t)]; print(sorted(map(sorted, d.clusters())), vendi(t), self_bleu(t))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": s}
        )
        for s in (seed, "77")
    ]
    assert runs[0].stdout == runs[1].stdout != ""
