"""The tokenizer in a GGUF file: what is written, what is refused, and what is told."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sst_ui.errors import UserError
from sst_ui.jobs.export import gguf_compare, gguf_file
from sst_ui.jobs.export.export import export
from sst_ui.jobs.export.gguf_tokens import FileTokenizer, read_keys
from sst_ui.jobs.export.read_back import reread
from sst_ui.jobs.export.verify import verify
from sst_ui.model.runtime.host import load
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec, Recipe
from tests import vocabularies as v
from tests.talk import byte_tokenizer, tiny_host

G = "tokenizer.ggml."


def planned(tokenizer, **more):
    rows = more.pop("vocab_size", len(tokenizer) + 3)
    return gguf_compare.planned(tiny_host("llama", tokenizer, vocab_size=rows, **more))


def changed(tokenizer, change):
    """The tokenizer with something of its tokenizer.json changed."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    change(data)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(data)), bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = tokenizer.chat_template
    return fast


@pytest.mark.parametrize(
    ("make", "model", "pre", "space"),
    [
        (lambda: v.byte_level("gpt2"), "gpt2", "gpt-2", None),
        (lambda: v.byte_level("qwen2"), "gpt2", "qwen2", None),
        (lambda: v.byte_level("llama3"), "gpt2", "llama-bpe", None),
        (lambda: v.byte_level("llama3", whole=False), "gpt2", "smaug-bpe", None),
        (lambda: v.byte_level("smollm"), "gpt2", "smollm", None),
        (lambda: v.pieces("Prepend"), "llama", "default", True),
        (lambda: v.pieces("never"), "llama", "default", False),
        (lambda: v.pieces("Replace"), "llama", "default", False),
    ],
)
def test_what_llama_cpp_can_say_exactly_is_written_without_a_doubt(make, model, pre, space):
    keys, notes = planned(make())
    assert (keys[G + "model"], keys[G + "pre"], keys.get(G + "add_space_prefix")) == (
        model, pre, space,
    )  # fmt: skip
    assert len(notes) == 1
    assert "all 26 chats" in notes[0]


@pytest.mark.parametrize(
    ("scheme", "template", "space"),
    [
        ("always", v.TIGHT, True),
        ("always", v.LLAMA2, True),
        ("always", v.SPACED, False),
        ("first", v.TIGHT, False),
        ("first", v.SPACED, False),
    ],
)
def test_metaspace_is_written_so_that_chats_are_alike_and_texts_that_differ_are_told(
    scheme, template, space
):
    keys, notes = planned(v.pieces(scheme, template))
    assert keys[G + "add_space_prefix"] == space
    assert any("a leading space" in n and f"prepend_scheme {scheme}" in n for n in notes)


def test_a_space_in_front_of_every_piece_is_refused_where_it_changes_chats():
    with pytest.raises(UserError, match="add_prefix_space"):
        planned(v.byte_level(prefix=True))
    _, notes = planned(v.byte_level(prefix=True, template=v.SPACED))
    assert any("add_prefix_space" in note for note in notes)


def test_unicode_that_is_composed_first_is_told():
    _, notes = planned(v.byte_level("qwen2", composed=True))
    assert any("NFC" in note for note in notes)


def lower(data):
    data["normalizer"] = {"type": "Lowercase"}


def cut(data):
    data["pre_tokenizer"]["use_regex"] = False


def bytes_missing(data):
    del data["model"]["vocab"]["<0x41>"]


def dropout(data):
    data["model"]["dropout"] = 0.1


def stripping(data):
    data["added_tokens"][-1]["rstrip"] = True


