"""Prompt files of every format: what is read, which columns are found, and what bad ones say."""

import json
import pickle

import pytest
from datasets import Dataset

from sst_ui.data import prompts
from sst_ui.errors import UserError

QUESTIONS = [
    {"question": "Largest?", "A": "cat", "B": "cow", "C": "ant", "D": "owl", "answer": "B"},
    {"question": "Smallest?", "A": "cat", "B": "cow", "C": "ant", "D": "owl", "answer": "C"},
    {"question": "Yes?", "A": "no", "B": "yes", "C": "", "D": "", "answer": "1"},
]


@pytest.fixture
def write(tmp_path):
    """Write rows (or raw text or bytes) in the format that the name says; returns the path."""

    def _write(content, name):
        path = tmp_path / name
        if isinstance(content, bytes | str):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        elif path.suffix == ".parquet":
            Dataset.from_list(content).to_parquet(path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        elif path.suffix in (".jsonl", ".ndjson"):
            lines = (json.dumps(row, ensure_ascii=False) for row in content)
            path.write_text("\n".join(lines), encoding="utf-8")
        else:
            mark = "\t" if path.suffix == ".tsv" else ","
            lines = [content[0].keys(), *(row.values() for row in content)]
            quoted = (mark.join('"' + c.replace('"', '""') + '"' for c in line) for line in lines)
            path.write_text("\n".join(quoted), encoding="utf-8")
        return str(path)

    return _write


def asked(path, samples=None):
    return [p.prompt for p in prompts.load(path, samples).prompts]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_the_same_rows_are_the_same_set_in_every_format(write, suffix):
    rows = [
        {"prompt": 'Say "a, b"\nand c', "topic": "x", "context": "一つ\u2028目"},
        {"prompt": "Name it.", "topic": "y", "context": ""},
    ]
    loaded = prompts.load(write(rows, f"set.{suffix}"))
    assert loaded.prompts[0].prompt == rows[0]["prompt"]
    assert loaded.prompts[0].context == rows[0]["context"]
    assert loaded.digest == prompts.load(write(rows, "reference.jsonl")).digest


@pytest.mark.parametrize(
    ("column", "field"),
    [
        ("Goal", "prompt"),
        ("instruction", "prompt"),
        ("Question", "prompt"),
        ("text", "prompt"),
        ("document_extracted", "context"),
        ("Category", "topic"),
        ("document_topic", "topic"),
        ("subject", "subject"),
        ("correct_answer", "answer"),
    ],
)
def test_well_known_columns_are_found(write, column, field):
    row = {"query": "Which?", column: "value"} if field != "prompt" else {column: "value"}
    (found,) = prompts.load(write([row], "set.csv")).prompts
    assert getattr(found, field) == "value"


def test_a_column_of_plain_text_serves_as_request_and_as_text(write):
    (both,) = prompts.load(write([{"text": "Do it."}], "set.parquet")).prompts
    assert (both.prompt, both.text) == ("Do it.", "Do it.")
    (plain,) = prompts.load(write([{"text": "Do it."}], "set.csv") + "?text=text").prompts
    assert (plain.prompt, plain.text) == ("", "Do it.")
    (request,) = prompts.load(write([{"text": "Do it."}], "set.jsonl") + "?prompt=text").prompts
    assert request.prompt == "Do it."


@pytest.mark.parametrize("query", ["", "?choices=A,B,C,D&answer=answer&prompt=question"])
def test_a_column_for_each_choice(write, query):
    loaded = prompts.load(write(QUESTIONS, "set.csv") + query).prompts
    assert [p.answer for p in loaded] == [1, 2, 1]
    assert loaded[0].choices == ("cat", "cow", "ant", "owl")
    assert loaded[2].choices == ("no", "yes")  # fewer options, empty cells


def test_one_column_that_lists_the_choices(write):
    rows = [{"prompt": "Largest?", "options": ["cat", "cow"], "answer": 1}]
    assert prompts.load(write(rows, "set.parquet")).prompts[0].choices == ("cat", "cow")
    rows = [{"prompt": "Largest?", "options": '["cat", "cow"]', "answer": "1"}]
    assert prompts.load(write(rows, "set.csv")).prompts[0].answer == 1


def test_mapping_filter_and_fixed_fields_of_the_query(write):
    rows = [{"q": f"Q {i}", "kind": "ab"[i % 2], "a": str(i), "prompt": "no"} for i in range(6)]
    path = write(rows, "set.csv")
    query = "?prompt=q&answer=a&where.kind=b&slice=:4&set.system=Be+brief+about+{topic}.&topic=kind"
    loaded = prompts.load(path + query).prompts
    assert [(p.prompt, p.answer, p.system) for p in loaded] == [
        ("Q 1", "1", "Be brief about b."),
        ("Q 3", "3", "Be brief about b."),
    ]
    assert prompts.load(path + "?prompt=q&answer=a&answer=").prompts[0].answer is None


def test_an_answer_that_says_there_is_none(write):
    rows = [{"question": "Who?", "context": "c", "answer": a} for a in ("Ann", "not stated.")]
    loaded = prompts.load(write(rows, "set.csv") + "?unanswerable=Not stated").prompts
    assert [p.answerable for p in loaded] == [True, False]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (":3", [0, 1, 2]),
        ("2:4", [2, 3]),
        ("[2:4]", [2, 3]),
        ("-2:", [8, 9]),
        ("10%:30%", [1, 2]),
        ("8:", [8, 9]),
        (":100", list(range(10))),
    ],
)
def test_slices(write, suffix, part, expected):
    path = write([{"prompt": str(i)} for i in range(10)], f"set.{suffix}")
    assert asked(f"{path}?slice={part}") == [str(i) for i in expected]


