"""From messages to tokens: the traps that break other tools, one test each."""

import subprocess
import sys

import pytest

from sst_ui.errors import UserError
from sst_ui.model.load import step_limit
from sst_ui.model.load.chat_template import TEMPLATES, ChatTemplate, read_template
from sst_ui.paths import ROOT
from sst_ui.recipe import ModelSpec
from tests.talk import CHATML, byte_tokenizer, tiny_host

BOS = 1
WITH_BOS = "{{ bos_token }}" + CHATML
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHATML
)
DROPS_SYSTEM = (
    "{% for m in messages if m['role'] != 'system' %}{{ m['content'] + '</s>' }}{% endfor %}"
)
THINKING = (
    CHATML + "{% if add_generation_prompt and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
ALWAYS_THINKING = CHATML + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
USER = [{"role": "user", "content": "Hello"}]
SYSTEM = [{"role": "system", "content": "Be brief."}, *USER]


@pytest.mark.parametrize("writes", [False, True], ids=["template-silent", "template-writes"])
@pytest.mark.parametrize("adds", [False, True], ids=["tokenizer-silent", "tokenizer-adds"])
def test_a_prompt_never_starts_with_two_bos(writes, adds):
    template = ChatTemplate(byte_tokenizer(WITH_BOS if writes else CHATML, adds_bos=adds))
    ids = template.encode(USER)
    assert ids.count(BOS) == (1 if writes or adds else 0)
    assert BOS not in ids[1:]


def test_bos_is_the_only_difference_to_the_rendered_text():
    plain = ChatTemplate(byte_tokenizer(CHATML)).encode(USER)
    added = ChatTemplate(byte_tokenizer(CHATML, adds_bos=True)).encode(USER)
    assert added == [BOS, *plain]


@pytest.mark.parametrize("source", [NO_SYSTEM, DROPS_SYSTEM], ids=["rejected", "dropped"])
def test_a_system_message_survives_a_template_without_system_role(source):
    template = ChatTemplate(byte_tokenizer(source))
    assert not template.accepts_system
    assert "Be brief.\n\nHello" in template.format(SYSTEM)


def test_a_system_message_stays_its_own_where_the_template_takes_it():
    text = ChatTemplate(byte_tokenizer()).format(SYSTEM)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_formatting_leaves_the_messages_as_they_were():
    messages = [dict(m) for m in SYSTEM]
    ChatTemplate(byte_tokenizer(NO_SYSTEM)).format(messages)
    assert messages == SYSTEM


@pytest.mark.parametrize("source", [THINKING, ALWAYS_THINKING], ids=["listens", "ignores"])
def test_with_thinking_off_the_prompt_ends_behind_a_closed_block(source):
    template = ChatTemplate(byte_tokenizer(source), enable_thinking=False)
    assert template.format(USER).endswith("</think>\n\n")


@pytest.mark.parametrize("source", [THINKING, ALWAYS_THINKING], ids=["listens", "ignores"])
def test_with_thinking_on_no_block_is_closed(source):
    template = ChatTemplate(byte_tokenizer(source), enable_thinking=True)
    assert "</think>" not in template.format(USER)


PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FIRST_PART = PARTS.replace("{% for part in m['content'] %}", "{% set part = m['content'][0] %}")
FIRST_PART = FIRST_PART.replace("{% endif %}{% endfor %}<", "{% endif %}<")
# the user's turn in parts, the system's and the assistant's as text
MIXED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'user' %}"
    "{{ m['content'][0]['text'] }}{% elif m['content'] is string %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HISTORY = [*SYSTEM, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye"}]


@pytest.mark.parametrize("source", [PARTS, FIRST_PART, MIXED], ids=["loop", "first", "mixed"])
def test_a_template_that_wants_parts_writes_what_one_for_text_writes(source):
    template = ChatTemplate(byte_tokenizer(source))
    for talk in (USER, SYSTEM, HISTORY):
        assert template.format(talk) == ChatTemplate(byte_tokenizer()).format(talk)
    assert template.stop == ChatTemplate(byte_tokenizer()).stop


