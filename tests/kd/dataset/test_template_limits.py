"""A chat template of a model that nobody has checked: its time, its memory and its text have limits."""

from __future__ import annotations

import resource
import signal
import sys
import threading

import pytest
from tiny import make_tokenizer
from transformers import PreTrainedTokenizerFast

from skill_kd.kd.dataset import template_limits
from skill_kd.kd.dataset.encoding import Encoder
from skill_kd.kd.dataset.reading import Example
from skill_kd.kd.dataset.rendering import render
from skill_kd.kd.dataset.template_limits import TemplateOverLimit, Total
from skill_kd.kd.dataset.template_tokens import written_by_template

TURNS = (("user", "hello"),)
N = "{% set n = messages|length * 10**10 %}"
"""Keeps Jinja from computing the text once, before the conversation is known."""
GIGABYTES = {
    "a constant": "{{ 'x' * 10**10 }}",
    "a text": N + "{{ 'x' * n }}",
    "a list": N + "{{ [1] * n }}",
    "a padded text": N + "{{ 'x'|center(n) }}",
    "a method": N + "{{ 'x'.ljust(n) }}",
    "a width": "{{ '{:10000000000}'.format(1) }}",
    "a width of %": N + "{{ ('%' ~ n ~ 'd')|format(1) }}",
    "an indent": "{{ [[1]]|tojson(indent=10**10) }}",
    "doubling": "{% set s = namespace(t='x') %}{% for i in range(40) %}{% set s.t = s.t ~ s.t %}{% endfor %}{{ s.t }}",
}
"""Templates that take about 10 GB; the last one takes 1 TB."""
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a sum": "{% for a in range(99999) %}{% if range(99999)|sum %}{% endif %}{% endfor %}",
    "a power": "{{ (messages|length * 10) ** (10 ** 9) % 7 }}",
}

linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory holds on Linux")


def tokenizer_with(template: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    tokenizer.name_or_path = "theirs"
    return tokenizer


@linux
@pytest.mark.parametrize("template", GIGABYTES.values(), ids=GIGABYTES)
def test_memory_has_a_limit(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "BYTES", 1 << 26)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(TemplateOverLimit, match=r"template of 'theirs' takes more than .* of memory .* another model"):
        render(tokenizer_with(template), TURNS, {}, for_answer=True)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("template", ENDLESS.values(), ids=ENDLESS)
def test_time_has_a_limit(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.1)
    before = signal.getsignal(signal.SIGPROF)
    with pytest.raises(TemplateOverLimit, match=r"template of 'theirs' takes more than 0\.1 s"):
        render(tokenizer_with(template), TURNS, {}, for_answer=True)
    assert signal.getsignal(signal.SIGPROF) is before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_the_time_of_all_conversations_together_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Total(seconds=100.0, conversations=500)
    monkeypatch.setattr(template_limits, "total", before)
    slow = tokenizer_with("{% for a in range(50000) %}{% endfor %}{{ messages[0]['content'] }}")
    assert render(slow, TURNS, {}, for_answer=True) == "hello"
    assert before.seconds > 100.001
    assert before.conversations == 501
    before.seconds = 111.0
    with pytest.raises(
        TemplateOverLimit, match=r"taken 111 s for 502 conversations, .* the last was .* 'theirs'; use another model"
    ):
        render(slow, TURNS, {}, for_answer=True)


def test_the_text_has_a_limit_that_grows_with_the_conversation() -> None:
    long, content = "{% for i in range(20000) %}{{ 'x' * 100 }}{% endfor %}{{ messages[0]['content'] }}", "y" * 300_000
    with pytest.raises(TemplateOverLimit, match=r"writes 2,000,005 characters for one conversation"):
        render(tokenizer_with(long), TURNS, {}, for_answer=True)
    assert len(render(tokenizer_with(long), (("user", content),), {}, for_answer=True)) == 2_300_000


def test_a_template_over_a_limit_is_not_counted_as_a_bad_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each row of the data would take that long, and half the probes of a template would pass for empty."""
    tokenizer = tokenizer_with("{% if messages|length > 1 %}{{ 'x' * 2000000 }}{% endif %}{{ messages[0]['content'] }}")
    with pytest.raises(TemplateOverLimit):
        written_by_template(tokenizer)
    turns = (("system", "world"), ("user", "hello"))
    encoder = Encoder(tokenizer_with("{{ messages[0]['content'] }}"), frozenset())
    encoder.tokenizer.chat_template = tokenizer.chat_template
    with pytest.raises(TemplateOverLimit) as raised:
        encoder.refused([Example(TURNS, None), Example(turns, None)])
    assert raised.value.exit_code == 2


def test_another_thread_renders_too() -> None:
    found: list[str] = []
    tokenizer = tokenizer_with("<{{ messages[0]['content'] }}>")
    thread = threading.Thread(target=lambda: found.append(render(tokenizer, TURNS, {}, for_answer=True)))
    thread.start()
    thread.join()
    assert found == ["<hello>"]