def other_cut(data):
    data["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[a-z]+"}, "behavior": "Isolated",
             "invert": False},
            data["pre_tokenizer"] | {"use_regex": False},
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "change", "words"),
    [
        (v.byte_level, lower, "normalises texts .Lowercase"),
        (v.byte_level, cut, "no name for .'no cut'"),
        (v.byte_level, other_cut, r"no name for .'\[a-z\]\+'"),
        (lambda: v.byte_level("tekken"), lambda data: None, "cuts words before capitals"),
        (v.byte_level, dropout, "dropout 0.1"),
        (v.byte_level, stripping, r"'<\|bot\|>' with rstrip"),
        (v.pieces, bytes_missing, "no tokens|without tokens for 1 of the 256"),
        (v.pieces, lower, "normalises texts .Lowercase"),
        (lambda: v.pieces(fallback=False), lambda data: None, "byte_fallback false"),
    ],
)
def test_what_llama_cpp_cannot_say_is_refused_by_its_name(make, change, words):
    with pytest.raises(UserError, match=words):
        planned(changed(make(), change))


def test_other_models_of_tokenizers_are_refused():
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("a", -2.0)], 0))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<unk>")
    fast.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="the tokenizer is Unigram, and only BPE"):
        planned(fast)


def test_a_merge_order_that_scores_cannot_say_is_found_by_the_tokens_themselves():
    """llama.cpp joins any two neighbours that are a piece; here only one of two ways is a merge."""

    def change(data):
        vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
        for text in ("zq", "qx", "zqx"):
            vocabulary.setdefault(text, len(vocabulary) + 1)
        data["model"]["merges"] = [["q", "x"], ["z", "q"], ["zq", "x"], *merges]

    tokenizer = v.pieces("never")
    assert {"z", "q", "x"} <= tokenizer.get_vocab().keys()
    tokenizer = changed(tokenizer, change)
    host = tiny_host("llama", tokenizer, vocab_size=len(tokenizer) + 10)
    keys, _ = gguf_compare.planned(host)  # no chat has such a word
    assert tokenizer.tokenize("zqx") == ["z", "qx"]
    with pytest.raises(gguf_compare.Differs, match="'zqx'"):
        gguf_compare.compare(host, FileTokenizer(keys))


def test_rows_without_tokens_are_filled_and_tokens_without_rows_left_out():
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["[PAD264]", "[PAD265]"])  # 261 and 262: names that fillers would have
    keys, _ = planned(tokenizer, vocab_size=266)
    assert len(keys[G + "tokens"]) == len(set(keys[G + "tokens"])) == 266
    assert keys[G + "token_type"][-3:] == [5, 5, 5]
    tokenizer.add_tokens([f"<far-{i}>" for i in range(10)])
    keys, notes = planned(tokenizer, vocab_size=266)
    assert len(keys[G + "tokens"]) == 266
    assert any("7 tokens lie beyond" in note and "<far-9>" in note for note in notes)


def test_every_id_that_llama_cpp_would_guess_is_said():
    """Without the keys it takes 11 (or 1 and 2) for BOS and EOS, and adds BOS by itself."""
    for make in (v.byte_level, lambda: v.byte_level("llama3", bos=True), v.pieces):
        tokenizer = make()
        keys, _ = planned(tokenizer)
        assert keys[G + "bos_token_id"] == tokenizer.bos_token_id
        assert keys[G + "eos_token_id"] == tokenizer.eos_token_id
        assert keys[G + "add_bos_token"] == (tokenizer("x")["input_ids"][0] == 1)
        assert keys[G + "add_eos_token"] is False
    tokenizer = v.byte_level(template=v.TIGHT.replace("<s>", ""))
    tokenizer.bos_token = None
    keys, _ = planned(tokenizer)
    assert keys[G + "bos_token_id"] == keys[G + "eos_token_id"]
    assert keys[G + "add_bos_token"] is False


def test_what_ends_an_answer_is_in_the_file_or_told():
    host = tiny_host("llama", v.byte_level(), vocab_size=800)
    host.stop = frozenset({2, 40, 41, 42})
    keys, notes = gguf_compare.planned(host)
    ends = {keys[G + name] for name in ("eos_token_id", "eot_token_id", "eom_token_id")}
    assert ends == {2, 40, 41}
    assert any("does not end an answer" in note for note in notes)


