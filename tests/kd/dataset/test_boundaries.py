"""boundaries: a response has the tokens that a model would sample after the prompt, for each kind of tokenizer."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from skill_kd.kd.dataset.boundaries import AddedTokens, GrowingText, following_ids, text_ids
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example

TEXTS = ["The answer is short. Hello world, hello under a happy unhappy day.", "user assistant\n\nHello\n"] * 5
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # Its offsets leave out the space of a token, as those of GPT-2 do.
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return fast(backend)


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """As SentencePiece: spaces are ▁, and texts (or all parts between special tokens) begin with one."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    octets = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL + octets, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return fast(backend)


def unigram() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return fast(backend)


def word_piece() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return fast(backend)


class SlowTokenizer(PreTrainedTokenizer):
    """Written in Python, without offsets: one token for each letter, and for some pairs of letters."""

    def __init__(self, **options: Any) -> None:
        letters = ["\n\n", "He", "un", *map(chr, range(10, 127))]
        self.pieces = {piece: number for number, piece in enumerate([*SPECIAL, *letters])}
        super().__init__(unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options)
        self.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
        self.chat_template = TEMPLATE

    @property
    def vocab_size(self) -> int:
        return len(self.pieces)

    def get_vocab(self) -> dict[str, int]:
        return dict(self.pieces)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return re.findall("\n\n|He|un|.", text, flags=re.DOTALL)

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(self.pieces)[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


FAMILIES: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "byte-level BPE": byte_level,
    "Metaspace, first": lambda: metaspace("first"),
    "Metaspace, always": lambda: metaspace("always"),
    "Unigram": unigram,
    "WordPiece": word_piece,
    "slow": SlowTokenizer,
}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return FAMILIES[request.param]()


def decoded(tokenizer: PreTrainedTokenizerBase, ids: tuple[int, ...]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


PAIRS = [
    ("<|assistant|>\n", "Hello world."),
    ("<|assistant|>", "Hello"),
    ("The answer is", " short."),
    # A token straddles these boundaries, in some families.
    ("The answer is ", "short."),
    ("<|assistant|>\n", "\nHello"),
    ("A day of un", "happy"),
    ("The answer is ", "é, ☃."),
]


@pytest.mark.parametrize(("before", "after"), PAIRS)
def test_prompt_and_response_together_spell_the_whole_text(
    tokenizer: PreTrainedTokenizerBase, before: str, after: str
) -> None:
    prompt = text_ids(tokenizer, before)
    response = following_ids(tokenizer, before, prompt, after)
    assert response
    whole = text_ids(tokenizer, before + after)
    assert decoded(tokenizer, (*prompt, *response)) == decoded(tokenizer, whole)
    if whole[: len(prompt)] == prompt:
        assert (*prompt, *response) == whole


def test_a_conversation_has_the_prompt_of_sampling_and_the_ids_of_its_whole_text(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    encoder = Encoder(tokenizer, frozenset({int(tokenizer.eos_token_id)}))
    turns = (("user", "Hello world"), ("assistant", "The answer."), ("user", "A happy day"))
    example = Example(turns, "Hello, short.")
    row = encoder.conversation(example)
    messages = [{"role": role, "content": text} for role, text in (*turns, ("assistant", "Hello, short."))]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    ids = text_ids(tokenizer, text)
    assert (*row.prompt, *row.response) == ids[: len(row.prompt) + len(row.response)]
    assert row.prompt == encoder.prompt(Example(turns[:1], None)).prompt
    assert row.response[-1] == tokenizer.eos_token_id
    again = encoder.prompt(example).prompt
    assert (*row.prompt, *row.response)[: len(again)] == again
    first = row.scored.index(False)
    assert row.response[:first] == encoder.answer(Example(turns[:1], None), "The answer.").response
    last = tuple(token for token, flag in zip(row.response, row.scored, strict=True) if flag)[first:]
    assert last == encoder.answer(example, "Hello, short.").response


def test_no_added_space_is_trained_with_a_tokenizer_of_sentencepiece_s_kind() -> None:
    """NeMo-RL issue 2844: pieces tokenized apart begin with ▁, which no prompt is followed by."""
    tokenizer = metaspace("first")
    example = Example((("user", "Hello"),), None)
    encoder = Encoder(tokenizer, frozenset({2}))
    answer = encoder.answer(example, "short.").response
    assert decoded(tokenizer, text_ids(tokenizer, "short.")) == "short."
    assert tokenizer.convert_ids_to_tokens(list(text_ids(tokenizer, "short.")))[0].startswith("▁")
    assert not tokenizer.convert_ids_to_tokens(list(answer))[0].startswith("▁")


def test_a_straddled_boundary_keeps_the_tokens_that_sampling_starts_from() -> None:
    tokenizer = make_tokenizer()
    before, after = "the quick ", "brown fox"
    prompt = text_ids(tokenizer, before)
    whole = text_ids(tokenizer, before + after)
    assert whole[: len(prompt)] != prompt, "' brown' must be one token, or nothing is tested"
    response = following_ids(tokenizer, before, prompt, after)
    assert tokenizer.decode([*prompt, *response]) == before + after
    assert response == text_ids(tokenizer, after)


def test_a_turn_that_sampling_would_begin_with_other_tokens_is_not_scored_in_the_middle() -> None:
    """Its prompt by itself has a token that ends the turn before, and more."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'user' %} {% endif %}{% endfor %}"
    )
    encoder = Encoder(tokenizer, frozenset({int(tokenizer.eos_token_id)}))
    row = encoder.conversation(Example((("user", "the"), ("assistant", "qui"), ("user", "ck")), "fox"))
    assert row.prompt == encoder.prompt(Example((("user", "the"), ("assistant", "qui"), ("user", "ck")), None)).prompt
    assert all(row.scored)
    assert tokenizer.decode(row.response) == f"fox{tokenizer.eos_token}"


def test_an_unknown_token_that_covers_prompt_and_response_leaves_the_response_a_token() -> None:
    tokenizer = word_piece()
    prompt = text_ids(tokenizer, "☃")
    assert text_ids(tokenizer, "☃☃") == prompt == (tokenizer.unk_token_id,)
    assert following_ids(tokenizer, "☃", prompt, "☃") == prompt


# --- work that does not grow with the square of the turns -------------------------------------------------------------


def normalized_unigram() -> PreTrainedTokenizerFast:
    """As T5 and Llama 2: NFKC makes '＜s＞' the text of a special token, and each part begins with '▁'."""
    tokenizer = unigram()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return tokenizer


def with_odd_tokens(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Add tokens that swallow space, stand alone, are part of others, or are found after normalization."""
    tokenizer.add_tokens(
        [
            AddedToken("<|end|>", rstrip=True, normalized=False),
            AddedToken("<mask>", lstrip=True, normalized=False),
            AddedToken("dog", single_word=True, normalized=False),
            AddedToken("<|user|>\nHello", normalized=False),
            AddedToken("</s>\n<|assistant|>", normalized=False),
            AddedToken("un</s>\nun", normalized=False),
            AddedToken("\n\n", normalized=True),
            AddedToken("day", normalized=True),
        ]
    )
    return tokenizer


GROWING = FAMILIES | {
    "byte-level BPE, odd tokens": lambda: with_odd_tokens(byte_level()),
    "Metaspace, first, odd tokens": lambda: with_odd_tokens(metaspace("first")),
    "WordPiece, odd tokens": lambda: with_odd_tokens(word_piece()),
    "Unigram, NFKC": normalized_unigram,
    "Unigram, NFKC, odd tokens": lambda: with_odd_tokens(normalized_unigram()),
}
PARTS = ["Hello", " answer", "un", "happy", "dog", " day", ".", " ", "  ", "\n", "\n\n", "é", "e\u0301", "☃", "ﬁ"]
PARTS += [*SPECIAL, "<|", "|>", "s>", "</", "<mask>", " <mask>", "<|end|>", "<|end|> ", "user", "</s>\n", "<|user|>\n"]
PARTS.append("＜s＞")
PIECES = st.lists(st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join), min_size=2, max_size=7)


@functools.cache
def growing(name: str) -> PreTrainedTokenizerBase:
    return GROWING[name]()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(GROWING)), PIECES)
