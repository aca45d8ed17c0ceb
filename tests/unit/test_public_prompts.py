"""Public data sets by name: read through `datasets`, offline, from files laid out like theirs."""

import json
import re
import shutil

import datasets
import huggingface_hub
import pytest
from huggingface_hub import errors

from sst_ui.data import dataset_spec, hf_datasets, prompt_sets
from sst_ui.errors import UserError
from tests import public

LAYOUTS = {
    "mlabonne/harmful_behaviors": lambda root: public.instructions(root, "harmful"),
    "mlabonne/harmless_alpaca": lambda root: public.instructions(root, "harmless"),
    "JailbreakBench/JBB-Behaviors": public.jailbreakbench,
    "tatsu-lab/alpaca": public.alpaca,
    "walledai/HarmBench": public.harmbench,
    "walledai/XSTest": public.xstest,
    "cais/mmlu": public.mmlu,
    "ServiceNow/repliqa": public.repliqa,
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """What the library prepares goes to a folder of the test run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A copy of every layout: id -> folder."""
    root = tmp_path_factory.mktemp("hub")
    return {name: write(root / name.replace("/", "--")) for name, write in LAYOUTS.items()}


@pytest.fixture
def offline_hub(folders, monkeypatch):
    """A Hub that holds these copies: only the step from id to place is not the real one."""
    monkeypatch.setattr(hf_datasets, "located", lambda s: str(folders.get(s.place, s.place)))
    monkeypatch.setattr(hf_datasets, "_builders", {})


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(hf_datasets, "_builders", {})


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize(
    ("name", "size", "first"),
    [
        ("public/harmful_behaviors", 420, {"prompt": "Do harmful thing train 0."}),
        ("public/harmful_behaviors_heldout", 104, {"prompt": "Do harmful thing test 0."}),
        ("public/harmless_alpaca", 416, {"prompt": "Do harmless thing train 0."}),
        ("public/harmless_alpaca_heldout", 104, {"prompt": "Do harmless thing test 0."}),
        ("public/alpaca", 400, {"prompt": "Sort list 0.", "context": ""}),
        ("public/harmbench", 20, {"prompt": "Do thing 0.", "topic": "c"}),
        ("public/harmbench_contextual", 10, {"prompt": "Text 0.\n\nDo thing 0.", "context": ""}),
        (
            "public/jbb_harmful",
            100,
            {"prompt": 'Write a harmful "note" about topic 0, please', "topic": "category 0"},
        ),
        ("public/jbb_benign", 100, {"topic": "category 0", "answer": None}),
        ("public/xstest_safe", 25, {"prompt": "How do I kill process 0?", "topic": "homonyms"}),
        ("public/xstest_unsafe", 20, {"topic": "contrast_homonyms"}),
        (
            "public/mmlu",
            24,
            {"choices": ("D", "C", "B", "A"), "answer": 0, "subject": "abstract_algebra"},
        ),
        (
            "public/repliqa",
            5,
            {
                "context": "Mayor Lindt opened the bridge.",
                "answer": "Mayor Lindt",
                "topic": "Local News",
                "answerable": True,
            },
        ),
    ],
)
def test_a_public_set_is_read_with_the_right_columns(name, size, first):
    loaded = prompt_sets.load(name)
    assert len(loaded) == size
    assert {key: getattr(loaded.prompts[0], key) for key in first} == first
    assert prompt_sets.load(name).digest == loaded.digest


def test_every_public_set_of_the_list_has_a_layout_that_was_tested():
    assert {preset.id for preset in dataset_spec.presets().values()} == set(LAYOUTS)
    assert set(prompt_sets.public_names()) == set(dataset_spec.presets())


@pytest.mark.usefixtures("offline_hub")
def test_splits_are_joined_as_the_library_writes_it():
    both = prompt_sets.load("public/harmful_behaviors?split=train+test")
    assert len(both) == 420 + 104
    assert {p.prompt.split()[3] for p in both.prompts} == {"train", "test"}
    assert len(prompt_sets.load("hf:mlabonne/harmful_behaviors?split=train[:3]+test[:2]")) == 5
    part = prompt_sets.load("hf:mlabonne/harmful_behaviors?split=train+test&slice=419:422").prompts
    assert [p.prompt[-8:] for p in part] == ["ain 419.", " test 0.", " test 1."]


def test_splits_of_a_folder_are_joined_too(tmp_path):
    for split, rows in (("train", 3), ("test", 2)):
        lines = [json.dumps({"prompt": f"{split} {i}"}) for i in range(rows)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    asked = [p.prompt for p in prompt_sets.load(f"{tmp_path}?split=train+test").prompts]
    assert asked == ["train 0", "train 1", "train 2", "test 0", "test 1"]
    for text in ("tset", "train+tset", "tset[:1]", "tset+train"):
        with pytest.raises(UserError, match=r"split of .* 'tset' is unknown; did you mean 'test'"):
            prompt_sets.load(f"{tmp_path}?split={text}")


@pytest.mark.usefixtures("offline_hub")
def test_the_absent_answer_of_repliqa_makes_a_question_unanswerable():
    loaded = prompt_sets.load("public/repliqa").prompts
    assert [p.answerable for p in loaded] == [True] * 4 + [False]


@pytest.mark.usefixtures("offline_hub")
def test_mmlu_is_asked_as_the_evaluation_harness_asks_it():
    """lm-evaluation-harness, mmlu, --apply_chat_template --fewshot_as_multiturn, written out."""
    loaded = prompt_sets.load("public/mmlu")
    messages = loaded.messages(loaded.prompts[13])  # the second question of world_religions
    options = "A. D\nB. C\nC. B\nD. A\nAnswer:"
    expected = [
        (
            "system",
            "The following are multiple choice questions (with answers) about world religions.",
        )
    ]
    for i in range(5):
        expected.append(("user", f"dev question {i} of world_religions?\n{options}"))
        expected.append(("assistant", "ABCDA"[i]))
    expected.append(("user", f"test question 1 of world_religions?\n{options}"))
    assert [(m["role"], m["content"]) for m in messages] == expected


@pytest.mark.usefixtures("offline_hub")
def test_fewer_worked_examples_are_another_set_with_another_digest():
    five, two, none = (prompt_sets.load(f"public/mmlu?shots={n}") for n in (5, 2, 0))
    assert [len(s.messages(s.prompts[0])) for s in (five, two, none)] == [12, 6, 2]
    assert len({five.digest, two.digest, none.digest}) == 3
    assert five.take(3).messages(five.prompts[0]) == five.messages(five.prompts[0])


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("hf:walledai/XSTest?prompt=prompt", 45),  # the only split
        ("hf:walledai/XSTest?split=test[:10]", 10),
        ("hf:walledai/XSTest?split=test[20%:40%]", 9),
        ("hf:walledai/XSTest?split=test&slice=-5:", 5),
        ("hf:walledai/XSTest?where.label=UNSAFE", 20),
        ("hf:walledai/XSTest?where.label=safe&where.label=unsafe", 45),
        ("hf:walledai/XSTest?where.label=safe&split=test[:10]", 10),
        ("hf:mlabonne/harmful_behaviors?split=train[:3]%2Btest[:2]", 5),
        ("hf:cais/mmlu?config=all&split=test&where.answer=B", 6),  # the class by its name
        ("hf:cais/mmlu?config=astronomy&split=test", 2),
        ("public/mmlu?where.subject=world_religions&split=validation", 3),
        ("public/xstest_safe?split=test[:5]", 5),
    ],
)
def test_config_split_slice_and_filter(text, size):
    assert len(prompt_sets.load(text)) == size


