"""Metrics that start by themselves: after Apply, after a variant was picked, when the page opens.

Knows the job, its cancel, and the way down to the prompts. How results look is in `metrics`.
"""

import time
from collections.abc import Sequence
from contextlib import closing

import gradio as gr

from sst_ui.errors import UserError
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import MetricResult
from sst_ui.progress import Progress
from sst_ui.recipe import Evaluation
from sst_ui.ui import metrics, variants
from sst_ui.ui.engine import Engine
from sst_ui.ui.errors import guarded, message
from sst_ui.ui.html import Clock, notice
from sst_ui.ui.loaded import Loaded
from sst_ui.ui.state import Variants
from sst_ui.ui.texts import say

PACE = 0.1  # seconds between two updates of the progress bar
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}


def evaluation(names, samples, tokens) -> Evaluation:
    """The metric settings of the screen (`UserError` for a bad one)."""
    for name in names or ():
        find(name)
    return Evaluation(
        tuple(names or ()),
        samples=int(samples or 0) or None,
        max_new_tokens=int(tokens or 0) or None,
    )


def check_settings(lang, results, names, samples, tokens):
    """A validator: the message appears at the setting that is wrong."""
    checks = [gr.validate(True, "")] * 5
    alone = (((names, 0, 48)), ((), samples, 48), ((), 0, tokens))
    for place, values in enumerate(alone, start=2):
        try:
            evaluation(*values)
        except UserError as error:
            checks[place] = gr.validate(False, message(error, lang))
    return checks


def of(results: dict, known: Variants) -> Sequence[MetricResult]:
    """The metrics of the current variant; empty while there are none."""
    return results.get(known.now.recipe.digest(), ()) if known.now else ()


def connect(studio, engine: Engine, triggers: Sequence, interrupts: Sequence) -> None:
    """Wire the metrics.

    Args:
        triggers: events after whose success metrics start.
        interrupts: event listeners (`button.click`) that make running metrics obsolete.
    """
    session, panel, form = studio.session, studio.metrics, studio.form
    working = {panel.cancel: gr.update(visible=True), panel.run: gr.update(visible=False)}
    resting = {panel.cancel: gr.update(visible=False), panel.run: gr.update(visible=True)}

    @guarded
    def run(lang, loaded: Loaded, known: Variants, results: dict, names, samples, tokens):
        """Metrics of the current variant, row by row as they finish."""
        if known.now is None:
            return
        recipe, wanted = known.now.recipe, evaluation(names, samples, tokens)
        digest, clock, found, shown = recipe.digest(), Clock(), [], 0.0
        if results.get(f"done:{digest}") == wanted:
            yield {panel.rows: metrics.render(lang, results[digest]), panel.progress: "", **resting}
            return
        yield {panel.rows: metrics.render(lang, [], pending=True), **working}
        try:
            with closing(engine.evaluate(loaded.key, recipe, wanted)) as job:
                for part in job:
                    if isinstance(part, MetricResult):
                        found.append(part)
                        results = {**results, digest: tuple(found)}
                        yield {
                            panel.rows: metrics.render(lang, found, pending=True),
                            session.results: results,
                        }
                    elif isinstance(part, Progress) and time.monotonic() - shown >= PACE:
                        shown = time.monotonic()
                        yield {panel.progress: clock.bar(lang, part)}
        except Exception as error:
            rows = metrics.render(lang, found)
            told = notice(message(error, lang), "bad")
            yield {panel.rows: rows, panel.progress: told, **resting}
            return
        results = {**results, f"done:{digest}": wanted}
        yield {
            panel.rows: metrics.render(lang, found),
            panel.progress: "",
            session.results: results,
            studio.variants.rows: variants.render(lang, known, results),
            studio.figures.tradeoff: variants.tradeoff(lang, known, results),
            **resting,
        }

    @guarded
    def stop(lang, known: Variants, results: dict):
        told = notice(say(lang, "metrics.cancelled"), "info")
        rows = metrics.render(lang, of(results, known))
        return {panel.rows: rows, panel.progress: told, **resting}

    @guarded
    def open_metric(lang, event: gr.EventData, known: Variants, results: dict, only):
        found = of(results, known)
        result = next((r for r in found if r.name == event.pick), None)
        return {
            session.opened: event.pick,
            studio.answers: metrics.answers(lang, result, only == "changed"),
            studio.tabs: gr.update(selected="answers"),
            panel.rows: metrics.render(lang, found, event.pick),
        }

    @guarded
    def refilter(lang, opened, known: Variants, results: dict, only):
        result = next((r for r in of(results, known) if r.name == opened), None)
        return metrics.answers(lang, result, only == "changed")

    @guarded
    def forget(lang, results, *settings):
        return {name: value for name, value in results.items() if not name.startswith("done:")}

    settings = [form.metrics, form.metric_samples, form.metric_tokens]
    state = [session.variants, session.results]
    again = panel.run.click(
        forget,
        [session.language, session.results, *settings],
        session.results,
        validator=check_settings,
        **PRIVATE,
    )
    buttons = [panel.rows, panel.progress, panel.cancel, panel.run]
    running = [
        event.success(
            run,
            [session.language, session.loaded, *state, *settings],
            [*buttons, session.results, studio.variants.rows, studio.figures.tradeoff],
            concurrency_id="metrics",
            concurrency_limit=4,
            **PRIVATE,
        )
        for event in (*triggers, again)
    ]
    for listen in interrupts:
        listen(None, None, None, cancels=running, **PRIVATE)
    panel.cancel.click(stop, [session.language, *state], buttons, cancels=running, **PRIVATE)
    panel.rows.click(
        open_metric,
        [session.language, *state, studio.filter],
        [session.opened, studio.answers, studio.tabs, panel.rows],
        **PRIVATE,
    )
    studio.filter.input(
        refilter,
        [session.language, session.opened, *state, studio.filter],
        studio.answers,
        **PRIVATE,
    )
