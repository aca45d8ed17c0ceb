"""The benchmarks run, and compare ways that give the same answer. Their numbers are not tested."""

import json
from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import (
    browser,
    evaluate,
    export,
    export_ways,
    filter,
    live_edit,
    mergers,
    search,
    sst,
    strategies,
    sweep,
    visitors,
)
from benchmarks.peak import Peak
from benchmarks.plain import Plain
from sst_ui.data.prompt_sets import load as load_prompts
from sst_ui.jobs.directions.measure import measure
from sst_ui.jobs.evaluate.evaluate import Value
from sst_ui.jobs.results_table import COLUMNS, Row
from sst_ui.maths.merge.low_rank import Delta
from sst_ui.model.lora.adapters import write_adapter
from sst_ui.paths import DEMO, PRESETS
from sst_ui.progress import finish
from sst_ui.recipe import DirectionSpec
from sst_ui.recipe import from_yaml as recipe_from
from sst_ui.recipe import load as load_recipe


@pytest.fixture(scope="module")
def result() -> live_edit.Result:
    return live_edit.measure(
        "demo", DEMO, "cpu", "float32", repeats=1, tokens=4, memory=live_edit.in_here
    )


def test_the_live_edit_answers_like_rewritten_weights(result):
    assert result.difference < 1e-3


def test_every_way_is_timed_and_weighed(result):
    for measured in (result.change, result.first_token, result.memory):
        assert set(measured) == set(live_edit.WAYS)


def test_loading_a_second_model_takes_more_memory_than_a_live_edit(result):
    assert result.memory["reload"] > result.memory["live"]


def test_the_table_has_a_row_for_every_measurement(result):
    table = live_edit.markdown([result])
    for row in ("slider to applied edit", "first token", "memory added", "tokens per second"):
        assert row in table
    columns = {line.count("|") for line in table.splitlines()}
    assert columns == {5}


def test_the_peak_counts_memory_that_was_given_back():
    peak = Peak(torch.device("cpu"))
    block = torch.ones(50_000_000)  # 200 MB
    del block
    assert peak.added() > 150_000_000