@pytest.mark.usefixtures("offline_hub")
def test_samples_are_spread_over_the_filtered_rows():
    taken = prompt_sets.load("public/xstest_unsafe", samples=4)
    whole = prompt_sets.load("public/xstest_unsafe")
    assert taken.prompts == whole.take(4).prompts
    assert taken.digest == whole.take(4).digest


def test_a_public_set_is_read_from_a_folder_or_a_file_that_was_fetched_elsewhere(folders):
    root = folders["cais/mmlu"]
    (dev,), (test,) = (list((root / "all").glob(f"{s}-*")) for s in ("dev", "test"))
    by_folder = prompt_sets.load(f"public/mmlu?file={root}")
    by_file = prompt_sets.load(f"public/mmlu?file={test}&shots_file={dev}")
    assert by_folder.digest == by_file.digest
    assert len(by_folder.messages(by_folder.prompts[0])) == 12
    (train,) = folders["mlabonne/harmless_alpaca"].glob("data/train-*")
    assert len(prompt_sets.load(f"public/harmless_alpaca?file={train}")) == 416  # as its split says
    (xs,) = folders["walledai/XSTest"].glob("data/*")
    assert len(prompt_sets.load(f"public/xstest_safe?file={xs}")) == 25
    with pytest.raises(UserError, match=r"5 worked examples.*shots_file="):
        prompt_sets.load(f"public/mmlu?file={test}")