def test_what_a_slice_leaves_out_is_not_even_read(write):
    assert asked(write('{"prompt": "a"}\n{"prompt": "b"}\noops', "set.jsonl") + "?slice=:2") == [
        "a",
        "b",
    ]
    assert asked(write("prompt\na\nb\nc,d", "set.csv") + "?slice=:2") == ["a", "b"]


def test_only_touched_row_groups_of_a_parquet_file_are_read(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    path = tmp_path / "set.parquet"
    table = Dataset.from_list([{"prompt": str(i)} for i in range(10)]).data.table
    pq.write_table(table, path, row_group_size=3)
    read, original = [], pq.ParquetFile.read_row_groups

    def spy(self, groups, *args, **kwargs):
        read.extend(groups)
        return original(self, groups, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "read_row_groups", spy)
    assert asked(f"{path}?slice=4:7") == ["4", "5", "6"]
    assert read == [1, 2]
    seen = prompts.preview(str(path), rows=2)
    assert (len(seen.rows), seen.total, read) == (2, 10, [1, 2, 0])


def test_tables_from_a_spreadsheet(write):
    """Byte order mark, Windows line ends, semicolons, blank lines, a quoted line break."""
    path = write(b'\xef\xbb\xbfprompt;topic\r\n"a;\r\nb";x\r\n\r\nc;y\r\n', "set.csv")
    loaded = prompts.load(path).prompts
    assert [(p.prompt, p.topic) for p in loaded] == [("a;\r\nb", "x"), ("c", "y")]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"prompt\nok\ncaf\xe9\n", "a.csv", r"not UTF-8 text \(line 3, byte 13\); save it as"),
        ("prompt,topic\na,b\nc\n", "a.csv", r"a.csv, line 3: 1 cells under 2 columns"),
        ('prompt,topic\n"a\nb",x\nc,d,e\n', "a.csv", r"a.csv, line 4: 3 cells under 2"),
        ('prompt\n"never closed\nb\n', "a.csv", r"a.csv, line 3: unexpected end of data"),
        ("prompt,prompt\na,b", "a.csv", "column 'prompt' twice"),
        ("", "a.csv", "a.csv is empty; it needs a header"),
        ("prompt\n", "a.csv", "is empty; it needs at least one"),
        ("prompt,topic\na,b\n,c\n", "a.csv", r'a.csv, line 3 lacks "prompt"'),
        ("q1,q2\na,b\n", "a.csv", r"it has 'q1', 'q2'.*\?prompt=q1"),
        ("[]", "a.json", "is empty"),
        ('{"a": 1}', "a.json", "holds no list of prompts"),
        ('[{"prompt": "x"}, 3]', "a.json", "entry 2 is not an object"),
        ('[{"prompt": "x"},\n oops]', "a.json", r"not valid JSON: .*line 2, column 2"),
        ('{"data": [{"q": "x"}]}', "a.json", r"entry 1 lacks.*\?prompt=q"),
        (b"hello", "a.parquet", "a.parquet is no readable Parquet file"),
        (b"", "a.parquet", "a.parquet is no readable Parquet file"),
        (b"PAR1" + b"\0" * 40 + b"PAR1", "a.parquet", "no readable Parquet file"),
        ([{"prompt": "a", "answer": {"x": 1}}], "a.parquet", r"row 1: answer must be text"),
        ([{"prompt": "a"}, {"prompt": None}], "a.parquet", r"a.parquet, row 2 lacks"),
        ([{"n": 1}], "a.parquet", r"it has 'n'"),
        ([{"prompt": 1}], "a.parquet", r"row 1: prompt must be text"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_where(write, content, name, message):
    with pytest.raises(UserError, match=message):
        prompts.load(write(content, name))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?prompt=Goal", "column of a.csv 'Goal' is unknown.*Known: answer, prompt"),
        ("?prompt", "'prompt' is no key=value"),
        ("?promt=x", "did you mean 'prompt'"),
        ("?slice=1", r"write slice=:200"),
        ("?slice=5:9", "is empty"),
        ("?split=train", r"one file and has no split.*slice=:200"),
        ("?config=all", "one file and has no config"),
        ("?where.x=1", "column of a.csv 'x' is unknown"),
        ("?where.answer=9", "no row of a.csv has '9' .* there are: 1, 2"),
        ("?shots=2", "2 worked examples, which need a source: add shots_file="),
        ("?shots=2&shots_file=absent.csv", "there is no prompt file 'absent.csv'"),
        ("?set.answer=x", "key 'set.answer' is unknown"),
        ("?file=nowhere", "'nowhere' is unknown"),
    ],
)
def test_a_bad_query_says_what_is_wrong(write, query, message):
    path = write([{"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"}], "a.csv")
    with pytest.raises(UserError, match=message):
        prompts.load(path + query)