@pytest.mark.parametrize(
    "source",
    ["{% for m in messages %}{{ m['text'] }}{% endfor %}", "{{ messages | length }} messages"],
)
def test_a_template_that_never_writes_the_message_is_an_error_and_no_score(source):
    with pytest.raises(UserError, match="does not write the user's message"):
        ChatTemplate(byte_tokenizer(source))


@pytest.mark.parametrize(
    "loop",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% set x = range(99999) | list | length %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    ],
    ids=["loops", "filters", "macros"],
)
def test_a_template_that_does_not_come_to_an_end_is_stopped_and_said(loop, monkeypatch):
    monkeypatch.setattr(step_limit, "SECONDS", 1)
    before = sys.gettrace()
    with pytest.raises(UserError, match=ENDLESS):
        ChatTemplate(byte_tokenizer(loop + CHATML))
    later = "{% if messages | length > 3 %}" + loop + "{% endif %}" + CHATML
    template = ChatTemplate(byte_tokenizer(later))  # it looks sound at first
    assert "Hello" in template.format(USER)
    with pytest.raises(UserError, match=ENDLESS):
        template.format([*USER, {"role": "assistant", "content": "Hi"}] * 2 + USER)
    assert sys.gettrace() is before


ENDLESS = "does not come to an end|builds far more text"  # whichever is noticed first
# What one call into C would build, constant (so that Jinja computes it while it compiles) or not.
NESTS = (  # two that are alike, which no comparison sees before the end
    "{% set x = namespace(a=(1,), b=(1,)) %}{% for i in range(60) %}{% set x.a = (x.a, x.a) %}"
    "{% set x.b = (x.b, x.b) %}{% endfor %}"
)
COMPARED = [
    "{% if x.a == x.b %}{% endif %}",
    "{% if 1 < 2 != (x.a == x.b) %}{% endif %}",
    "{% if x.a is eq x.b %}{% endif %}",
    "{% if x.a is in [x.b] %}{% endif %}",
    "{% if x.a in [x.b] %}{% endif %}",
    "{{ [x.a, x.b] | sort | length }}",
    "{{ [x.a, x.b] | max | length }}",
    "{{ [x.a, x.b] | map('first') | unique | list | length }}",
    "{{ [x.a, x.b] | select('eq', x.a) | list | length }}",
    "{{ [{'k': x.a}, {'k': x.b}] | groupby('k') | list | length }}",
    "{{ [x.a].index(x.b) }}",
    "{{ [x.a].count(x.b) }}",
    "{{ {x.a: 1} | length }}",
    "{{ dict([(x.a, 1)]) | length }}",
    "{{ {'a': 1}[x.a] }}",
    "{{ {'a': 1}.get(x.a) }}",
    "{{ {'a': 1} | attr('get') is none }}{{ [1] | map(attribute=x.a) | list | length }}",
]
BOMBS = [
    "{{ 'a' * 10**10 }}",
    "{{ 'a' * 1000000000 }}",
    "{{ [0] * 10**9 }}",
    "{% set x = 'a' * 10**9 %}",
    "{% set n = messages | length * 10**9 %}{{ 'a' * n }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '%*d' % (999999999, 1) }}",
    "{{ '%999999999d' | format(1) }}",
    "{{ '{:>999999999}'.format('') }}",
    "{{ '{:>{}}'.format('', 999999999) }}",
    "{{ '{a:>999999999}'.format_map({'a': ''}) }}",
    "{{ 'x' | center(10**9) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ 'x'.ljust(10**9) }}",
    "{{ 'x' | indent(10**9, true) }}",
    "{{ ('\n' * 10**5) | indent(10**5) }}",
    "{{ (1).to_bytes(10**9, 'big') | length }}",
    "{{ 1 | round(-10**9) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ range(10**9) | list }}",
    "{{ ('a' * 10**5).replace('a', 'b' * 10**5) }}",
    "{{ ('a' * 10**5) | replace('', 'b' * 10**5) }}",
    "{{ (['a'] * 10**5) | join('b' * 10**5) }}",
    "{{ ('b' * 10**5).join(['a'] * 10**5) }}",
    "{{ {'a': [1]} | tojson(indent=10**9) }}",
    "{{ lipsum(n=10**9) }}",
    "{% set x = namespace(s='a') %}{% for i in range(50) %}{% set x.s = x.s ~ x.s %}{% endfor %}",
    "{% set x = namespace(s='a') %}{% for i in range(50) %}{% set x.s = x.s + x.s %}{% endfor %}",
    "{% set x = namespace(s='a') %}{% for i in range(50) %}{% set t %}{{ x.s }}{{ x.s }}"
    "{% endset %}{% set x.s = t %}{% endfor %}",
    "{% set x = namespace(s=[1]) %}{% for i in range(50) %}{% set x.s = [x.s, x.s] %}{% endfor %}"
    "{{ x.s }}",
    *(NESTS + each for each in COMPARED),
]
CHILD = """
import resource, sys
from tests.talk import byte_tokenizer
from tests.unit.test_template import BOMBS, CHATML
from sst_ui.errors import UserError
from sst_ui.model.load.chat_template import ChatTemplate
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
for bomb in BOMBS:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ChatTemplate(byte_tokenizer(bomb + CHATML))
        said = "taken"
    except UserError as error:
        said = "refused" if "chat template" in str(error) else str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(said, grown // 1024, bomb.replace(chr(10), " "), flush=True)
"""