def test_tokens_of_the_users_own_are_found_in_texts():
    own = (AddedToken("<tool>", special=False, normalized=False),)
    tokenizer = v.pieces("never", own=own)
    keys, _ = planned(tokenizer)
    number = tokenizer.convert_tokens_to_ids("<tool>")
    assert keys[G + "token_type"][number] == 4
    assert number in FileTokenizer(keys).encode("a<tool>b")


@pytest.fixture
def in_process(monkeypatch):
    def fresh(folder, reference):
        yield from ()
        return json.loads(json.dumps(reread(folder, reference)))

    monkeypatch.setattr("sst_ui.jobs.export.verify._fresh", fresh)


@pytest.mark.parametrize("title", ["mistral", ""], ids=["named", "by its folder"])
def test_a_mistral_called_mistral_verifies(title, in_process, tmp_path, tiny):
    """transformers takes the file's name for an architecture that it cannot read."""
    pytest.importorskip("gguf")
    folder = tmp_path / "mistral"
    tokenizer = v.pieces("first", v.SPACED)
    model = tiny("mistral", vocab_size=len(tokenizer) + 3, sliding_window=200)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    host = finish(load(ModelSpec(id=str(folder))))
    done = finish(export(host, Recipe(title, model=host.spec), tmp_path / "g", "gguf", verify=2))
    assert done.verification.ok, done.verification
    assert done.verification.same_tokens == 2
    assert "tokens of 2 of 2 prompts the same" in done.verification.summary()
    assert read_keys(tmp_path / "g" / "model.gguf")["llama.context_length"] == 200
    assert any("Up to 200 tokens they compute the same" in note for note in done.notes)
    assert "| 2 of 2 |" in (tmp_path / "g" / "README.md").read_text()


def test_a_mistral_whose_settings_transformers_does_not_read_verifies(
    stored_host, in_process, tmp_path
):
    pytest.importorskip("gguf")
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    host = stored_host("mistral", rope_parameters=rope)
    recipe = Recipe(model=host.spec)
    checked = finish(export(host, recipe, tmp_path / "g", "gguf", verify=2)).verification
    assert checked.ok, checked
    assert "config.json" in checked.reader


def test_verification_goes_by_the_tokens_of_the_file(stored_host, in_process, tmp_path):
    pytest.importorskip("gguf")
    tokenizer = v.pieces("Prepend", v.TIGHT)
    host = stored_host("llama", tokenizer=tokenizer, vocab_size=len(tokenizer))
    finish(export(host, Recipe(model=host.spec), tmp_path / "g", "gguf"))
    path = tmp_path / "g" / "model.gguf"
    assert finish(verify(host, (), tmp_path / "g", ["Hello there"], 1)).ok
    key = b"tokenizer.ggml.add_space_prefix" + (7).to_bytes(4, "little")  # a truth value
    data = path.read_bytes()
    assert data.count(key + b"\x01") == 1
    path.write_bytes(data.replace(key + b"\x01", key + b"\x00"))
    found = finish(verify(host, (), tmp_path / "g", ["Hello there"], 1))
    assert not found.ok
    assert found.same_tokens == 0


def test_a_damaged_file_is_said_to_be_one(tmp_path):
    path = tmp_path / "model.gguf"
    for content in (b"", b"GGUF", b"none of it", b"GGUF\x03\0\0\0" + b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"ends too early|not a GGUF file|a value of kind"):
            read_keys(path)


@pytest.mark.parametrize(
    ("name", "title"), [("mistral", "Mistral"), ("Phi-3-like", "Phi 3-like"), ("mine", "mine")]
)
def test_names_that_other_programs_read_more_into_are_written_otherwise(name, title):
    host = tiny_host("llama", byte_tokenizer())
    assert gguf_file._title(gguf_file.Job(host, Recipe(name), ())) == title
