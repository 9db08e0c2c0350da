"""Parts of chat templates in the hand-off: the text of turns, and a Modelfile that gives the same text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from chat_templates import DEFAULT_SYSTEM, LLAMA3, NO_TURNS, THINKS_LAST
from tiny import CHAT_TEMPLATE, make_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, MambaConfig, MixtralConfig, PreTrainedTokenizerFast

from skill_kd.handoff.probe.model_folder import lora_targets
from skill_kd.handoff.probe.template import template_parts
from skill_kd.handoff.step_files import FinetuneTask, modelfile
from skill_kd.spec import Handoff
from skill_kd.testing import minimal_spec


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        (CHAT_TEMPLATE, ("<|im_start|>user\n", "<|im_start|>assistant\n")),
        (DEFAULT_SYSTEM, ("<|im_start|>user\n", "<|im_start|>assistant\n")),
        (LLAMA3, ("<|start|>user<|end|>\n\n", "<|start|>assistant<|end|>\n\n")),
        (THINKS_LAST, ("<|im_start|>user\n", "<|im_start|>assistant\n")),
        (NO_TURNS, None),
        (None, None),
    ],
)
def test_parts_of_a_chat_template(template: str | None, parts: tuple[str, str] | None) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    found = template_parts(tokenizer)
    assert (found and (found["instruction_part"], found["response_part"])) == parts


def ollama(template: str, messages: list[dict[str, str]]) -> str:
    """Render the few constructs of our Modelfile as Ollama does."""
    template = re.sub(
        r'\{\{ if ne \(index \.Messages 0\)\.Role "system" \}\}(.*?)\{\{ end \}\}',
        lambda match: match[1] if messages[0]["role"] != "system" else "",
        template,
        flags=re.DOTALL,
    )
    head, _, rest = template.partition("{{ range .Messages }}")
    loop, _, tail = rest.rpartition("{{ end }}")
    turns = dict(re.findall(r'\{\{ if eq \.Role "(\w+)" \}\}(.*?)\{\{ end \}\}', loop, flags=re.DOTALL))
    return head + "".join(turns[m["role"]].replace("{{ .Content }}", m["content"]) for m in messages) + tail


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, DEFAULT_SYSTEM])
@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("user", "assistant", "user")])
def test_ollama_template_equals_the_chat_template(template: str, roles: tuple[str, ...]) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    handoff = Handoff(export=("gguf-q4_k_m",), ollama=True)
    task = FinetuneTask(minimal_spec().model_copy(update={"handoff": handoff}), template_parts(tokenizer), 10, 1)
    text = modelfile(task)
    assert "FROM ./out/finetuned.Q4_K_M.gguf" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    messages = [{"role": role, "content": f"text {number}"} for number, role in enumerate(roles)]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ollama(text.split('"""')[1], messages) == expected


def test_template_with_double_braces_is_left_out() -> None:
    parts = {"instruction_part": "{{ .System }}", "before_system": "", "after_assistant": "<|im_end|>"}
    handoff = Handoff(export=("gguf-q8_0",), ollama=True)
    assert "{{" not in modelfile(FinetuneTask(minimal_spec().model_copy(update={"handoff": handoff}), parts, 10, 1))


def as_ollama_reads(text: str) -> dict[str, str]:
    """Return the values of a Modelfile by their keyword, as Ollama's parser reads them: it knows no escapes."""
    values, lines = {}, text.split("\n")
    while lines:
        line = lines.pop(0)
        if not line or line.startswith("#"):
            continue
        keyword, _, value = line.partition(" ")
        if keyword == "PARAMETER":
            keyword, _, value = value.partition(" ")
        quotes = '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""
        while quotes and not (value.strip().endswith(quotes) and len(value.strip()) >= 2 * len(quotes)):
            value += "\n" + lines.pop(0)
        value = "".join(each for each in value if each.isprintable() or each in "\n\t")
        values[keyword] = value.strip().removeprefix(quotes).removesuffix(quotes)
    return values


QUOTED = ['"', '""', "it's", "a\nb", 'x"\ny', "{%", "<｜end▁of▁turn｜>", "\\n", "$(touch broken)"]


