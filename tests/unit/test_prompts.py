"""Prompt sets: what can be read, how a prompt is worded, and what bad files say."""

import json

import pytest

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError


@pytest.fixture
def write(tmp_path):
    """Write lines (objects, or raw text or bytes) to a prompt file and return its path."""

    def _write(*lines, name="set.jsonl"):
        path = tmp_path / name
        raw = [
            line
            if isinstance(line, bytes)
            else (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)).encode()
            for line in lines
        ]
        path.write_bytes(b"\n".join(raw))
        return str(path)

    return _write


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "presets" / "prompts" / "demo"
    folder.mkdir(parents=True)
    for name in ("harmful", "harmless"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"prompt": f"a {name} thing"}))
    monkeypatch.setattr(prompt_sets, "PRESETS", tmp_path / "presets")


def test_a_shipped_set_is_found_by_its_name(shipped):
    assert prompt_sets.names() == ["demo/harmful", "demo/harmless"]
    loaded = prompt_sets.load("demo/harmless")
    assert (loaded.name, loaded.prompts[0].prompt) == ("demo/harmless", "a harmless thing")


def test_a_misspelt_name_gets_a_suggestion(shipped):
    with pytest.raises(UserError, match="did you mean 'demo/harmful'"):
        prompt_sets.load("demo/harmfull")


def test_a_name_cannot_leave_the_folder_of_presets(shipped, tmp_path):
    (tmp_path / "presets" / "secret.jsonl").write_text('{"prompt": "x"}')
    with pytest.raises(UserError, match="unknown"):
        prompt_sets.load("../secret")


def test_a_multiple_choice_question_is_worded_with_letters(write):
    line = {"prompt": "Largest?", "choices": ["cat", "cow", "ant", "owl"], "answer": 1}
    (prompt,) = prompt_sets.load(write(line)).prompts
    assert prompt.user == "Largest?\nA. cat\nB. cow\nC. ant\nD. owl\nAnswer:"
    assert prompt.answer == 1


@pytest.mark.parametrize("answer", [2, "C", "c", "ant"])
def test_the_right_choice_may_be_a_number_a_letter_or_its_words(write, answer):
    line = {"prompt": "Smallest?", "choices": ["cat", "cow", "ant", "owl"], "answer": answer}
    assert prompt_sets.load(write(line)).prompts[0].answer == 2


@pytest.mark.parametrize("answer", [4, -1, "E", "dog", None])
def test_an_answer_that_is_no_choice_is_refused(write, answer):
    line = {"prompt": "Smallest?", "choices": ["cat", "cow", "ant", "owl"], "answer": answer}
    with pytest.raises(UserError, match=r"line 1.*0 to 3 or a letter A to D"):
        prompt_sets.load(write(line))


def test_a_reading_question_comes_after_its_context(write):
    line = {"prompt": "Where does Ann live?", "context": "Ann lives in Oslo.", "answer": "Oslo"}
    (prompt,) = prompt_sets.load(write(line)).prompts
    assert prompt.user == "Ann lives in Oslo.\n\nQuestion: Where does Ann live?"


def test_a_system_message_comes_first(write):
    (prompt,) = prompt_sets.load(write({"prompt": "Hi", "system": "Be brief."})).prompts
    assert [m["role"] for m in prompt.messages()] == ["system", "user"]


def test_files_from_other_systems_are_read(write):
    """Byte order mark, Windows line ends, blank lines, no newline at the end, Japanese text."""
    path = write(b'\xef\xbb\xbf{"prompt": "one"}\r', b"", b"  \r", {"prompt": "二つ目"})
    assert [p.prompt for p in prompt_sets.load(path).prompts] == ["one", "二つ目"]


def test_unicode_line_separators_inside_a_prompt_do_not_split_it(write):
    (prompt,) = prompt_sets.load(write({"prompt": "a\u2028b\u0085c"})).prompts
    assert prompt.prompt == "a\u2028b\u0085c"


def test_plain_text_needs_no_prompt(write):
    (prompt,) = prompt_sets.load(write({"text": "Once upon a time."})).prompts
    assert (prompt.text, prompt.prompt) == ("Once upon a time.", "")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "caf\xe9"}', "not UTF-8 text \\(line 1"),
        ('{"prompt": "x"', "line 1 is not valid JSON"),
        ('"just text"', "line 1 is not an object"),
        ("[1, 2]", "line 1 is not an object"),
        pytest.param("[" * 100_000, "line 1 is not a prompt", id="deep"),
        ({"promt": "x"}, "lacks \"prompt\".*it has 'promt'"),
        ({"prompt": "   "}, 'lacks "prompt"'),
        ({"prompt": None}, 'lacks "prompt"'),
        ({}, "it is empty"),
        ({"prompt": 7}, "prompt must be text"),
        ({"prompt": "x", "choices": "A, B"}, "choices must be a list of texts"),
        ({"prompt": "x", "choices": ["only"], "answer": 0}, "1 choices; 2 to 10"),
        ({"prompt": "x", "answer": [1]}, "answer must be text"),
        ({"prompt": "x", "answerable": "no"}, "answerable must be true or false"),
        ("", "is empty"),
        ("\n \n", "is empty"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_where(write, line, message):
    with pytest.raises(UserError, match=message):
        prompt_sets.load(write(line))


def test_the_line_number_counts_blank_lines(write):
    with pytest.raises(UserError, match=r"set.jsonl, line 3"):
        prompt_sets.load(write({"prompt": "x"}, "", "oops"))


def test_utf_16_is_named_as_not_utf_8(write):
    with pytest.raises(UserError, match=r"not UTF-8.*save it as UTF-8"):
        prompt_sets.load(write('{"prompt": "x"}'.encode("utf-16")))


def test_other_formats_and_missing_files_are_told_apart(write, tmp_path):
    with pytest.raises(UserError, match="JSON lines"):
        prompt_sets.load(write("prompt\nhello", name="set.xlsx"))
    with pytest.raises(UserError, match="there is no prompt file"):
        prompt_sets.load(tmp_path / "absent.jsonl")


def test_a_subset_is_evenly_spread_and_always_the_same(write):
    path = write(*({"prompt": str(i)} for i in range(100)))
    taken = [int(p.prompt) for p in prompt_sets.load(path, samples=10).prompts]
    assert [i // 10 for i in taken] == list(range(10))  # one from each tenth
    assert taken == [int(p.prompt) for p in prompt_sets.load(path, samples=10).prompts]
    assert len(prompt_sets.load(path, samples=1000)) == 100


def test_a_subset_does_not_fall_in_step_with_a_cycle_of_topics(write):
    path = write(*({"prompt": "x", "topic": str(i % 4)} for i in range(96)))
    topics = [p.topic for p in prompt_sets.load(path, samples=24).prompts]  # a step of exactly 4
    assert set(topics) == {"0", "1", "2", "3"}


def test_the_digest_follows_the_content_and_not_the_name(write):
    one = prompt_sets.load(write({"prompt": "x"}, name="one.jsonl"))
    same = prompt_sets.load(write({"topic": "", "prompt": "x"}, name="two.jsonl"))
    other = prompt_sets.load(write({"prompt": "y"}, name="three.jsonl"))
    assert one.digest == same.digest != other.digest
