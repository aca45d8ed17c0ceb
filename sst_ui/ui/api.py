"""The public endpoints: each takes the whole recipe as text and keeps nothing.

Knows how to call the engine for a program; the screen's own events are private.
"""

from collections.abc import Iterator
from contextlib import closing

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.metrics.results import MetricResult
from sst_ui.progress import finish
from sst_ui.recipe import Ablation
from sst_ui.ui.engine import Engine
from sst_ui.ui.errors import message

NAMES = ("compare", "evaluate", "weights")


def connect(engine: Engine) -> None:
    """Register the endpoints in the page being built."""

    def weights(recipe: str) -> list[list[float]]:
        """Alpha of every (layer, module kind) cell, attention first."""
        with _clear():
            edits = recipes.from_yaml(recipe).edits
            edit = next((edit for edit in edits if isinstance(edit, Ablation)), None)
            if edit is None:
                raise UserError("the recipe has no ablation, so there is no such table.")
            return kernel.table(edit.weights, engine.loaded.layers).tolist()

    def compare(message: str, recipe: str, max_new_tokens: int = 64) -> Iterator[dict]:
        """Greedy answers of the base and the edited model to one message, as they grow."""
        with _clear():
            edited = recipes.from_yaml(recipe)
            history = [{"role": "user", "content": message}]
            job = engine.chat(
                engine.loaded.key, [None, edited], [history, history], int(max_new_tokens), 0.0
            )
            with closing(job):
                for base, changed in job:
                    yield {"base": base, "edited": changed}

    def evaluate(recipe: str) -> list[dict]:
        """The recipe's metrics as in metrics.json."""
        with _clear():
            wanted = recipes.from_yaml(recipe)
            results = finish(engine.evaluate(engine.loaded.key, wanted, wanted.evaluation))
            return [r.to_json() for r in results if isinstance(r, MetricResult)]

    for function in (compare, evaluate, weights):
        gr.api(function, api_name=function.__name__)


class _clear:
    """Errors of an endpoint as `gr.Error` with the message only."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, UserError):
            raise gr.Error(message(error, "en"), print_exception=False) from error