@example("byte-level BPE, odd tokens", ["A happy day of un</s>\n", "un answer"])  # a longer token begins before </s>
@example("Unigram, NFKC, odd tokens", ["A happy day", " day. Hello user answer.", "Hello"])  # ▁day is found behind ▁
@example("Metaspace, first", ["<s>☃ happy answer.", "☃"])  # <unk> is an added token
def test_text_that_grows_has_the_ids_that_it_has_if_all_of_it_is_tokenized_again(name: str, pieces: list[str]) -> None:
    tokenizer = growing(name)
    text = pieces[0]
    ids = text_ids(tokenizer, text)
    grown = GrowingText(tokenizer, AddedTokens(tokenizer), text)
    assert grown.begin == ids
    assert grown.settle()
    for piece in pieces[1:]:
        added = following_ids(tokenizer, text, ids, piece)
        assert grown.add(piece) == added
        ids, text = ids + added, text + piece
        if not grown.settle():
            assert text_ids(tokenizer, text) != ids
            break
        assert text_ids(tokenizer, text) == ids


class Counted(PreTrainedTokenizerFast):
    """Counts the characters that it tokenizes."""

    characters = 0

    def __call__(self, text: Any, *arguments: Any, **options: Any) -> Any:
        self.characters += len(text)
        return super().__call__(text, *arguments, **options)


def test_tokenizing_a_conversation_is_linear_in_its_turns() -> None:
    tokenizer = Counted(tokenizer_object=byte_level().backend_tokenizer, unk_token="<unk>", eos_token="</s>")
    tokenizer.chat_template = TEMPLATE
    encoder = Encoder(tokenizer, frozenset({int(tokenizer.eos_token_id)}))

    def characters(turns: int) -> float:
        before = tokenizer.characters
        asked = (("user", "Hello world"), ("assistant", "The answer is short.")) * (turns // 2)
        row = encoder.conversation(Example((*asked, ("user", "A happy day")), "Hello"))
        assert row.scored.count(True) > turns, "only the last answer is scored"
        return tokenizer.characters - before

    assert characters(40) < 5 * characters(10)