def test_worked_examples_from_a_file(write):
    shots = [{**q, "subject": s} for s in ("x", "y") for q in QUESTIONS[:2]]
    examples = write(shots, "dev.csv")
    tests = [{**QUESTIONS[2], "subject": s} for s in ("y", "z", "")]
    loaded = prompts.load(write(tests, "test.csv") + f"?shots=1&shots_file={examples}")
    first = loaded.messages(loaded.prompts[0])
    assert [m["role"] for m in first] == ["user", "assistant", "user"]
    assert first[0]["content"] == "Largest?\nA. cat\nB. cow\nC. ant\nD. owl\nAnswer:"
    assert (first[1]["content"], first[2]["content"]) == ("B", loaded.prompts[0].user)
    assert len(loaded.messages(loaded.prompts[1])) == 3  # no example of its subject: the others
    assert loaded.digest != prompts.load(write(tests, "test.csv")).digest
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_a_question_is_never_its_own_worked_example(write):
    path = write(QUESTIONS, "set.csv")
    loaded = prompts.load(f"{path}?shots=2&shots_file={path}")
    for prompt in loaded.prompts:
        *shown, _ = [m["content"] for m in loaded.messages(prompt) if m["role"] == "user"]
        assert len(shown) == 2
        assert prompt.user not in shown


def test_a_worked_example_needs_an_answer(write):
    path = write(QUESTIONS, "set.csv")
    bare = write([{"question": "Open?"}], "dev.jsonl")
    with pytest.raises(UserError, match=r"dev.jsonl, line 1 has no answer"):
        prompts.load(f"{path}?shots=1&shots_file={bare}")


def test_without_worked_examples_the_turns_are_the_prompts_own(write):
    loaded = prompts.load(write([{"prompt": "Hi", "system": "Be brief."}], "set.jsonl"))
    assert loaded.messages(loaded.prompts[0]) == loaded.prompts[0].messages()


def test_a_preview_offers_the_columns_where_nothing_fits(write):
    path = write([{"q1": "a", "q2": "b"}] * 9, "set.csv")
    seen = prompts.preview(path, rows=3)
    assert seen.columns == ("q1", "q2")
    assert seen.rows == [{"q1": "a", "q2": "b"}] * 3
    assert (seen.mapping, seen.total) == ({}, 9)
    assert "?prompt=q1" in seen.problem
    assert prompts.preview(f"{path}?prompt=q2").mapping == {"prompt": "q2"}
    assert prompts.preview(f"{path}?prompt=q2").problem == ""
    assert "'q3' is unknown" in prompts.preview(f"{path}?prompt=q3").problem


def test_a_preview_of_a_shipped_set():
    seen = prompts.preview("demo/multiple_choice", rows=2)
    assert seen.mapping["choices"] == "choices"
    assert (len(seen.rows), seen.total, seen.problem) == (2, 150, "")


def test_a_question_mark_in_a_file_name_is_no_query(write):
    assert asked(write([{"prompt": "a"}], "what?.jsonl")) == ["a"]


def test_an_id_without_its_prefix_gets_the_prefix_suggested():
    with pytest.raises(UserError, match="write hf:cais/mmlu"):
        prompts.load("cais/mmlu")


@pytest.mark.parametrize("name", ["", "x" * 300, "~\0", "~nobody", "~nobody/x.csv", "?prompt=x"])
def test_what_cannot_be_a_path_is_an_unknown_name(name):
    with pytest.raises(UserError, match=r"is unknown|there is no prompt file"):
        prompts.load(name)