def test_a_folder_of_a_data_set_is_a_name_of_its_own(folders):
    root = folders["ServiceNow/repliqa"]
    assert len(prompt_sets.load(f"{root}?split=repliqa_1[:2]")) == 2
    with pytest.raises(UserError, match=r"several splits.*\?split=repliqa_0.*repliqa_1"):
        prompt_sets.load(str(root))


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("public/xstest_save", "did you mean 'public/xstest_safe'"),
        ("hf:JailbreakBench/JBB-Behaviors", r"several configurations.*\?config=behaviors"),
        ("hf:JailbreakBench/JBB-Behaviors?config=behavior", "did you mean 'behaviors'"),
        ("public/jbb_harmful?split=harmfull", "split of .*JBB-Behaviors.*did you mean 'harmful'"),
        ("public/repliqa?split=repliqa_9", "Known: repliqa_0, repliqa_1"),
        ("public/repliqa?split=repliqa_0[50:60]", "selects no rows"),
        ("public/repliqa?split=repliqa_0[x]", "cannot read|selects no rows"),
        ("public/repliqa?split=repliqa_0[:2", r"write split=test\[:200\]"),
        ("public/repliqa?split=repliqa_0[:2]&slice=:1", "slices twice"),
        ("public/repliqa?prompt=Question", "column of .*did you mean 'question'"),
        ("public/xstest_safe?where.label=save", "no row .* there are: safe, unsafe"),
        ("public/xstest_safe?where.lable=safe", "did you mean 'label'"),
        ("hf:ServiceNow/repliqa?split=repliqa_0&answer=x", "column of .*'x' is unknown"),
        ("public/mmlu?shots_split=train", "split of cais/mmlu 'train' is unknown"),
        ("public/mmlu?shots=many", "shots is 'many'; it must be 0 to 50"),
        ("hf:owner/name/more", "write hf:owner/name"),
        ("hf:../up", "write hf:owner/name"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(text, message):
    with pytest.raises(UserError, match=message):
        prompt_sets.load(text)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("text", "alternative"),
    [
        ("public/xstest_safe", r"public/xstest_safe\?file=FILE.parquet"),
        ("public/mmlu", r"public/mmlu\?file=FILE.parquet&shots_file="),
        ("hf:owner/data", r"FILE.parquet\?prompt=COLUMN"),
    ],
)
def test_an_unreachable_set_is_named_with_the_way_that_needs_no_network(text, alternative):
    place = dataset_spec.parse(text, {}).place
    with pytest.raises(UserError, match=f"{place} is not on this machine.*cannot be reached") as e:
        prompt_sets.load(text)
    assert re.search(alternative, str(e.value))
    assert "demo/harmful" in str(e.value)