def test_results_can_be_read_by_a_program(result, monkeypatch, capsys):
    monkeypatch.setattr(live_edit, "measure", lambda *_: result)
    assert live_edit.main(["--model", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["repeats"] == 1


def test_every_group_of_the_sweep_is_printed_beside_the_base():
    value = Value(0.5, 0.4, 0.6, 10)
    values = dict.fromkeys(COLUMNS, value)
    rows = [Row(group, f"a {group} row", values) for group in sweep.GROUPS]
    text = sweep.tables(rows)
    assert text.count("a base row") == text.count("### ") - 1 == 4
    assert "a overview row" in text
    assert all(f"a {group} row" in text for group in sweep.GROUPS)


def test_a_sweep_of_an_unknown_model_is_one_line_and_exit_code_2(capsys):
    assert sweep.main(["--model", "no/such/folder"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def evaluated() -> evaluate.Result:
    sizes = evaluate.Sizes(prompts=5, tokens=6, questions=4, repeats=1)
    return evaluate.measure("demo", DEMO, "cpu", "float32", sizes)


def test_the_studio_answers_like_generate_on_two_models(evaluated):
    assert evaluated.differ == {"studio": 0, "batch": 0}
    assert evaluated.letters_differ == 0


def test_answers_that_differ_are_counted():
    assert evaluate._differ([["a", "b"], ["c", "d"]], [["a", "x"], ["y", "d"]]) == 2


def test_an_edit_in_the_weights_of_the_plain_model_changes_its_answers(host):
    # a direction that matters: otherwise equal answers would say nothing of the edit
    directions = finish(measure(host, DirectionSpec(), heldout=None))
    prompts = [host.encode(p.messages()) for p in load_prompts("demo/harmful_heldout", 4).prompts]
    base, edited = Plain(DEMO, host, directions, strength=1.0).loop(prompts, 6)
    assert base != edited
    one, same = Plain(DEMO, host, directions, strength=0.0).batch(prompts, 6)
    assert one == same == base


def test_every_way_of_evaluating_is_timed(evaluated):
    assert tuple(evaluated.answers) == evaluate.WAYS
    assert tuple(evaluated.letters) == evaluate.WAYS[:3]


def test_the_table_of_speeds_says_how_many_times_the_studios_they_are(evaluated):
    slow = {"studio": 2.0, "again": 1.0, "loop": 8.0, "batch": 4.0}
    table = evaluate.markdown([replace(evaluated, answers=slow)])
    assert "| prompts per second, both models | 2.5 | 5 (2×) | 0.62 (0.25×) | 1.2 (0.5×) |" in table
    assert "| answers unlike the loop's | 0 of 10 | | | 0 of 10 |" in table
    assert {line.count("|") for line in table.splitlines()} == {6}


def test_the_sizes_of_an_evaluation_benchmark_can_be_chosen(evaluated, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(evaluate, "measure", lambda *a, **_: asked.append(a[4]) or evaluated)
    sizes = ["--prompts", "9999", "--tokens", "3", "--questions", "2", "--repeats", "1"]
    assert evaluate.main(["--model", "demo", "--json", *sizes]) == 0
    assert asked == [evaluate.Sizes(160, 3, 2, 1)]  # there are no more prompts than that
    assert json.loads(capsys.readouterr().out)[0]["differ"] == {"studio": 0, "batch": 0}
    with pytest.raises(SystemExit):
        evaluate.main(["--prompts", "0"])


def test_untrained_models_are_compared_by_token(tiny, tmp_path):
    """Half the random model's vocabulary has no text; its answers must not all look alike."""
    folder = tmp_path / "random"
    tiny("llama", vocab_size=4096).save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO).save_pretrained(folder)
    sizes = evaluate.Sizes(prompts=2, tokens=4, questions=2, repeats=1)
    result = evaluate.measure("random", folder, "cpu", "float32", sizes, untrained=True)
    assert result.differ == {"studio": 0, "batch": 0}


@pytest.fixture(scope="module")
def searched() -> search.Result:
    sizes = search.Sizes(prompts=3, tokens=12, together=5, repeats=1)
    return search.measure("demo", DEMO, "cpu", "float32", sizes, read=search.in_here)


def test_a_search_in_batches_finds_what_rewritten_weights_show(searched):
    assert searched.answers == searched.labels == dict.fromkeys(search.WAYS, 0)
    assert max(searched.nats.values()) < 1e-4
    assert searched.largest > 0.01  # the kernels do something
    assert 0 < searched.refused["rewrite"] < 1


@pytest.mark.slow
def test_every_way_of_searching_is_timed_and_weighed_in_a_process_of_its_own(searched, tmp_path):
    assert {way: len(seconds) for way, seconds in searched.seconds.items()} == dict.fromkeys(
        search.WAYS, 1
    )
    path = tmp_path / "job.json"
    sizes = search.Sizes(prompts=1, tokens=2, together=25, repeats=1)
    search._job(DEMO, "cpu", "float32", sizes, True, path)
    reading = search.in_child("together", path)
    assert len(reading.found.answers) == len(reading.found.nats) == 25


def test_the_table_of_searches_has_a_row_for_every_way(searched, monkeypatch, capsys):
    slow = replace(searched, seconds={"together": [2.0], "in_turn": [8.0], "rewrite": [5.0]})
    table = search.markdown([slow])
    assert "| studio, 5 in a batch | 2 s | 1× |" in table
    assert "| studio, one after the other | 8 s | 4× |" in table
    assert {line.count("|") for line in table.splitlines()} == {8}
    asked = []
    monkeypatch.setattr(search, "measure", lambda *a, **_: asked.append(a[4]) or searched)
    assert search.main(["--model", "demo", "--json", "--together", "7", "--repeats", "1"]) == 0
    assert asked == [replace(search.DEFAULTS["demo"], together=7, repeats=1)]
    assert json.loads(capsys.readouterr().out)[0]["labels"]["in_turn"] == 0


SMALL = mergers.Shape(hidden=64, inner=96, heads=4, kv_heads=2, layers=3)


@pytest.fixture(scope="module")
def merged() -> sst.Result:
    return sst.measure(SMALL, 4, [2, 4], layers=1, repeats=1, read=sst.in_here)


def test_the_table_of_strategies_says_what_each_took_and_found():
    values = {"refusal_rate": Value(0.0125, 0.003, 0.04, 160)}
    values |= {"delivered": Value(0.98, 0.95, 1.0, 160)}
    values |= {"kl_16": Value(1.2e-4, 8e-5, 2e-4, 128), "quality": Value(0.99, 0.98, 1.0, 102)}
    start = load_recipe(PRESETS / "recipes" / "default.yaml")
    rows = [
        strategies.Row("default profile", (0, 0), 0.0, start, values),
        strategies.Row("TPE", (85, 15), 61.4, replace(start, name="peak 0.5"), values),
    ]
    table = strategies.markdown(rows)
    default = ["0.013 [0.003, 0.040]", "0.980 [0.950, 1.000]", "1.2e-04 [8.0e-05, 2.0e-04]"]
    assert f"| default profile | – | – | {' | '.join(default)}" in table
    assert "| TPE | 100, 15 ruled out early | 61 s |" in table
    assert "| peak 0.5 |" in table
    assert table.endswith(
        "Held-out prompts: refusals 160, delivered 160, KL, 16 tokens 128, quality kept 102; "
        "answers of at most 128 tokens."
    )


def test_the_modules_of_an_8b_layer_have_llamas_shapes():
    parameters = sum(out * inp for out, inp in mergers.LLAMA_8B.modules().values())
    assert parameters == 218_103_808  # a Llama-3.1-8B layer without its two norms of 4,096


def test_exact_sums_of_the_studio_and_of_peft_are_the_same_change(merged):
    assert merged.disagreement < 1e-6
    assert merged.ways["sum"].error < 1e-6
    assert merged.ways["cat"].error < 1e-6


def test_truncations_of_the_studio_and_of_peft_lose_the_least_that_can_be_lost(merged):
    layer = mergers.random_layer(SMALL, 4, seed=0)
    dropped = whole = 0.0
    for kind in SMALL.modules():
        energy = torch.linalg.svdvals(layer.exact(kind)).square()
        dropped += float(energy[4:].sum())
        whole += float(energy.sum())
    best = (dropped / whole) ** 0.5
    assert best > 0.1
    for way in ("sum_r", "svd", "svd_thin"):
        assert merged.ways[way].error == pytest.approx(best, rel=1e-5)


def test_a_wrong_sum_has_an_error():
    layer = mergers.random_layer(SMALL, 4, seed=0)
    assert mergers.error(layer.utility, layer.exact) > 0.1
    nothing = {k: Delta(0 * d.b, d.a) for k, d in layer.utility.items()}
    assert mergers.error(nothing, layer.exact) == pytest.approx(1)


def test_every_way_gives_all_seven_modules_at_the_rank_that_the_table_names():
    layer = mergers.random_layer(SMALL, 4, seed=0)
    for way in mergers.WAYS.values():
        method = way.make(layer)
        method.run()
        ranks = {kind: delta.rank for kind, delta in method.result().items()}
        assert ranks == dict.fromkeys(SMALL.modules(), 8 if way.full else 4)


def test_the_layers_that_are_measured_count_for_all(monkeypatch):
    monkeypatch.setattr(sst, "timed", lambda _, work: work() or 2.0)
    assert sst.in_here("sst", 2, 1, SMALL).seconds == 2.0 * SMALL.layers


def test_slow_ways_of_merging_run_once_and_the_others_every_round():
    asked = []

    def read(way: str, rank: int, layers: int, shape: mergers.Shape) -> sst.Reading:
        asked.append((way, rank))
        return sst.Reading(float(len(asked)), 1.0, None)

    result = sst.measure(SMALL, 4, [2, 4], 1, 3, ("sst", "svd"), read)
    assert asked == [("sst", 4), ("svd", 4), ("sst", 2), *[("sst", 4), ("sst", 2)] * 2]
    assert result.ways["sst"].seconds == 4
    assert set(result.growth) == {2, 4}


@pytest.mark.slow
def test_a_merge_is_weighed_in_a_process_of_its_own():
    reading = sst.in_child("sum", 2, 1, SMALL)
    assert reading.error < 1e-6


def test_a_dense_decomposition_takes_more_memory_than_a_core():
    shape = mergers.Shape(hidden=512, inner=768, heads=8, kv_heads=2, layers=1)
    core, dense = (sst.in_here(way, 4, 1, shape).memory for way in ("sst", "svd"))
    assert dense > core + 768 * 768 * 4  # at least the right singular vectors


def test_the_tables_of_merging_name_every_way_and_every_rank(merged):
    text = sst.markdown(merged)
    for way in merged.ways:
        assert f"| {mergers.WAYS[way].title} |" in text
    assert "| SST, exact | rank 2 | rank 4 |" in text
    ways, growth = text.split("\n\n")
    assert {line.count("|") for line in ways.splitlines()} == {6}
    assert {line.count("|") for line in growth.splitlines()} == {4}


def test_the_demos_merge_is_timed_and_printed_for_a_program(
    merged, tiny_host, tmp_path, monkeypatch, capsys
):
    host = tiny_host("llama")
    path, prompts = "model.layers.0.mlp.up_proj", tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "How?", "answer": "So."}\n{"prompt": "Why?", "answer": "No."}')
    out, inp = host.model.get_submodule(path).weight.shape
    for seed, name in enumerate(("utility", "safety")):
        torch.manual_seed(seed)
        delta = Delta(0.03 * torch.randn(out, 2), torch.randn(2, inp))
        write_adapter(tmp_path / name, {path: delta}, host)
    sets = {"utility_prompts": str(prompts), "safety_prompts": str(prompts)}
    made = sst.Merge
    monkeypatch.setattr(sst, "Merge", lambda *a, **k: made(*a, **(sets | k)))
    times = sst.demo(host, str(tmp_path / "utility"), str(tmp_path / "safety"))
    monkeypatch.setattr(sst, "load", lambda _: iter(()))
    monkeypatch.setattr(sst, "demo", lambda *_: times)
    asked = []
    monkeypatch.setattr(sst, "measure", lambda *a: asked.append(a) or merged)
    assert sst.main(["--skip-svd", "--json", "--rank", "8", "--ranks", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["demo"] == asdict(times)
    assert found["ways"]["cat"]["error"] < 1e-6
    shape, *numbers, ways = asked[0]
    assert (shape, numbers) == (mergers.LLAMA_8B, [8, [2], 1, 3])
    assert not {"svd", "svd_thin"} & set(ways)


def test_missing_adapters_are_one_line_and_exit_code_2(tmp_path, capsys):
    assert sst.main(["--adapters", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small model in the shape of the benchmark's, and what each way made of it."""
    folder = tmp_path_factory.mktemp("export")
    small = {
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    source = folder / "base"
    source.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(export_ways.SHAPES, "small", small)
        patch.setattr(export_ways, "SHARD", 20_000_000)
        size = export_ways.random_model(source, "small")
    export_ways.make_adapter(source)
    for name, way in export_ways.WAYS.items():
        way(source, folder / name)
    return folder, size


def test_every_way_of_exporting_makes_the_same_model(exported):
    folder, size = exported
    answers = {}
    for way in export_ways.WAYS:
        model = AutoModelForCausalLM.from_pretrained(folder / way, dtype=torch.float32)
        assert sum(p.numel() for p in model.parameters()) * 2 == size
        with torch.no_grad():
            answers[way] = model(input_ids=torch.arange(5, 25)[None]).logits
    changed = (answers["cp"] - answers["stream"]).abs().max()
    for way in ("peft", "transformers"):
        assert (answers[way] - answers["stream"]).abs().max() < 0.05 * changed


def test_exports_are_compared_with_cp_round_by_round():
    seconds = {"cp": [1.0, 2.0, 4.0], "stream": [2.0, 2.5, 8.0]}
    result = export.Result("small", 10**9, (1, 2), seconds, dict.fromkeys(seconds, 2**20), True, 1)
    table = export.markdown(result)
    assert "| 0.50 | 1× | 1 MiB |" in table
    assert {line.count("|") for line in table.splitlines()} == {7}


def test_the_filters_benchmark_times_the_demo_and_compares_it_with_the_plain_ablation(host):
    demo = filter.costs(host, repeats=1)
    assert min(vars(demo).values()) > 0
    rows = filter.effects(host, samples=2)
    assert [row.removed is None for row in rows] == [True, False, False, False] * 2
    moved = [row.moved for row in rows if row.moved is not None]
    assert moved[0] > moved[1] > moved[2]  # a dearer filter moves less
    assert filter.markdown(demo, rows, []).count("|---") == 2 + 7 + 8


def test_the_filters_benchmark_holds_a_subspace_against_the_whole_space():
    row = filter.wide(640, exact=True, harmful=64, harmless=1024)
    assert row.state < row.whole
    assert all(-1e-6 < value < 0.1 for value in row.excess.values())


def test_every_visitor_has_a_recipe_and_a_session_of_its_own():
    asked = visitors.questions(6)
    texts = {recipe_from(text).digest() for _, text, _ in asked}
    assert len(texts) == len({session for *_, session in asked}) == 6


def test_what_visitors_waited_is_told_for_both_ways(monkeypatch, capsys):
    quick = visitors.Heard([0.1, 0.2], [0.5, 0.6], 1.0, 0, [], (2**20, 2**21))
    slow = visitors.Heard([1.0], [2.0], 1.0, 1, ["an error"], (2**20, 2**20))
    found = dict(zip(visitors.WAYS, (quick, slow), strict=True))
    monkeypatch.setattr(visitors, "measure", lambda *_: found)
    assert visitors.main([]) == 0
    told = capsys.readouterr().out
    assert "| answers a second | 2 | 1 |" in told
    assert "| answers unlike those alone | 0 of 2 | 1 of 1 |" in told
    assert "2× as many answers a second" in told
    assert "an error" in told


def test_so_many_of_the_waits_are_within_the_bound_that_is_told():
    waits = [float(n) for n in range(1, 101)]
    assert visitors.within(waits, 0.95) == 95
    assert visitors.within([3.0, 1.0], 0.95) == 3


def test_the_busiest_pages_tasks_are_read_from_a_trace():
    def event(pid, tid, name, start, took=0, **more):
        return {"pid": pid, "tid": tid, "name": name, "ts": start, "dur": took, "ph": "X", **more}

    def thread(pid, tid, name):
        return {"pid": pid, "tid": tid, "name": "thread_name", "ph": "M", "args": {"name": name}}

    events = [
        thread(1, 1, "CrRendererMain"),
        thread(2, 1, "CrRendererMain"),
        thread(2, 2, "Compositor"),
        event(1, 1, "RunTask", 0, 1_000),
        event(2, 1, "RunTask", 0, 250_000),
        event(2, 1, "FunctionCall", 10, 249_000),  # a part of that task
        event(2, 1, "RunTask", 300_000, 60_500),
        event(2, 2, "RunTask", 0, 900_000),
    ]
    assert browser.tasks(json.dumps({"traceEvents": events}).encode()) == [250.0, 60.5]
