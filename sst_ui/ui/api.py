"""The public endpoints: each takes the whole recipe as text and keeps nothing.

The screen's own events are private.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import gradio as gr

from sst_ui import recipe as recipes
from sst_ui.errors import UserError
from sst_ui.maths import kernel
from sst_ui.metrics.results import MetricResult
from sst_ui.options import ChatOptions
from sst_ui.recipe import Ablation, Recipe
from sst_ui.schema import build
from sst_ui.ui.events.binding import MANY
from sst_ui.ui.services.engine import CHATS, Engine
from sst_ui.ui.services.errors import message as told
from sst_ui.ui.services.leaving import watch
from sst_ui.ui.services.roles import asks, sender

NAMES = ("compare", "evaluate", "weights")
LENGTH = ChatOptions().max_new_tokens


class Api:
    """What a program may ask of the open model. Each call names the model in its recipe; a recipe
    of another one is refused, since its answers would be about the wrong model."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def weights(self, recipe: str) -> list[list[float]]:
        """Alpha of every (layer, module kind) cell, attention first."""
        edits = self._read(recipe).edits
        edit = next((edit for edit in edits if isinstance(edit, Ablation)), None)
        if edit is None:
            raise UserError("the recipe has no ablation, so there is no such table.")
        return kernel.table(edit.weights, self.engine.loaded.layers).tolist()

    def compare(self, message: str, recipe: str, max_new_tokens: int = LENGTH) -> Iterator[dict]:
        """Greedy answers of the base and the edited model to one message, as they grow."""
        edited = self._read(recipe)
        length = build(ChatOptions, {"max_new_tokens": max_new_tokens}, "chat").max_new_tokens
        history = [{"role": "user", "content": message}]
        job = self.engine.chat(
            self.engine.loaded.key, [None, edited], [history, history], length, 0.0
        )
        with closing(job):
            for base, changed in job:
                yield {"base": base, "edited": changed}

    def evaluate(self, recipe: str) -> list[dict]:
        """The recipe's metrics as in metrics.json. Ends when its caller leaves."""
        wanted, engine, left = self._read(recipe), self.engine, watch()
        results: list[dict] = []
        with closing(engine.evaluate(engine.loaded.key, wanted, wanted.evaluation)) as job:
            for part in job:
                if isinstance(part, MetricResult):
                    results.append(part.to_json())
                if left():
                    break
        return results

    def _read(self, text: str) -> Recipe:
        recipe, loaded = recipes.from_yaml(text), self.engine.loaded.spec
        if not recipe.model.is_of(loaded):
            raise UserError(
                f"the recipe is for {recipe.model}, but {loaded} is loaded. Load the recipe's "
                "model first, or change recipe.model."
            )
        return recipe


def connect(engine: Engine) -> None:
    """Register the endpoints in the page being built."""
    calls = Api(engine)
    for name in NAMES:
        at_once = CHATS if name == "compare" else {"concurrency_limit": MANY}
        gr.api(endpoint(getattr(calls, name)), api_name=name, **at_once)


def endpoint(work: Callable[..., Any]) -> Callable[..., Any]:
    """What runs as its caller, who may have to show a key.

    Errors are a `gr.Error` with one sentence; a defect of ours goes to the log.
    """
    asked = asks("call", partial(sender, endpoint=True))(work)
    if inspect.isgeneratorfunction(work):

        @functools.wraps(asked)
        def steps(*args: Any, **more: Any) -> Iterator[Any]:
            with _clear():
                yield from asked(*args, **more)

        return steps

    @functools.wraps(asked)
    def call(*args: Any, **more: Any) -> Any:
        with _clear():
            return asked(*args, **more)

    return call


@contextmanager
def _clear() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        raise gr.Error(told(error, "en"), print_exception=False) from error