@pytest.mark.parametrize("end", QUOTED)
def test_a_modelfile_keeps_every_text_that_it_holds(end: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = f"{{% set end = {json.dumps(end)} %}}{CHAT_TEMPLATE.replace('<|im_end|>', '{{ end }}')}"
    values = as_ollama_reads(written(tokenizer))
    assert sorted(values) == ["FROM", "TEMPLATE", "stop"]
    assert values["stop"] == end.strip()
    messages = [{"role": "user", "content": "text"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert ollama(values["TEMPLATE"], messages) == expected


@pytest.mark.parametrize("end", ['"""', 'a"""\nFROM /etc/passwd', "a\u3000b", "{{ .System }}"])
def test_a_text_that_ollama_would_change_is_left_out(end: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = f"{{% set end = {json.dumps(end)} %}}{CHAT_TEMPLATE.replace('<|im_end|>', '{{ end }}')}"
    values = as_ollama_reads(written(tokenizer))
    assert "TEMPLATE" not in values
    assert values["FROM"] == "./out/finetuned.Q8_0.gguf"
    assert values.get("stop") in (None, end)


def test_a_brace_before_an_action_of_ollama_is_left_out() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ m['content'] }}", "{{ '{' + m['content'] }}")
    assert "TEMPLATE" not in as_ollama_reads(written(tokenizer))


# --- the token that begins a sequence ---------------------------------------------------------------------------------

OPENER = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Begins with the token, then the turns of CHAT_TEMPLATE."""
IN_EACH_TURN = CHAT_TEMPLATE.replace("<|im_start|>", "{{ bos_token }}")


def beginning(template: str, *, adds: bool) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose BOS is not a turn marker; ``adds`` puts it before every text, as Llama's does."""
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.chat_template = template
    if adds:
        bos = ("<|endoftext|>", tokenizer.bos_token_id)
        single = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[bos])
        tokenizer.backend_tokenizer.post_processor = single
        assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def written(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the Modelfile of a student with this tokenizer."""
    handoff = Handoff(export=("gguf-q8_0",), ollama=True)
    spec = minimal_spec().model_copy(update={"handoff": handoff})
    return modelfile(FinetuneTask(spec, template_parts(tokenizer), 10, 1))


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("roles", [("user",), ("system", "user"), ("system", "user", "system", "user")])
def test_a_template_for_ollama_has_no_bos(adds: bool, roles: tuple[str, ...]) -> None:
    tokenizer = beginning(OPENER, adds=adds)
    text = written(tokenizer)
    assert "<|endoftext|>" not in text.split('"""')[1]
    assert ("# the chat template begins with '<|endoftext|>', which the tokenizer does not add" in text) == (not adds)
    messages = [{"role": role, "content": f"text {number}"} for number, role in enumerate(roles)]
    expected = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    assert "<|endoftext|>" + ollama(text.split('"""')[1], messages) == expected


def test_a_bos_that_marks_turns_stays_unless_ollama_would_double_it() -> None:
    assert "<|endoftext|>user" in written(beginning(IN_EACH_TURN, adds=False)).split('"""')[1]
    text = written(beginning(IN_EACH_TURN, adds=True))
    assert 'TEMPLATE "' not in text
    assert "# the chat template writes '<|endoftext|>' in each turn, and Ollama adds one before the first" in text


# --- dates ------------------------------------------------------------------------------------------------------------

DATED = "{% set today = strftime_now('%d %b %Y') %}"
IN_OPENING = DATED + "<|im_start|>system\nToday is {{ today }}.<|im_end|>\n" + CHAT_TEMPLATE
IN_TURNS = DATED + CHAT_TEMPLATE.replace("{{ m['role'] }}", "{{ m['role'] }} {{ today }}")


def test_a_date_is_not_frozen_into_a_template_for_ollama() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = IN_OPENING
    text = written(tokenizer)
    assert 'TEMPLATE "' not in text
    assert "# the chat template writes the date of today, which a TEMPLATE would freeze" in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    parts = template_parts(tokenizer)
    assert parts is not None
    assert parts["instruction_part"] == "<|im_start|>user\n"


def test_a_clock_that_nothing_depends_on_changes_nothing() -> None:
    plain, clocked = make_tokenizer(), make_tokenizer()
    clocked.chat_template = DATED + CHAT_TEMPLATE
    assert template_parts(clocked) == template_parts(plain)


def test_turns_with_a_date_cannot_be_found_on_another_day() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = IN_TURNS
    assert template_parts(tokenizer) is None


# --- layers for adapters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (LlamaConfig, {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (GPTNeoXConfig, {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        (GPT2Config, {"c_attn", "c_proj", "c_fc"}),
        (MixtralConfig, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (MambaConfig, {"in_proj", "x_proj", "dt_proj", "out_proj"}),
    ],
)
def test_the_targets_of_adapters_are_the_models_own_layers(config: type, names: set[str], tmp_path: Path) -> None:
    config(pad_token_id=0).save_pretrained(tmp_path)
    assert set(lora_targets(tmp_path)) == names
