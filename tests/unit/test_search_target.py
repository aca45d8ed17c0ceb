"""What a search may call its best: a gate, three sets of prompts, a target that can be missed."""

import json
import math
from dataclasses import replace

import pytest

from sst_ui import recipe as recipes
from sst_ui.__main__ import main
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.evaluate.apart import Apart
from sst_ui.jobs.search import verdict
from sst_ui.jobs.search.candidates import chosen, finalists, front, moved, nearest
from sst_ui.jobs.search.objectives import SearchSpec, aims, held_out, startup
from sst_ui.jobs.search.search import Opened, search
from sst_ui.jobs.search.study import Study
from sst_ui.jobs.search.trials import Numbers
from sst_ui.metrics.results import Value
from sst_ui.paths import PRESETS
from sst_ui.progress import Progress, finish
from sst_ui.recipe import Ablation, DirectionSpec, Recipe
from tests.unit.test_strategies import DEFAULT, KL, LAYERS, REFUSALS, Formula, spent

CONTROL = Recipe(edits=(Ablation(directions=DirectionSpec(estimator="random")),))


def value(number):
    return Value(number, number, number, 9)


def texts(name):
    """The prompts of a shipped set, read without the studio."""
    lines = (PRESETS / "prompts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def prompts_file(path, prompts):
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts), encoding="utf-8")
    return str(path)