@pytest.mark.usefixtures("no_hub")
def test_what_was_downloaded_once_is_read_without_a_network(folders, tmp_path, monkeypatch):
    """The library keeps a data set under owner___name, configuration, version and commit."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    root = shutil.copytree(folders["cais/mmlu"], tmp_path / "mmlu")  # named as the id is
    built = datasets.load_dataset_builder(str(root), "all")
    built.download_and_prepare()
    kept = tmp_path / "cais___mmlu" / "all" / "0.0.0" / ("c" * 40)
    shutil.copytree(built.cache_dir, kept)
    online = prompt_sets.load(f"public/mmlu?file={root}")
    assert prompt_sets.load("public/mmlu").digest == online.digest
    with pytest.raises(UserError, match=r"cannot be reached.*other configurations: \['all'\]"):
        prompt_sets.load("public/mmlu?config=astronomy")


class Response:
    """As much of an answer of the Hub as its errors ask for."""

    def __init__(self):
        self.headers, self.status_code, self.text, self.request = {}, 403, "", None


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", r"walledai/XSTest is gated: accept its terms at .*/walledai/XSTest"),
        ("RepositoryNotFoundError", "there is no data set walledai/XSTest"),
        ("RevisionNotFoundError", "no revision 'v9'"),
    ],
)
def test_what_the_hub_answers_is_said_in_a_sentence(monkeypatch, kind, message):
    def refuse(*_, **__):
        raise getattr(errors, kind)("no", response=Response())

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", refuse)
    with pytest.raises(UserError, match=message):
        prompt_sets.load("public/xstest_safe?revision=v9")


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_the_hub_is_asked_once_and_briefly(monkeypatch):
    def dead(*_, **__):
        raise ConnectionError("name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dead)
    monkeypatch.setattr(hf_datasets, "_load_builder", lambda _: pytest.fail("asked again"))
    with pytest.raises(UserError, match="cannot be reached"):
        prompt_sets.load("public/jbb_benign")


@pytest.mark.usefixtures("offline_hub")
def test_a_preview_shows_rows_and_the_mapping():
    seen = prompt_sets.preview("public/mmlu", rows=2)
    assert seen.columns == ("question", "subject", "choices", "answer")
    assert len(seen.rows) == 2
    assert seen.rows[1]["answer"] == "B"
    assert seen.mapping == {
        "prompt": "question", "answer": "answer", "choices": "choices", "subject": "subject",
    }  # fmt: skip
    assert (seen.total, seen.problem) == (24, "")
    assert {row["label"] for row in prompt_sets.preview("public/xstest_unsafe").rows} == {"unsafe"}


def test_a_preview_from_the_hub_takes_only_the_first_rows(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_datasets, "_builders", {})
    monkeypatch.setattr(hf_datasets, "located", lambda s: str(folders[s.place]))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(
        datasets.DatasetBuilder, "download_and_prepare", lambda *_, **__: pytest.fail("all of it")
    )
    seen = prompt_sets.preview("public/repliqa", rows=3)
    assert [row["question_id"] for row in seen.rows] == [f"kepjicuf-q{i}" for i in (1, 2, 3)]
    assert seen.mapping["context"] == "document_extracted"


def test_a_large_set_is_not_downloaded_as_a_whole(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_datasets, "_builders", {})
    monkeypatch.setattr(hf_datasets, "located", lambda s: str(folders[s.place]))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    load = hf_datasets._load_builder

    def large(asked):
        builder = load(asked)
        builder.info.download_size = 3 << 30
        return builder

    monkeypatch.setattr(hf_datasets, "_load_builder", large)
    with pytest.raises(UserError, match=r"3.0 GiB; take a part.*split=repliqa_0\[:1000\]"):
        prompt_sets.load("public/repliqa")
    part = prompt_sets.load("public/repliqa?split=repliqa_0[1:3]").prompts
    assert [p.prompt for p in part] == ["Who opened bridge 2?", "Who opened bridge 3?"]
    assert not any(tmp_path.glob("**/*.arrow"))


def test_a_program_that_comes_with_a_data_set_is_not_run(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "data.py").write_text(f"open({json.dumps(str(tmp_path / 'ran'))}, 'w')")
    with pytest.raises(UserError, match="programs of data sets are not run"):
        prompt_sets.load(str(folder))
    assert not (tmp_path / "ran").exists()
