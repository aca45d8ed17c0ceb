"""Prompt files of every format: what is read, which columns are found, and what bad ones say."""

import json
import pickle
import tracemalloc

import pytest
from datasets import Dataset

from sst_ui.data import files as sources
from sst_ui.data import prompt_sets
from sst_ui.data.types import spread
from sst_ui.errors import UserError
from sst_ui.ui.panels.prompt_files import Opened

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
    return [p.prompt for p in prompt_sets.load(path, samples).prompts]


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_the_same_rows_are_the_same_set_in_every_format(write, suffix):
    rows = [
        {"prompt": 'Say "a, b"\nand c', "topic": "x", "context": "一つ\u2028目"},
        {"prompt": "Name it.", "topic": "y", "context": ""},
    ]
    loaded = prompt_sets.load(write(rows, f"set.{suffix}"))
    assert loaded.prompts[0].prompt == rows[0]["prompt"]
    assert loaded.prompts[0].context == rows[0]["context"]
    assert loaded.digest == prompt_sets.load(write(rows, "reference.jsonl")).digest


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
    (found,) = prompt_sets.load(write([row], "set.csv")).prompts
    assert getattr(found, field) == "value"


ALPACA = [
    {"instruction": "Sort the list.", "input": "3, 1, 2", "output": "1, 2, 3"},
    {"instruction": "Name a bird.", "input": "", "output": "owl"},
]
HARMBENCH = [
    {"Behavior": "Summarise it.", "ContextString": "A long text.", "BehaviorID": "a"},
    {"Behavior": "Name a bird.", "ContextString": "", "BehaviorID": "b"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_columns_that_belong_to_the_request_are_joined(write, suffix):
    assert asked(write(ALPACA, f"a.{suffix}")) == ["Sort the list.\n\n3, 1, 2", "Name a bird."]
    path = write(HARMBENCH, f"h.{suffix}")
    assert asked(path) == ["A long text.\n\nSummarise it.", "Name a bird."]
    # as it is written in the query, and not where the other column is something else
    assert asked(f"{path}?prompt=Behavior+ContextString")[0] == "Summarise it.\n\nA long text."
    (first, _) = prompt_sets.load(f"{path}?context=ContextString").prompts
    assert (first.prompt, first.context) == ("Summarise it.", "A long text.")
    assert asked(f"{path}?prompt=Behavior")[0] == "Summarise it."


def test_a_preview_shows_joined_columns_as_the_query_names_them(write):
    path = write(ALPACA, "a.csv")
    seen = prompt_sets.preview(path)
    assert seen.mapping["prompt"] == "instruction+input"
    assert asked(f"{path}?prompt={seen.mapping['prompt']}") == asked(path)


@pytest.mark.parametrize("name", ["C++", "a+b", "a,b", "50%", "x%2By", "q&a", "my prompt"])
def test_a_column_can_be_named_whatever_its_name_holds(write, name):
    path = write([{name: "right", "a": "wrong", "b": "wrong"}], "set.csv")
    escaped = name.replace("%", "%25").replace("+", "%2B").replace("&", "%26")
    assert asked(f"{path}?prompt={escaped}") == ["right"]
    assert asked(f"{path}?prompt={escaped}&where.{escaped}=right") == ["right"]
    if name not in ("x%2By", "q&a"):
        assert asked(f"{path}?prompt={name}") == ["right"]
    opened = Opened(path, {"prompt": "a"}, prompt_sets.preview(path).columns)
    assert asked(opened.source([name, *[""] * 5])) == ["right"]
    assert asked(opened.source([f"{escaped}+a", *[""] * 5])) == ["right\n\nwrong"]


def test_a_part_of_a_joined_request_that_is_no_text_is_named(write):
    rows = [{"instruction": "x", "input": {"a": [1] * 5000}}]
    with pytest.raises(UserError, match=r"line 1: prompt must be text, not \{'a'") as error:
        prompt_sets.load(write(rows, "a.jsonl"))
    assert len(str(error.value)) < 300
    with pytest.raises(UserError, match="'inputt' is unknown; did you mean 'input'"):
        prompt_sets.load(write(rows, "a.jsonl") + "?prompt=instruction+inputt")


def test_a_column_of_plain_text_serves_as_request_and_as_text(write):
    (both,) = prompt_sets.load(write([{"text": "Do it."}], "set.parquet")).prompts
    assert (both.prompt, both.text) == ("Do it.", "Do it.")
    (plain,) = prompt_sets.load(write([{"text": "Do it."}], "set.csv") + "?text=text").prompts
    assert (plain.prompt, plain.text) == ("", "Do it.")
    (request,) = prompt_sets.load(write([{"text": "Do it."}], "set.jsonl") + "?prompt=text").prompts
    assert request.prompt == "Do it."


@pytest.mark.parametrize("query", ["", "?choices=A,B,C,D&answer=answer&prompt=question"])
def test_a_column_for_each_choice(write, query):
    loaded = prompt_sets.load(write(QUESTIONS, "set.csv") + query).prompts
    assert [p.answer for p in loaded] == [1, 2, 1]
    assert loaded[0].choices == ("cat", "cow", "ant", "owl")
    assert loaded[2].choices == ("no", "yes")  # fewer options, empty cells


def test_one_column_that_lists_the_choices(write):
    rows = [{"prompt": "Largest?", "options": ["cat", "cow"], "answer": 1}]
    assert prompt_sets.load(write(rows, "set.parquet")).prompts[0].choices == ("cat", "cow")
    rows = [{"prompt": "Largest?", "options": '["cat", "cow"]', "answer": "1"}]
    assert prompt_sets.load(write(rows, "set.csv")).prompts[0].answer == 1


def test_mapping_filter_and_fixed_fields_of_the_query(write):
    rows = [{"q": f"Q {i}", "kind": "ab"[i % 2], "a": str(i), "prompt": "no"} for i in range(6)]
    path = write(rows, "set.csv")
    query = "?prompt=q&answer=a&where.kind=b&slice=:4&set.system=Be+brief+about+{topic}.&topic=kind"
    loaded = prompt_sets.load(path + query).prompts
    assert [(p.prompt, p.answer, p.system) for p in loaded] == [
        ("Q 1", "1", "Be brief about b."),
        ("Q 3", "3", "Be brief about b."),
    ]
    assert prompt_sets.load(path + "?prompt=q&answer=a&answer=").prompts[0].answer is None


def test_an_answer_that_says_there_is_none(write):
    rows = [{"question": "Who?", "context": "c", "answer": a} for a in ("Ann", "not stated.")]
    loaded = prompt_sets.load(write(rows, "set.csv") + "?unanswerable=Not stated").prompts
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
    read, original = [], pq.ParquetFile.iter_batches

    def spy(self, size, row_groups, **more):
        read.extend(row_groups)
        return original(self, size, row_groups=row_groups, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert asked(f"{path}?slice=4:7") == ["4", "5", "6"]
    assert read == [1, 2]
    seen = prompt_sets.preview(str(path), rows=2)
    assert (len(seen.rows), seen.total, set(read[2:])) == (2, 10, {0})


def test_tables_from_a_spreadsheet(write):
    """Byte order mark, Windows line ends, semicolons, blank lines, a quoted line break."""
    path = write(b'\xef\xbb\xbfprompt;topic\r\n"a;\r\nb";x\r\n\r\nc;y\r\n', "set.csv")
    loaded = prompt_sets.load(path).prompts
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
        (b"hello", "a.parquet", "a.parquet is not a readable Parquet file"),
        (b"", "a.parquet", "a.parquet is not a readable Parquet file"),
        (b"PAR1" + b"\0" * 40 + b"PAR1", "a.parquet", "not a readable Parquet file"),
        ([{"prompt": "a", "answer": {"x": 1}}], "a.parquet", r"row 1: answer must be text"),
        ([{"prompt": "a"}, {"prompt": None}], "a.parquet", r"a.parquet, row 2 lacks"),
        ([{"n": 1}], "a.parquet", r"it has 'n'"),
        ([{"prompt": 1}], "a.parquet", r"row 1: prompt must be text"),
    ],
)
def test_a_bad_file_says_what_is_wrong_and_where(write, content, name, message):
    with pytest.raises(UserError, match=message):
        prompt_sets.load(write(content, name))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?prompt=Goal", "column of a.csv 'Goal' is unknown.*Known: answer, prompt"),
        ("?prompt", "'prompt' is not key=value"),
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
        prompt_sets.load(path + query)


def test_worked_examples_from_a_file(write):
    shots = [{**q, "subject": s} for s in ("x", "y") for q in QUESTIONS[:2]]
    examples = write(shots, "dev.csv")
    tests = [{**QUESTIONS[2], "subject": s} for s in ("y", "z", "")]
    loaded = prompt_sets.load(write(tests, "test.csv") + f"?shots=1&shots_file={examples}")
    first = loaded.messages(loaded.prompts[0])
    assert [m["role"] for m in first] == ["user", "assistant", "user"]
    assert first[0]["content"] == "Largest?\nA. cat\nB. cow\nC. ant\nD. owl\nAnswer:"
    assert (first[1]["content"], first[2]["content"]) == ("B", loaded.prompts[0].user)
    assert len(loaded.messages(loaded.prompts[1])) == 3  # no example of its subject: the others
    assert loaded.digest != prompt_sets.load(write(tests, "test.csv")).digest
    assert pickle.loads(pickle.dumps(loaded)) == loaded


def test_a_question_is_never_its_own_worked_example(write):
    path = write(QUESTIONS, "set.csv")
    loaded = prompt_sets.load(f"{path}?shots=2&shots_file={path}")
    for prompt in loaded.prompts:
        *shown, _ = [m["content"] for m in loaded.messages(prompt) if m["role"] == "user"]
        assert len(shown) == 2
        assert prompt.user not in shown


def test_a_worked_example_needs_an_answer(write):
    path = write(QUESTIONS, "set.csv")
    bare = write([{"question": "Open?"}], "dev.jsonl")
    with pytest.raises(UserError, match=r"dev.jsonl, line 1 has no answer"):
        prompt_sets.load(f"{path}?shots=1&shots_file={bare}")


def test_without_worked_examples_the_turns_are_the_prompts_own(write):
    loaded = prompt_sets.load(write([{"prompt": "Hi", "system": "Be brief."}], "set.jsonl"))
    assert loaded.messages(loaded.prompts[0]) == loaded.prompts[0].messages()


def test_a_preview_offers_the_columns_where_nothing_fits(write):
    path = write([{"q1": "a", "q2": "b"}] * 9, "set.csv")
    seen = prompt_sets.preview(path, rows=3)
    assert seen.columns == ("q1", "q2")
    assert seen.rows == [{"q1": "a", "q2": "b"}] * 3
    assert (seen.mapping, seen.total) == ({}, 9)
    assert "?prompt=q1" in seen.problem
    assert prompt_sets.preview(f"{path}?prompt=q2").mapping == {"prompt": "q2"}
    assert prompt_sets.preview(f"{path}?prompt=q2").problem == ""
    assert "'q3' is unknown" in prompt_sets.preview(f"{path}?prompt=q3").problem


def test_a_preview_of_a_shipped_set():
    seen = prompt_sets.preview("demo/multiple_choice", rows=2)
    assert seen.mapping["choices"] == "choices"
    assert (len(seen.rows), seen.total, seen.problem) == (2, 150, "")


def test_a_question_mark_in_a_file_name_is_no_query(write):
    assert asked(write([{"prompt": "a"}], "what?.jsonl")) == ["a"]


def test_an_id_without_its_prefix_gets_the_prefix_suggested():
    with pytest.raises(UserError, match="write hf:cais/mmlu"):
        prompt_sets.load("cais/mmlu")


@pytest.mark.parametrize("name", ["", "x" * 300, "~\0", "~nobody", "~nobody/x.csv", "?prompt=x"])
def test_what_cannot_be_a_path_is_an_unknown_name(name):
    with pytest.raises(UserError, match=r"is unknown|there is no prompt file"):
        prompt_sets.load(name)


# Large and broken files


def large(path):
    """A file of 6 MB and more, its rows numbered."""
    text, n = "lorem ipsum dolor sit amet " * 18, 14_000
    rows = [{"prompt": f"{i} {text}", "topic": str(i % 7)} for i in range(n)]
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path, batch_size=n)
    elif path.suffix == ".csv":
        lines = (f"{row['prompt']},{row['topic']}\n" for row in rows)
        path.write_text("prompt,topic\n" + "".join(lines))
    else:
        lines = [json.dumps(row) for row in rows]
        jsonl = path.suffix == ".jsonl"
        path.write_text("\n".join(lines) if jsonl else "[" + ",\n".join(lines) + "]")
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_four_samples_of_a_large_file_cost_the_memory_of_four(tmp_path, suffix):
    path = large(tmp_path / f"set.{suffix}")
    size = (tmp_path / f"set.{suffix}").stat().st_size
    tracemalloc.start()
    try:
        found = asked(path, 4)
        where = asked(f"{path}?where.topic=3", 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [int(p.split()[0]) for p in found] == spread(14_000, 4)
    assert [int(p.split()[0]) % 7 for p in where] == [3] * 4
    assert size > 6e6 > 2 * peak


def test_four_samples_of_a_large_parquet_file_are_decoded_in_small_batches(tmp_path):
    import pyarrow as pa

    path = large(tmp_path / "set.parquet")
    before = pa.total_allocated_bytes()
    found = asked(path, 4)
    assert [int(p.split()[0]) for p in found] == spread(14_000, 4)
    assert pa.total_allocated_bytes() - before < 1e6


def test_only_the_lines_of_the_samples_are_parsed(write, monkeypatch):
    path = write([{"prompt": str(i)} for i in range(5000)], "set.jsonl")
    parsed, original = [], json.loads
    monkeypatch.setattr(sources.json, "loads", lambda text: parsed.append(0) or original(text))
    assert len(asked(path, 4)) == 4
    assert len(parsed) == sources.FIRST + 4


def test_a_column_that_comes_late_in_a_file_is_found(write):
    rows = [{"prompt": str(i)} for i in range(1500)] + [{"prompt": "x", "kind": "late"}]
    path = write(rows, "set.jsonl")
    assert asked(f"{path}?where.kind=late") == ["x"]
    assert prompt_sets.load(f"{path}?topic=kind").prompts[-1].topic == "late"
    assert prompt_sets.load(f"{path}?topic=kind", 2).prompts[0].topic == ""


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (
            '{"prompt": "a\\ud800b"}',
            "a.jsonl",
            r"line 1: prompt holds half a character \('\\ud800'",
        ),
        ('{"prompt": "x"}\n{"prompt": "a\\u0000"}', "a.jsonl", r"line 2: prompt holds a NUL"),
        ('[{"prompt": "x", "topic": "\\udfff"}]', "a.json", r"entry 1: topic holds half a char"),
        ('{"prompt": "x", "aliases": ["\\ud801"]}', "a.jsonl", "line 1: aliases holds half"),
        ('{"prompt": "x", "\\ud800": 1}', "a.jsonl", "line 1: a field's name holds half"),
        ('{"prompt": "x", "answer": NaN}', "a.jsonl", "line 1: answer must be text, not nan"),
        ('{"prompt": "x", "topic": Infinity}', "a.jsonl", "line 1: topic must be text, not inf"),
        ('{"prompt": "x", "topic": 1e999}', "a.jsonl", "line 1: topic must be text, not inf"),
        ('{"prompt": -Infinity}', "a.jsonl", "line 1: prompt must be text, not -inf"),
        ('{"prompt": {"a": {"b": [1]}}}', "a.jsonl", "line 1: prompt must be text, not {'a'"),
        ('{"prompt": "x", "answer": ' + "9" * 4000 + "}", "a.jsonl", "line 1: answer must be text"),
        ('{"prompt": ' + "9" * 5000 + "}", "a.jsonl", "line 1 is not a prompt: Exceeds"),
        ("prompt\na\0b\n", "a.csv", r"holds a NUL byte \(line 2\)"),
        ('{"prompt": "a\0"}', "a.jsonl", r"holds a NUL byte \(line 1\)"),
        ('[{"prompt": "a\0"}]', "a.json", "holds a NUL byte"),
        ("prompt\na\n".encode("utf-16"), "a.csv", "not UTF-8"),
        ("prompt\na\n".encode("utf-16-le"), "a.csv", "holds a NUL byte"),
        (b'[{"prompt": "x"},\n{"prompt": "caf\xe9"}]', "a.json", r"not UTF-8 text \(line 2\)"),
        (b'[{"prompt": "x\xe3', "a.json", r"not UTF-8 text \(line 1\)"),
        (b"\xef\xbb\xbf", "a.jsonl", "is empty"),
        (b"\xef\xbb\xbf", "a.json", "a.json is empty"),
        ("", "a.json", "a.json is empty"),
        ("", "a.jsonl", "is empty"),
        ("[", "a.json", "not valid JSON: Expecting value .line 1, column 2"),
        ('[{"prompt": "x"', "a.json", "not valid JSON: Expecting ',' delimiter .line 1, column 16"),
        ('[{"prompt": "x"} {}]', "a.json", "Expecting ',' delimiter .line 1, column 18"),
        ('[{"prompt": "x"}] 3', "a.json", "Extra data .line 1, column 19"),
        ('{"a": [], "b": []}', "a.json", "holds no list of prompts"),
        ('{"a" [1]}', "a.json", "Expecting ':' delimiter"),
        ("{a: 1}", "a.json", "Expecting property name"),
        ("[" * 100_000, "a.json", "line 1 is not a prompt"),
        ('"text"', "a.json", "holds no list of prompts"),
        ("a" * 300 + "\n\n" + "b,c", "a.csv", "line 3: 2 cells under 1 columns"),
        (",".join(f"column {i}" for i in range(3000)) + "\n", "a.csv", "is empty"),
        (",".join(["x"] * 3000) + "\n", "a.csv", "column 'x' twice"),
    ],
)
def test_broken_content_is_one_line_that_names_the_place(write, content, name, message):
    path = write(content, name)
    with pytest.raises(UserError, match=message) as error:
        prompt_sets.load(path)
    said = str(error.value)
    assert "\n" not in said
    assert len(said.replace(path, "")) < 500
    said.encode()  # can be printed


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_line_without_end_is_not_read_to_its_end(write, monkeypatch, name):
    monkeypatch.setattr(sources, "LINE", 1000)
    text = "x" * 5000
    content = {"a.csv": f'prompt\n"{text}"\n', "a.json": f'[{{"prompt": "{text}"}}]'}
    monkeypatch.setattr(sources, "PIECE", 100)
    path = write(content.get(name, f'{{"prompt": "{text}"}}'), name)
    with pytest.raises(UserError, match=r"line \d.* longer than"):
        prompt_sets.load(path)


