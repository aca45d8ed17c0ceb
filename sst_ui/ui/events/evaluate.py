"""Metrics that start by themselves: after Apply, after a variant was picked, when the page opens.

How results look is in `metrics` and `show_results`.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.purpose import goal_for
from sst_ui.metrics import corrections
from sst_ui.metrics.registry import prompts_named
from sst_ui.metrics.results import MetricResult, judged
from sst_ui.progress import Progress
from sst_ui.recipe import Evaluation, Recipe
from sst_ui.ui.events import show_results
from sst_ui.ui.events.answers import DRAWN
from sst_ui.ui.events.binding import MANY, PRIVATE, Reads, call, together
from sst_ui.ui.events.show_results import ResultsView
from sst_ui.ui.panels import metrics
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message
from sst_ui.ui.services.progress_bars import Bar
from sst_ui.ui.state.form import MEASURING, evaluation, measured_by
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.results_board import Board, First
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import HIDDEN
from sst_ui.ui.widgets.texts import say

LATEST = 4  # variants of a window beside the current one whose answers are kept
CANCELLED = ":cancelled"  # mark of a job that ends with a word, beside its own name
SOUND = measured_by(Evaluation())  # what the controls begin with


def check_settings(
    controls: Sequence[Any], language: str, results: object, settings: tuple
) -> dict[Any, str]:
    """What is wrong at which of the controls of `MEASURING`."""
    wrong = {}
    for control, name, value in zip(controls, MEASURING, settings, strict=True):
        try:
            _look(evaluation(*(SOUND | {name: value}).values()))
        except UserError as error:
            wrong[control] = message(error, language)
    return wrong


def _look(wanted: Evaluation) -> None:
    """Read the files that the settings name, so that a bad one is said before anything runs."""
    for name in wanted.metrics:
        if (named := prompts_named(name)) is not None:
            prompt_sets.load(named)
    if wanted.labels:
        corrections.read(wanted.labels)


def connect(
    panel: metrics.MetricsPanel,
    view: ResultsView,
    settings: Sequence[Any],
    board: Reads,
    session: Session,
    triggers: Sequence,
    interrupts: Sequence,
    engine: Engine,
) -> list:
    """Wire the metrics; returns the events at whose end there may be new ones.

    Args:
        settings: the controls of `MEASURING`.
        triggers: events after whose success metrics start.
        interrupts: event listeners (`button.click`) that make running metrics obsolete.
    """
    again = panel.run.click(
        **call(
            forget,
            session.language,
            session.results,
            together(settings),
            check=partial(check_settings, settings),
        ),
        outputs=session.results,
        **PRIVATE,
    )
    buttons = [panel.progress, panel.cancel, panel.run]
    running = [
        event.success(
            **call(
                partial(run, panel, session, engine),
                session.language, session.loaded, session.job, board, together(settings),
                may="measure",
            ),
            outputs=[panel.rows, panel.grown, *buttons, session.results, session.job],
            concurrency_id="metrics",
            concurrency_limit=MANY,
            trigger_mode="multiple",  # one that is told to stop does so at its next step
            **PRIVATE,
        )
        for event in (*triggers, again)
    ]  # fmt: skip
    ended = call(partial(after, view, engine), session.language, session.job, board)
    for event in running:  # with what was corrected or filtered in the meantime
        event.then(**ended, outputs=view.outputs, **DRAWN)
    growing = {**call(partial(beside, view), board), "outputs": view.outputs[1:]}  # but the rows
    panel.grown.change(**growing, trigger_mode="always_last", **DRAWN)
    for listen in interrupts:
        listen(**call(partial(interrupt, engine), session.language, session.job), **PRIVATE)
    written = [*view.outputs, session.results, session.variants]
    aiming = call(partial(aim, view, session), board, together(settings))
    panel.metric_goal.input(**aiming, outputs=written, **PRIVATE)
    panel.cancel.click(
        **call(partial(stop, panel, view, engine), session.language, session.job, board),
        outputs=[*view.outputs, *buttons],
        **PRIVATE,
    )
    return running


def run(
    panel: metrics.MetricsPanel,
    session: Session,
    engine: Engine,
    language: str,
    loaded: Loaded,
    earlier: str,
    board: Board,
    settings: tuple,
) -> Iterator[dict]:
    """Metrics of the current variant, row by row as they finish."""
    now = board.variants.now
    wanted = evaluation(*settings)
    name = f"{now.recipe.digest() if now else ''} {recipes.digest(recipes.to_dict(wanted))}"
    same = earlier.startswith(f"{name} ") and engine.goes(earlier)
    if same and not engine.stopped(earlier + CANCELLED):
        return  # it is being measured
    engine.stop(earlier)
    if now is None:
        return
    mine, digest = f"{name} {uuid4().hex}", now.recipe.digest()
    if board.results.get(f"done:{digest}") == wanted:
        yield {panel.rows: metrics.render(board), panel.progress: "", **_resting(panel)}
        return
    board = replace(board, results={**_remembered(board, digest), digest: ()})
    working = {panel.cancel: gr.update(visible=True), panel.run: gr.update(visible=HIDDEN)}
    yield {panel.rows: metrics.render(board, pending=True), session.job: mine, **working}
    with engine.going(mine):
        done = yield from _rows(panel, session, engine, loaded, board, wanted, mine)
    if done is not None:
        results = {k: v for k, v in done.results.items() if k != f"first:{digest}"}
        results[f"done:{digest}"] = wanted
        done = replace(done, results=results)
        rows = metrics.render(done)
        yield {panel.rows: rows, panel.progress: "", session.results: results, **_resting(panel)}


def _remembered(board: Board, now: str) -> dict[str, Any]:
    """The results of a window's other variants: of the latest with all answers, of earlier ones
    the numbers, so that they are measured again when one is picked."""
    there = {variant.recipe.digest() for variant in board.variants.items} - {now}
    kept = {k: v for k, v in board.results.items() if k.rpartition(":")[2] in there}
    measured = [name for name in kept if ":" not in name]
    for name in measured[:-LATEST]:
        kept[name] = tuple(replace(result, items=()) for result in kept[name])
        kept.pop(f"done:{name}", None)
    return kept


def _rows(
    panel: metrics.MetricsPanel,
    session: Session,
    engine: Engine,
    loaded: Loaded,
    board: Board,
    wanted: Evaluation,
    mine: str,
) -> Generator[dict, None, Board | None]:
    """Drive the job; returns the board with all of its rows, None for a job that did not end."""
    assert board.variants.now is not None  # it is what is measured
    recipe, bar = board.variants.now.recipe, Bar(board.language)
    heard, stage = job_runner.Told(board.language), None
    try:
        with closing(_staged(engine, loaded.key, recipe, wanted)) as job:
            for count, part in enumerate(job):
                heard(part)
                if engine.stopped(mine):
                    return None
                if engine.stopped(mine + CANCELLED):
                    yield _ended(panel, board)
                    return None
                if part is None or isinstance(part, First):
                    stage = part
                elif isinstance(part, MetricResult):
                    board = _with(board, part, stage)
                    rows = metrics.render(board, pending=True)
                    grown = {panel.grown: f"{mine} {count}"} if board.first else {}
                    yield {panel.rows: rows, session.results: board.results, **grown}
                elif isinstance(part, Progress) and (shown := bar.place(part)):
                    yield {panel.progress: shown}
    except Exception as error:
        engine.stop(mine)  # nothing more of it will come
        told = notice(message(error, board.language), "bad")
        yield {panel.rows: metrics.render(board), panel.progress: told, **_resting(panel)}
        return None
    return board


def _staged(
    engine: Engine, key: str, recipe: Recipe, wanted: Evaluation
) -> Generator[First | Progress | MetricResult | None]:
    """An evaluation stage by stage: what each is (None: all that is wanted), and what it yields;
    of the progress, how far all of them together are."""
    with engine.first.aside():
        stages = yield from engine.stages(key, recipe, wanted)
    total, before = sum(stage.seconds for stage in stages), 0.0
    for stage in stages:
        size = (stage.prompts or 0, stage.tokens, stages[-1].prompts, stages[-1].tokens)
        yield None if stage is stages[-1] else First(frozenset(), *size)
        first = engine.first.aside() if stage is not stages[-1] and not before else nullcontext()
        with first, closing(engine.evaluate(key, recipe, stage.evaluation)) as job:
            for step in job:
                if len(stages) > 1 and isinstance(step, Progress) and step.overall is not None:
                    done = (before + stage.seconds * step.overall) / total
                    step = replace(step, overall=done)
                yield step
        before += stage.seconds


def _with(board: Board, result: MetricResult, stage: First | None) -> Board:
    """With one more row, in the place of the one that an earlier stage gave."""
    assert board.variants.now is not None  # it is what is measured
    digest = board.variants.now.recipe.digest()
    rows = {row.name: row for row in board.results[digest]} | {result.name: result}
    results: dict[str, Any] = {**board.results, digest: tuple(rows.values())}
    names = board.first.names if board.first else frozenset[str]()
    if stage is not None:
        results[f"first:{digest}"] = replace(stage, names=names | {result.name})
    elif board.first is not None:
        results[f"first:{digest}"] = replace(board.first, names=names - {result.name})
    return replace(board, results=results)


def show(view: ResultsView, board: Board) -> dict:
    """Everything that shows results.

    Where no metric was opened there are no answers to draw again: they would come over those of one
    that is opened while this is on its way.
    """
    updates = show_results.refresh(view, board)
    if not board.opened:
        del updates[view.answers], updates[view.label]
    return updates


def beside(view: ResultsView, board: Board) -> dict:
    """The same beside the rows, which draw themselves while first numbers give way to others."""
    updates = show(view, board)
    del updates[view.rows]
    return updates


def interrupt(engine: Engine, language: str, job: str) -> None:
    """Nobody waits for these metrics any more: something else is about to be current."""
    engine.stop(job)


def after(view: ResultsView, engine: Engine, language: str, job: str, board: Board) -> dict:
    """The same at the end of a run, while another one may have begun: its rows are still coming."""
    updates = show(view, board)
    now = board.variants.now
    done = now is None or f"done:{now.recipe.digest()}" in board.results
    if job and not done and not engine.stopped(job) and not engine.stopped(job + CANCELLED):
        updates[view.rows] = metrics.render(board, pending=True)
    return updates


def stop(
    panel: metrics.MetricsPanel, view: ResultsView, engine: Engine, language: str, job: str,
    board: Board,
) -> dict:  # fmt: skip
    """Says at once that it is over; the job ends at its next step and says it once more, after
    whatever it had on its way."""
    engine.stop(job + CANCELLED)
    return {**show_results.refresh(view, board), **_ended(panel, board)}


def aim(view: ResultsView, session: Session, board: Board, settings: tuple) -> dict:
    """Another goal: nothing is measured again, all variants' numbers are read the other way."""
    said = settings[MEASURING.index("metric_goal")]
    results, items = dict(board.results), []
    for variant in board.variants.items:
        wanted = replace(variant.recipe.evaluation, goal=said)
        recipe = replace(variant.recipe, evaluation=wanted)
        items.append(replace(variant, recipe=recipe))
        digest, goal = recipe.digest(), goal_for(recipe, said)
        if digest in results:
            results[digest] = tuple(judged(result, goal) for result in results[digest])
        if (done := results.get(f"done:{digest}")) is not None:
            results[f"done:{digest}"] = replace(done, goal=said)
    variants = replace(board.variants, items=tuple(items))
    board = replace(board, variants=variants, results=results)
    return {**show(view, board), session.results: results, session.variants: variants}


def forget(language: str, results: dict, settings: tuple) -> dict:
    """The results without their marks, so that all is measured again."""
    return {name: value for name, value in results.items() if not name.startswith("done:")}


def _ended(panel: metrics.MetricsPanel, board: Board) -> dict:
    told = notice(say(board.language, "metrics.cancelled"), "info")
    return {panel.progress: told, panel.rows: metrics.render(board), **_resting(panel)}


def _resting(panel: metrics.MetricsPanel) -> dict:
    return {panel.cancel: gr.update(visible=HIDDEN), panel.run: gr.update(visible=True)}