def test_no_expression_of_a_template_takes_all_memory_not_even_while_it_is_compiled():
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=ROOT, capture_output=True, text=True, check=False
    )
    told = [line.split(" ", 2) for line in done.stdout.splitlines()]
    assert [said for said, _, _ in told] == ["refused"] * len(BOMBS), done.stdout + done.stderr
    assert max(int(megabytes) for _, megabytes, _ in told) < 100, done.stdout


def test_what_real_templates_do_with_texts_is_as_it_was():
    source = (
        "{{ 'a' * 3 }}{{ '%5.1f|%s' % (2.25, 'x') }}{{ '{:>4}{{}}'.format(7) }}{{ 'a' ~ 1 ~ [2] }}"
        "{{ 'b' | center(5) }}{{ [1, 2] | join('-') }}{{ '+'.join(['p', 'q']) }}{{ 7 % 4 }}"
        "{{ 'x\ny' | indent(2) }}{{ {'k': [1]} | tojson(indent=1) }}{{ 2 ** 10 }}{{ [1] + [2] }}"
        "{{ messages | map(attribute='role') | join(',') }}{{ 'aXa' | replace('X', '--') }}"
        "{{ 1.256 | round(2) }}{{ none }}{{ undefined_name }}{{ 10**12 }}{{ 'abc'.split('b') }}"
    )
    written = (
        'aaa  2.2|x   7{}a1[2]  b  1-2p+q3x\n  y{\n "k": [\n  1\n ]\n}1024[1, 2]'
        "usera--a1.26None1000000000000['a', 'c']"
    )
    assert ChatTemplate(byte_tokenizer(source + CHATML)).format(USER).startswith(written)


def test_a_template_that_writes_far_more_than_it_is_given_is_refused():
    flood = "{{ messages[-1]['content'] * 50000 }}" + CHATML
    with pytest.raises(UserError, match="far more than it holds"):
        ChatTemplate(byte_tokenizer(flood))


def test_a_conversation_of_a_thousand_turns_is_still_written():
    long = [*USER, {"role": "assistant", "content": "Hi"}] * 1000 + USER
    assert ChatTemplate(byte_tokenizer(CHATML)).format(long).count("Hello") == 1001


def test_a_system_message_is_kept_where_parts_of_it_would_be_dropped():
    deaf = PARTS.replace(
        "{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}"
    )
    assert "Be brief.\n\nHello" in ChatTemplate(byte_tokenizer(deaf)).format(SYSTEM)