def test_a_json_array_is_the_same_however_it_is_cut_into_pieces(write, monkeypatch):
    rows = [
        {"prompt": 'Say "a\\" \u3042 \U0001f600\n' * 3, "answer": i, "aliases": ["a", "b"] * 9}
        for i in (0, 12, 123456)
    ]
    whole = prompt_sets.load(write(rows, "a.json"))
    nested = write('{"n": [1, 2], "x": {"y": 12}, "m": 3.5e7}', "b.json")
    for piece in (1, 2, 3, 7, 31):
        monkeypatch.setattr(sources, "PIECE", piece)
        assert prompt_sets.load(write(rows, "a.json")).digest == whole.digest
        with pytest.raises(UserError, match="entry 1 is not an object"):
            prompt_sets.load(nested)


@pytest.mark.parametrize(
    "part",
    ["9" * 400 + ":", ":" + "9" * 5000, "1:2:3", "1e3:", "٣:٤", "-:", "%:", ":1.5", "a:b", "::"],
)
def test_a_slice_that_is_none_is_said(write, part):
    path = write([{"prompt": "a"}], "set.jsonl")
    with pytest.raises(UserError, match="write slice=:200") as error:
        prompt_sets.load(f"{path}?slice={part}")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("part", "left"),
    [
        ("999999999999999:", 0),
        (":999999999999999", 3),
        ("-999999999999999:", 3),
        (":-999999999999999", 0),
        ("2:1", 0),
        ("-2:-1", 1),
        ("-50%:", 2),
        (":999999%", 3),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json", "parquet"])
def test_a_slice_may_reach_beyond_the_rows(write, part, left, suffix):
    path = f"{write([{'prompt': str(i)} for i in range(3)], f'set.{suffix}')}?slice={part}"
    if left:
        assert len(asked(path)) == left
    else:
        with pytest.raises(UserError, match="is empty"):
            prompt_sets.load(path)


@pytest.mark.parametrize("samples", [0, -1, -(10**30)])
def test_no_samples_are_not_asked_for(samples):
    with pytest.raises(UserError, match="it must be 1 or more"):
        prompt_sets.load("demo/harmful", samples)


def test_a_folder_with_a_files_name_and_one_with_nothing_in_it_are_said(tmp_path):
    (tmp_path / "set.jsonl").mkdir()
    with pytest.raises(UserError, match="holds no files that can be read"):
        prompt_sets.load(tmp_path / "set.jsonl")


def test_a_file_that_may_not_be_read_or_is_gone_is_said(write, monkeypatch):
    path = write([{"prompt": "a"}], "set.jsonl")

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sources.Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot read the prompt file .*: Permission denied"):
        prompt_sets.load(path)