def test_a_model_that_goes_on_refusing_ends_without_a_best_recipe(tmp_path, capsys):
    """Along random directions nothing is removed. A search by rate and divergence alone would end
    at the recipe that changes least, and call it the best."""
    recipe, out = tmp_path / "control.yaml", tmp_path / "best.yaml"
    recipe.write_text(recipes.to_yaml(CONTROL), encoding="utf-8")
    asked = ["search", str(recipe), "--strategy", "tpe", "--trials", "6", "--samples", "6",
             "--tokens", "16", "--no-prune", "--storage", "memory", "--out", str(out)]  # fmt: skip
    assert main(asked) == 3
    said = capsys.readouterr().out
    assert "The target was missed" in said
    assert "best" not in said
    assert not out.exists()
    assert main([*asked, "--anyway", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert (told["best"], told["number"], told["reached"]) == (None, None, False)
    rates = [row["values"][REFUSALS]["value"] for row in told["candidates"]]
    assert min(rates) > 0.02


def test_a_missed_target_is_said_and_written_only_when_that_is_asked_for(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    quick = replace(DEFAULT.evaluation, samples=6, max_new_tokens=16)
    recipe.write_text(recipes.to_yaml(replace(DEFAULT, evaluation=quick)), encoding="utf-8")
    out = tmp_path / "near.yaml"
    asked = [
        "search",
        str(recipe),
        "--trials",
        "2",
        "--samples",
        "6",
        "--tokens",
        "16",
        "--target=-1",
        "--storage",
        f"sqlite:///{tmp_path}/s.sqlite",
        "--out",
        str(out),
    ]
    assert main(asked) == 3
    said = capsys.readouterr().out
    assert "no candidate has Refusal rate at most -1 and Delivered at least 0.8" in said
    assert "Nearest is #" in said
    assert "--anyway" in said
    assert not out.exists()
    assert main([*asked, "--anyway"]) == 3
    assert "which misses the target" in capsys.readouterr().out
    assert recipes.load(out).edits[0].directions.harmful == "demo/harmful?part=1/2"
    out.unlink()
    reached = [word for word in asked if word != "--target=-1"]
    lax = ["--target", "1", "--constraint", "delivered >= 0"]
    assert main([*reached, *lax]) == 0
    assert out.exists()
    assert "on test prompts: Refusal rate" in capsys.readouterr().out


def test_measured_selected_and_tested_prompts_have_none_in_common():
    asked = []

    class Watched(Formula):
        def numbers(self, recipes_, evaluation):
            for each in recipes_:
                asked.append((each, evaluation))
            return (yield from super().numbers(recipes_, evaluation))

    spec = SearchSpec("grid")
    found = spent(spec, Watched())
    best = chosen(found, aims(DEFAULT, spec), spec)
    measured = texts("demo/harmful")[0::2]
    for each, evaluation in asked:
        assert isinstance(evaluation, Apart)
        directions = each.edits[0].directions
        assert [p.prompt for p in prompt_sets.load(directions.harmful).prompts] == measured
    compared = [e for _, e in asked if REFUSALS in e.metrics]
    tested = [(r, e) for r, e in asked if REFUSALS not in e.metrics]
    selected = prompt_sets.load("demo/harmful?part=2/2")
    assert [p.prompt for p in selected.prompts] == texts("demo/harmful")[1::2]
    assert len(compared) == 25
    assert best.recipe.digest() in {each.digest() for each, _ in tested}
    assert 1 <= len(tested) <= 3  # finalists, once each
    kinds = ("delivered", "evaded", "degenerate_harmful")
    assert {e.metrics for _, e in tested} == {("refusal_rate", "kl_16", *kinds)}  # their own sets
    unseen = {text.casefold() for text in texts("demo/harmful_heldout")}
    assert not unseen & {text.casefold() for text in texts("demo/harmful")}


def test_a_test_prompt_that_was_selected_on_is_left_out_and_told(tmp_path):
    shared = texts("demo/harmful")[1]  # of the half that is selected on
    other = texts("demo/harmful_heldout")[:10]
    test = (prompts_file(tmp_path / "test.jsonl", [*other, f"  {shared.upper()} "]),
            "demo/harmless_heldout")  # fmt: skip
    steps = list(search(DEFAULT, SearchSpec("grid", trials=1, test=test), Formula(), "memory"))
    (opened,) = [step for step in steps if isinstance(step, Opened)]
    (note,) = opened.notes
    assert note.startswith("1 of 11 prompts of ")
    assert "test.jsonl are left out, not tested on" in note
    small = prompts_file(tmp_path / "small.jsonl", [*other[:3], shared])
    with pytest.raises(UserError, match="has 3 prompts to be tested on"):
        spent(replace(SearchSpec("grid"), test=(small, "demo/harmless_heldout")))


def test_protected_concepts_are_measured_on_and_no_candidate_is_tested_on_them(tmp_path):
    concepts = prompts_file(tmp_path / "concepts.jsonl", texts("demo/harmless_heldout")[:7])
    spec = DirectionSpec("surgical", concepts=concepts)
    recipe = Recipe(edits=(Ablation(directions=spec),))
    steps = list(search(recipe, SearchSpec("grid", trials=1), Formula(), "memory"))
    (opened,) = [step for step in steps if isinstance(step, Opened)]
    said = "7 of 128 prompts of demo/harmless_heldout are left out, not tested on"
    assert any(note.startswith(said) for note in opened.notes)
    final = held_out(recipe, aims(recipe, SearchSpec("grid")), SearchSpec("grid"))
    assert concepts in final.without


def test_a_set_too_small_to_be_divided_is_refused(tmp_path):
    few = prompts_file(tmp_path / "few.jsonl", texts("demo/harmful")[:5])
    directions = replace(DEFAULT.edits[0].directions, harmful=few)
    recipe = replace(DEFAULT, edits=(replace(DEFAULT.edits[0], directions=directions),))
    with pytest.raises(UserError, match="has 2 prompts to be selected on"):
        spent(SearchSpec("grid"), recipe=recipe)


def test_sets_of_their_own_leave_the_recipe_its_whole_set(tmp_path):
    select = tuple(
        prompts_file(tmp_path / f"{role}.jsonl", texts(f"demo/{role}_heldout")[:40])
        for role in ("harmful", "harmless")
    )
    spec = SearchSpec("grid", trials=1, select=select, test=select)
    aim = aims(DEFAULT, spec)
    assert aim.objectives == (f"refusal_rate@{select[0]}", f"kl_16@{select[1]}")
    with pytest.raises(UserError, match="has 0 prompts to be tested on"):
        spent(spec)
    (found,) = spent(replace(spec, test=()), recipe=DEFAULT)[:1]
    assert found.recipe.edits[0].directions.harmful == "demo/harmful"


class Worse(Formula):
    """What looked good on the prompts that it was selected on refuses half of the test."""

    def numbers(self, recipes_, evaluation):
        for step in super().numbers(recipes_, evaluation):
            if not isinstance(step, Progress) and "refusal_rate" in evaluation.metrics:
                place, numbers = step
                worse = {**numbers.values, "refusal_rate": value(0.5)}
                step = place, Numbers(worse, numbers.base)
            yield step


def test_the_test_decides():
    spec = SearchSpec("tpe", trials=60)
    aim = aims(DEFAULT, spec)
    found = spent(spec, Worse())
    assert min(each.value(REFUSALS) for each in found if each.state == "done") <= 0.02
    assert chosen(found, aim, spec) is None
    near = nearest(found, aim, spec)
    assert near.test[REFUSALS].value == 0.5
    said = verdict.missed(found, aim, spec)
    assert f"Nearest is #{near.number}" in said
    assert "Refusal rate 0.5" in said
    good = spent(spec)
    assert aim.reached(chosen(good, aim, spec).test[REFUSALS].value)


def test_a_search_that_goes_on_looks_at_the_test_prompts_only_for_new_finalists(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.sqlite'}"
    first = Formula()
    spent(SearchSpec("grid"), first, storage=storage)
    looked = [metrics for _, metrics in first.asked if REFUSALS not in metrics]
    assert looked
    second = Formula()
    found = spent(SearchSpec("grid"), second, storage=storage)
    assert second.asked == []
    assert sum(bool(each.test) for each in found) == len(looked)


def test_what_changes_nothing_is_not_on_the_front_and_no_finalist():
    class Nearly(Formula):
        """Nothing is removed, whatever is tried."""

        def formula(self, strength, peak):
            known = super().formula(0.0, 0.6)
            return {**known, "kl_16": 1e-6 * strength, "refusal_score": 5 - 0.1 * strength}

    spec = SearchSpec("tpe", trials=30, prune=False)
    aim = aims(DEFAULT, spec)
    found = spent(spec, Nearly())
    assert len(found) == 30
    assert not any(moved(each, aim) for each in found)
    assert front(found, aim) == []
    assert finalists(found, aim, spec) == []
    assert chosen(found, aim, spec) is None
    assert "change the refusal score too little" in verdict.missed(found, aim, spec)


def test_a_score_that_has_not_far_to_fall_rules_nobody_out():
    """A model that refuses with little more than even odds: the rate goes all the way."""

    class EvenOdds(Formula):
        def formula(self, strength, peak):
            known = super().formula(strength, peak)
            return {**known, "refusal_score": 0.52 if not strength else 0.17}

    spec = SearchSpec("tpe", trials=12, prune=False)
    aim = aims(DEFAULT, spec)
    found = spent(spec, EvenOdds())
    there = [each for each in found if aim.reached(each.value(REFUSALS))]
    assert there
    assert all(moved(each, aim) for each in there)
    assert chosen(found, aim, spec) is not None


def test_divergences_too_small_to_matter_count_as_equal():
    spec = SearchSpec("grid")
    aim = aims(DEFAULT, spec)
    (first, *_) = spent(replace(spec, trials=1))
    rows = [
        replace(
            first, number=n, values={**first.values, REFUSALS: value(r), KL: value(kl)}, test={}
        )
        for n, (r, kl) in enumerate([(0.02, 1e-7), (0.0, 5e-5), (0.0, 2e-3)])
    ]
    assert front(rows, aim) == [rows[1]]  # by the rate, for both cost nothing
    assert finalists(rows, aim, spec) == [rows[1]]


def test_a_front_that_has_not_moved_for_long_ends_the_search():
    class Flat(Formula):
        def formula(self, strength, peak):
            moves = super().formula(1.0, 0.6) if strength else super().formula(0.0, 0.6)
            return moves | {"refusal_score": -5.0 if strength else 5.0}

    found = spent(SearchSpec("tpe", trials=90, patience=5, prune=False), Flat())
    assert 45 <= len(found) < 60  # 40 draws to start with, and 5 more; ten are drawn at a time
    assert len(spent(SearchSpec("tpe", trials=70, patience=0, prune=False), Flat())) == 70


def test_a_search_of_an_earlier_version_is_not_gone_on_with(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.sqlite'}"
    about = {"objectives": ["refusal_rate@demo/harmful", "kl_16@demo/harmless"]}
    Study("mine", [True, True], {}, storage, about=about)
    with pytest.raises(UserError, match=r"'mine' was made with other objectives.*another name"):
        finish(search(DEFAULT, SearchSpec("grid"), Formula(), storage, "mine"))


def test_the_score_moves_while_every_prompt_is_still_refused(host):
    from sst_ui.jobs.directions.measure import resolve
    from sst_ui.jobs.evaluate.evaluate import evaluate_rows
    from sst_ui.recipe import Evaluation

    rows = []
    for strength in (-0.5, 0.2, 0.4, 1.0):
        weights = replace(DEFAULT.edits[0].weights, strength=strength)
        recipe = replace(DEFAULT, edits=(replace(DEFAULT.edits[0], weights=weights),))
        rows.append(finish(resolve(host, recipe)))
    metrics = ("refusal_rate", "refusal_score", "refusal_logodds")
    evaluation = Evaluation(metrics=metrics, samples=12, max_new_tokens=16)
    found = finish(evaluate_rows(host, rows, evaluation))
    rates = [row[0].edited.value for row in found]
    scores = [row[1].edited.value for row in found]
    assert rates[1] == found[0][0].base.value  # nothing is to be seen yet
    base = found[0][1].base.value
    assert scores[1] < base
    assert scores == sorted(scores, reverse=True)
    # the demo refuses at once, so that it goes by the first token, up to the smoothing
    for score, odds in zip(found[3][1].items, found[3][2].items, strict=True):
        p = 1 / (1 + math.exp(-odds.edited_score))
        assert score.edited_score == pytest.approx(-math.log(1 - p), abs=0.05)


def test_a_refusal_is_found_where_it_begins(host):
    from sst_ui.jobs.evaluate.observers import onset

    late = "Sure! First open the lid. I'm sorry, but I can't help with that."
    tokens = host.tokens(late)
    place = onset(host, tokens)
    assert host.decode(tokens[place:]).strip() == "I'm sorry, but I can't help with that."
    assert onset(host, host.tokens("I'm sorry, but I can't help with that. Ask a friend.")) == 0
    assert onset(host, host.tokens("Sure! First open the lid, then close it.")) is None


def test_modules_may_have_bells_of_their_own():
    from sst_ui.maths import kernel
    from sst_ui.recipe import WeightTable

    table = WeightTable(peak=0.3, width=0.1, peaks={"mlp": 0.8}, widths={"mlp": 0.3}, strength=0.5)
    assert table.profile == "custom"
    alpha = kernel.table(table, LAYERS)
    for column, (peak, width) in enumerate(((0.3, 0.1), (0.8, 0.3))):
        for layer in range(LAYERS):
            bell = math.exp(-(((layer / (LAYERS - 1) - peak) / width) ** 2) / 2)
            wanted = 0.5 * bell if bell >= table.threshold else 0.0
            assert alpha[layer, column] == pytest.approx(wanted)
    recipe = Recipe(edits=(Ablation(weights=table),))
    assert recipes.from_yaml(recipes.to_yaml(recipe)) == recipe
    with pytest.raises(UserError, match="module kind"):
        WeightTable(peaks={"mpl": 0.5})


@pytest.mark.parametrize("part", ["3/2", "0/2", "half", "1/2/3", "1"])
def test_a_part_that_there_is_not_is_said(part):
    with pytest.raises(UserError, match="write part=1/2"):
        prompt_sets.load(f"demo/harmful?part={part}")


def test_parts_are_taken_after_rows_are_chosen():
    topics = [json.loads(line) for line in (PRESETS / "prompts/demo/harmful.jsonl").open()]
    fraud = [row["prompt"] for row in topics if row["topic"] == "fraud"]
    found = [
        [p.prompt for p in prompt_sets.load(f"demo/harmful?where.topic=fraud&part={n}/3").prompts]
        for n in (1, 2, 3)
    ]
    assert found == [fraud[0::3], fraud[1::3], fraud[2::3]]
    renamed = prompt_sets.in_part("demo/harmful?part=1/2&where.topic=fraud", "2/2")
    assert [p.prompt for p in prompt_sets.load(renamed).prompts] == fraud[1::2]


def test_half_of_a_short_search_at_least_follows_what_did_well():
    assert (startup(26), startup(100), startup(None), startup(400)) == (13, 40, 40, 40)
