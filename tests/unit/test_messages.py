"""Errors and notes of the program appear in Japanese where the visitor reads Japanese."""

import ast
import re

import pytest

from sst_ui import options
from sst_ui import recipe as recipes
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.paths import ROOT
from sst_ui.recipe import DirectionSpec, Merge, WeightTable
from sst_ui.ui.services.errors import message
from sst_ui.ui.widgets import messages
from sst_ui.ui.widgets.names import shown_name

# What a visitor of the page never sees: the command line, programs' endpoints, a cluster's search,
# names that a developer gives twice, and what only a terminal can be told of.
ELSEWHERE = ("cli/", "__main__.py", "jobs/search/ray_", "registry.py", "ui/api.py", "paths.py")
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def written(node: ast.expr) -> str:
    """A text of the code with {} for its values; '' for one that is made elsewhere."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
    return ""


def errors():
    for path in sorted((ROOT / "sst_ui").rglob("*.py")):
        name = path.relative_to(ROOT / "sst_ui").as_posix()
        if name.startswith(ELSEWHERE):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                text = " ".join(written(node.args[0]).split()) if node.args else ""
                if re.search("[a-z]", text):
                    yield name, text


def known() -> set[str]:
    return {messages.HOLE.sub("{}", english) for english in messages.table()["sentences"]}


def test_every_error_of_the_page_is_there_in_japanese():
    texts = list(errors())
    assert len(texts) > 350
    there = known() | {"{} {} is unknown{} Known: {}."}  # its two endings stand there
    assert [f"{name}: {text}" for name, text in texts if text not in there] == []


def test_every_value_of_a_sentence_has_its_place_in_japanese():
    wrong = []
    for rows in messages.table().values():
        for english, japanese in rows.items():
            holes, used = len(messages.HOLE.findall(english)), re.findall(r"\{(\d+)\}", japanese)
            plain = re.search("[a-z]{2}", japanese) and not JAPANESE.search(japanese)
            if plain or any(int(n) >= holes for n in used):
                wrong.append(english)
    assert wrong == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WeightTable(peak=5), "weights.peak が 5 です。0〜1 にしてください。"),
        (lambda: WeightTable(width=0), "0 より大きく 1e+06 以下（例：0.15）にしてください。"),
        (lambda: DirectionSpec(k=1.5), "directions.k が 1.5 です。整数にしてください。"),
        (lambda: DirectionSpec(samples=1), "directions.samples が 1 です。2 以上にしてください。"),
        (lambda: DirectionSpec(estimator="projekted"), "'projected' ではありませんか？"),
        (lambda: Merge("a", "b", budget=float("inf")), "有限で、0 nats/token より大きい値に"),
        (lambda: options.ChatOptions(temperature=float("nan")), "0〜2 にしてください。"),
        (lambda: recipes.from_yaml("a: ["), "レシピは正しい YAML ではありません："),
        (
            lambda: recipes.from_yaml("version: 1\nedits: [{weights: {strenth: 1}}]"),
            "'strength' で",
        ),
        (
            lambda: prompt_sets.load("nope/a.jsonl"),
            "プロンプトファイル 'nope/a.jsonl' がありません。",
        ),
        (lambda: prompt_sets.load("demo/harmles"), "hf:demo/harmles と書いてください。"),
    ],
)
def test_what_is_wrong_at_a_control_is_said_in_japanese(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in message(caught.value, "ja")
    assert not JAPANESE.search(message(caught.value, "en"))


def test_values_stay_as_they_were_typed():
    error = UserError("another variant is called 'is a file; give a folder.'; choose another name.")
    assert "'is a file; give a folder.'" in message(error, "ja")
    assert message(UserError("nothing that is known"), "ja") == "Nothing that is known"


def test_notes_of_a_job_are_said_part_by_part():
    assert messages.note_in("ja", "3 together; 12 layers of 64") == "3 件を同時に；64 次元 × 12 層"
    assert messages.note_in("ja", "finalists on the test prompts; adapter.safetensors") == (
        "テスト用プロンプトで最終候補を確認中；adapter.safetensors"
    )


def test_names_that_the_studio_made_are_shown_in_japanese_and_others_as_they_are():
    for made in ("default ×2 filter μ 1", "sst ≤0.0005 nats ×2 + late_focus ×−1 add #2"):
        assert JAPANESE.search(shown_name("ja", made))
        assert shown_name("en", made) == made
    assert shown_name("ja", "default ×2 filter μ 1") == "標準 ×2 フィルター μ 1"
    assert shown_name("ja", "my default ×2") == "my default ×2"