def test_a_system_message_is_kept_in_a_long_conversation_too():
    once = "{% if messages | length > 2 and messages[0]['role'] == 'system' %}"
    once += "{% set messages = messages[1:] %}{% endif %}" + CHATML
    assert "Be brief.\n\nHello" in ChatTemplate(byte_tokenizer(once)).format(HISTORY)


def test_a_template_of_one_turn_refuses_a_conversation_and_loses_nothing():
    template = ChatTemplate(byte_tokenizer("{{ messages[-1]['content'] }}"))
    assert template.format(USER) == "Hello"
    with pytest.raises(UserError, match="leaves out earlier turns"):
        template.format(HISTORY)


def test_a_model_without_template_asks_for_one_and_names_the_presets():
    with pytest.raises(UserError, match=r"no chat template.*chatml, plain"):
        ChatTemplate(byte_tokenizer(None))


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_every_preset_template_writes_all_roles(name):
    template = ChatTemplate(byte_tokenizer(None), name)
    history = [*SYSTEM, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye"}]
    text = template.format(history)
    assert [text.count(m["content"]) for m in history] == [1, 1, 1, 1]
    assert template.accepts_system


def test_a_template_file_replaces_the_models_own(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", encoding="utf-8")
    assert ChatTemplate(byte_tokenizer(), str(path)).format(USER) == "[Hello]"


@pytest.mark.parametrize(
    ("source", "message"),
    [("chatm", "did you mean 'chatml'"), ("./none.jinja", "does not exist")],
)
def test_an_unknown_template_is_named(source, message):
    with pytest.raises(UserError, match=message):
        read_template(source)


def test_a_file_that_is_no_template_is_refused(tmp_path):
    path = tmp_path / "readme.txt"
    path.write_text("hello", encoding="utf-8")
    with pytest.raises(UserError, match="not a chat template"):
        read_template(str(path))


def test_a_conversation_that_the_template_refuses_is_a_clear_message():
    strict = "{{ raise_exception('must alternate') if messages[0]['role'] != 'user' else '' }}"
    template = ChatTemplate(byte_tokenizer(strict + CHATML))
    with pytest.raises(UserError, match="assistant: must alternate"):
        template.format([{"role": "assistant", "content": "Hi."}])


def test_the_end_of_turn_token_of_the_template_ends_an_answer():
    tokenizer = byte_tokenizer()
    assert ChatTemplate(tokenizer).stop == {2, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert ChatTemplate(byte_tokenizer("{{ messages[0]['content'] }}x")).stop == {2}


def test_a_model_without_pad_token_answers_a_batch():
    from sst_ui.model.inference.generate import generate

    with_pad, without = tiny_host(), tiny_host(tokenizer=byte_tokenizer(pad=False))
    prompts = [with_pad.encode("Hello"), with_pad.encode("A longer prompt")]
    assert without.pad == without.tokenizer.eos_token_id != with_pad.pad
    assert list(generate(without, prompts, None, 8)) == list(generate(with_pad, prompts, None, 8))


def test_a_prompt_longer_than_the_context_says_both_numbers(tiny_host):
    with pytest.raises(UserError, match=r"the prompt has 3\d\d tokens .* reads 256"):
        tiny_host().encode("x" * 300)


def test_the_system_argument_is_a_system_message(tiny_host):
    host = tiny_host()
    assert host.encode("Hello", system="Be brief.") == host.encode(SYSTEM)
    assert host.encode("Hello") == host.encode(USER)


def test_one_setting_of_the_spec_reaches_the_prompt(tiny_host):
    thinking = tiny_host(
        tokenizer=byte_tokenizer(THINKING), spec=ModelSpec(id="x", enable_thinking=True)
    )
    silent = tiny_host(tokenizer=byte_tokenizer(THINKING))
    assert len(silent.encode("Hello")) > len(thinking.encode("Hello"))
