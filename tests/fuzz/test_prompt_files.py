"""Any prompt file and any name of a prompt set: prompts, or one line that says what is wrong."""

import json
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError

SECONDS = 5  # of computing for one small input; many times what it takes
FUZZ = settings(
    derandomize=True,
    deadline=None,
    max_examples=80,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Characters that break readers: quotes, ends of lines, halves of characters, what ends a text.
TEXT = st.text(
    st.one_of(
        st.sampled_from('",;\t\n\r\\\0\ufeff\u2028\ud800\udfff{}[]:+%&=?あ🙂'),
        st.characters(codec=None),
    ),
    max_size=12,
)
TYPICAL = (
    "prompt", "text", "answer", "choices", "context", "topic", "system", "answerable", "pair",
    "instruction", "input", "Behavior", "ContextString", "A", "B", "aliases",
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(TYPICAL),
    TEXT,
)
NUMBERS = st.one_of(
    st.integers(), st.integers(min_value=10**30), st.floats(), st.just(10**4000), st.booleans()
)
VALUES = st.recursive(
    st.none() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(NAMES, VALUES, max_size=4) | VALUES, max_size=5)
SAMPLES = st.none() | st.integers(-2, 9) | st.just(10**30)
SUFFIXES = ("jsonl", "json", "csv", "tsv", "parquet", "ndjson")


def read(name, samples=None):
    """Load and look at a set; nothing but a UserError may come of it."""
    start = time.process_time()
    for job in (lambda: prompt_sets.load(name, samples), lambda: prompt_sets.preview(name)):
        try:
            found = job()
        except UserError as error:
            said = str(error)
            said.encode()
            assert "\n" not in said
            assert len(said) < 1200 + str(name).count("/") * 100, said
            continue
        if isinstance(found, prompt_sets.PromptSet):
            assert len(found) > 0
            for prompt in found.prompts:
                for message in found.messages(prompt):
                    message["content"].encode()
    assert time.process_time() - start < SECONDS


@FUZZ
@given(content=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES), samples=SAMPLES)
def test_any_bytes(tmp_path, content, suffix, samples):
    path = tmp_path / f"set.{suffix}"
    path.write_bytes(content)
    read(path, samples)


@FUZZ
@given(rows=ROWS, suffix=st.sampled_from(("jsonl", "json")), samples=SAMPLES)
def test_any_rows_of_json(tmp_path, rows, suffix, samples):
    path = tmp_path / f"set.{suffix}"
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
    read(path, samples)


@FUZZ
@given(cells=st.lists(st.lists(NAMES, max_size=3), max_size=5), mark=st.sampled_from(",;\t"))
def test_any_cells_of_a_table(tmp_path, cells, mark):
    path = tmp_path / "set.csv"
    text = "\n".join(mark.join(line) for line in cells)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    read(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good file of every format, as bytes."""
    from datasets import Dataset

    rows = [{"prompt": f"Question {i}?", "answer": str(i), "topic": "ab"[i % 2]} for i in range(9)]
    path = tmp_path_factory.mktemp("whole") / "set.parquet"
    Dataset.from_list(rows).to_parquet(path)
    lines = [json.dumps(row) for row in rows]
    table = "prompt,answer,topic\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    return {
        "parquet": path.read_bytes(),
        "jsonl": "\n".join(lines).encode(),
        "json": f'{{"data": [{",".join(lines)}]}}'.encode(),
        "csv": table.encode(),
    }


@FUZZ
@given(
    suffix=st.sampled_from(("parquet", "jsonl", "json", "csv")),
    place=st.floats(0, 1),
    gone=st.integers(0, 40),
    new=st.binary(max_size=8),
    samples=SAMPLES,
)
def test_a_good_file_with_a_damaged_place(tmp_path, whole, suffix, place, gone, new, samples):
    content = whole[suffix]
    start = int(place * len(content))
    path = tmp_path / f"set.{suffix}"
    path.write_bytes(content[:start] + new + content[start + gone :])
    read(path, samples)


KNOWN = (
    "prompt", "answer", "choices", "topic", "text", "context", "slice", "split", "config", "file",
    "revision", "shots", "shots_file", "shots_split", "where.topic", "where.", "set.system",
    "set.topic", "unanswerable",
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(KNOWN),
    TEXT,
)
SETTINGS = st.one_of(
    TEXT,
    st.sampled_from(["prompt", "topic+prompt", "answer%2B", "a", "A,B", ":2", "-1:", "50%:", "2"]),
    st.builds("{}:{}".format, st.integers(), st.integers()),
    st.builds("{}%:{}".format, st.integers(), st.integers()),
    st.just("9" * 5000),
    st.just("x" * 5000),
)


@FUZZ
@given(
    pairs=st.lists(st.tuples(KEYS, SETTINGS), max_size=4),
    suffix=st.sampled_from(("parquet", "jsonl", "json", "csv")),
    samples=SAMPLES,
)
def test_any_query_of_a_good_file(tmp_path, whole, pairs, suffix, samples):
    path = tmp_path / f"set.{suffix}"
    path.write_bytes(whole[suffix])
    read(f"{path}?{'&'.join(f'{key}={value}' for key, value in pairs)}", samples)


@FUZZ
@given(name=TEXT | st.builds("public/{}".format, TEXT) | st.builds("demo/harmful?{}".format, TEXT))
def test_any_name(name):
    read(name)


def test_a_very_long_name_is_not_repeated():
    for name in ("x" * 10**6, "demo/harmful?" + "y" * 10**6, "demo/harmful?prompt=" + "z" * 10**6):
        with pytest.raises(UserError) as error:
            prompt_sets.load(name)
        assert len(str(error.value)) < 1200
