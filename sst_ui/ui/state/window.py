"""What a window holds: small frozen data. Variants, and the conversation in both columns.

Holds no tensors, models or locks: those live in the engine, once.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from sst_ui import recipe as recipes
from sst_ui.checked import Flag, Number, Text, Whole
from sst_ui.errors import UserError
from sst_ui.maths.merge.registry import METHODS
from sst_ui.metrics.text.labels import Label
from sst_ui.recipe import Merge, Recipe
from sst_ui.ui.state.form import split

MOST = 100  # variants of a window
JUDGED = 1000  # votes that it keeps
LONGEST = 60  # characters of a variant's name
SAVED = 20  # variants that the browser keeps
KEPT = 40  # turns of a chat that it keeps
MARKS = (("mu", "μ"), ("base_mu", "μ₀"), ("k", "k"))  # parameters that a merge is named by


Choice = Literal["first", "second", "tie"]  # of the models of the left and the right picker


@dataclass(frozen=True)
class Variant:
    """An applied recipe under a name that is unique in the session."""

    name: str
    recipe: Recipe


@dataclass(frozen=True)
class Variants:
    """Applied recipes, oldest first, and which of them is the edited model now.

    Attributes:
        past: the names that were current before, the latest at the end.
        future: what `back` has left, the nearest at the end.
    """

    items: tuple[Variant, ...] = ()
    current: str = ""
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()

    def get(self, name: str) -> Variant | None:
        """The variant of that name, if there is one."""
        return next((v for v in self.items if v.name == name), None)

    @property
    def now(self) -> Variant | None:
        """The variant that chat and metrics use."""
        return self.get(self.current)

    def add(self, recipe: Recipe, name: str = "") -> "Variants":
        """The recipe as the current variant; one that was applied before is only picked again.

        Of more than `MOST` the oldest are forgotten.

        Args:
            name: to go by; '' for one that says what the recipe does.
        """
        digest = recipe.digest()
        known = next((v for v in self.items if v.recipe.digest() == digest), None)
        if known is not None:
            items = tuple(replace(v, recipe=recipe) if v is known else v for v in self.items)
            return replace(self, items=items).pick(known.name)
        name = unique(name or title(recipe), {v.name for v in self.items})
        items = (*self.items, Variant(name, replace(recipe, name=name)))
        return replace(self, items=items[-MOST:]).pick(name)

    def pick(self, name: str) -> "Variants":
        """That variant as the current one; there is nothing to redo then."""
        if name == self.current:
            return self
        past = (*self.past, self.current) if self.current else self.past
        return replace(self, current=name, past=past[-MOST:], future=())

    def rename(self, name: str, wanted: str) -> "Variants":
        """A variant under another name. Answers that it gave keep the one they were given under.

        Raises:
            UserError: another one is called so.
        """
        wanted = " ".join(wanted.split())[:LONGEST]
        if not wanted or wanted == name:
            return self
        if self.get(wanted) is not None:
            raise UserError(f"another variant is called {wanted!r}; choose another name.")

        def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(wanted if each == name else each for each in names)

        items = tuple(
            Variant(wanted, replace(v.recipe, name=wanted)) if v.name == name else v
            for v in self.items
        )
        current = wanted if self.current == name else self.current
        return Variants(items, current, renamed(self.past), renamed(self.future))

    def saved(self) -> dict:
        """For the browser to keep: the latest recipes as YAML, oldest first, and the current one's
        place among them."""
        items = self.items[-SAVED:]
        place = next((n for n, v in enumerate(items) if v.name == self.current), None)
        return {"recipes": [recipes.to_yaml(v.recipe) for v in items], "current": place}

    @classmethod
    def restored(cls, saved: object, model: str) -> "Variants":
        """The variants of a model among what a browser has kept; what cannot be read is left out.

        The current one is what it was; none, where that is not among them.
        """
        kept = saved if isinstance(saved, dict) else {"recipes": saved}
        texts, known, current = kept.get("recipes"), cls(), ""
        for place, text in enumerate(texts if isinstance(texts, list) else ()):
            with suppress(UserError):
                recipe = recipes.from_yaml(text)
                split(recipe)
                if recipe.model.id == model and recipe.edits:
                    known = known.add(recipe, recipe.name)
                    current = known.current if place == kept.get("current") else current
        return replace(known, past=(), current=current)

    def back(self) -> "Variants":
        """What was current before becomes so again (undo)."""
        return self._moved("past", "future", "there is nothing to undo.")

    def forward(self) -> "Variants":
        """What `back` has left becomes current again (redo)."""
        return self._moved("future", "past", "there is nothing to redo.")

    def _moved(self, source: str, other: str, refusal: str) -> "Variants":
        names = [name for name in getattr(self, source) if self.get(name)]
        if not names:
            raise UserError(refusal)
        left = (*getattr(self, other), self.current) if self.current else getattr(self, other)
        return replace(self, current=names[-1], **{source: tuple(names[:-1]), other: left})


@dataclass(frozen=True)
class Source:
    """Where an answer came from. It is written down when the answer begins and never looked up
    again: the answer stays that recipe's, whatever is picked, applied, renamed or deleted later.

    Attributes:
        part: `base`, `utility`, `merged` or `edited`: which model of the variant; `waiting` until
            it is measured, or for ever if nobody waited.
        name: what the variant was called; empty for the base.
        digest: of the recipe that answered; empty for the base.
        temperature, seed: what it was drawn with; the seed says nothing at temperature 0.
        left_out: the oldest turns of the conversation that it did not see.
    """

    part: Text
    name: Text = ""
    digest: Text = ""
    temperature: Number = 0.0
    seed: Whole = 0
    left_out: Whole = 0


@dataclass(frozen=True)
class Turn:
    """One message, what each column answered, and where each answer came from.

    Attributes:
        labels: what kind of answer each is; none while they come, or of answers that were stopped.
        system: the system prompt that both had before them.
        blind: whether it is for the reader to say which answer is better, not knowing whose it is.
        swapped: whether the columns show each other's answer.
        choice: what the reader said.
        unfinished: the answers are on their way, or were stopped before both had come to an end.
    """

    message: Text
    answers: tuple[Text, Text] = ("", "")
    sources: tuple[Source, ...] = ()
    labels: tuple[Label, ...] = ()
    system: Text = ""
    blind: Flag = False
    swapped: Flag = False
    choice: Choice | None = None
    unfinished: Flag = False

    @property
    def hidden(self) -> bool:
        """Whether the columns do not say yet whose answers they show."""
        return self.blind and self.choice is None

    def side(self, column: int) -> int:
        """Which of both answers a column shows."""
        return 1 - column if self.swapped else column


@dataclass(frozen=True)
class Vote:
    """Which of two answers a reader found better without knowing whose they were."""

    sources: tuple[Source, Source]
    choice: Choice


@dataclass(frozen=True)
class Conversation:
    """The turns of a chat, oldest first, and the votes of this window; they outlast the chat."""

    turns: tuple[Turn, ...] = ()
    votes: tuple[Vote, ...] = ()

    def history(self, column: int) -> list[dict[str, str]]:
        """The messages as one column's model saw them; an unanswered turn ends with the user."""
        messages = []
        if self.turns and self.turns[-1].system:
            messages.append({"role": "system", "content": self.turns[-1].system})
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.message})
            if turn.answers[column]:
                messages.append({"role": "assistant", "content": turn.answers[column]})
        return messages

    def judged(self, choice: Choice) -> "Conversation":
        """With the reader's word on the last turn; it says from now on whose its answers are.

        Raises:
            UserError: there is nothing to be said of it.
        """
        last = self.turns[-1] if self.turns else None
        if last is None or not last.hidden or len(last.sources) != 2:
            raise UserError("there are no two answers to choose between.")
        vote = Vote((last.sources[0], last.sources[1]), choice)
        turns = (*self.turns[:-1], replace(last, choice=choice))
        return Conversation(turns, (*self.votes, vote)[-JUDGED:])

    def without(self, votes: Sequence[Vote]) -> "Conversation":
        """With those votes forgotten."""
        return replace(self, votes=tuple(vote for vote in self.votes if vote not in votes))

    def saved(self) -> dict:
        """The latest turns and the votes as plain data, for a browser to keep."""
        return {
            "turns": [asdict(turn) for turn in self.turns[-KEPT:]],
            "votes": [asdict(vote) for vote in self.votes],
        }

    @classmethod
    def restored(cls, kept: object) -> "Conversation":
        """What `saved` gave; all of it is left out where something else is among it."""
        rows = kept if isinstance(kept, dict) else {}
        try:
            turns = _TURNS.validate_python(rows.get("turns"))
            return cls(turns, _VOTES.validate_python(rows.get("votes", [])))
        except ValidationError:
            return cls()


_KEPT = ConfigDict(extra="forbid")
_TURNS = TypeAdapter(tuple[Turn, ...], config=_KEPT)
_VOTES = TypeAdapter(tuple[Vote, ...], config=_KEPT)


def title(recipe: Recipe) -> str:
    """A short name that says what the recipe does: method, profile, strength, what is unusual."""
    merge, edit = split(recipe)
    parts = [_merged(merge)] if merge else []
    if edit is not None:
        marks = [edit.weights.profile, f"×{edit.weights.strength:g}"]
        marks += [edit.operation] if edit.operation != "ablate" else []
        if edit.operation == "filter":
            price, budget, nats = edit.filter.mu, edit.filter.budget, edit.filter.kl
            marks.append(f"μ {price:g}" if budget is None else f"≤{budget:.2g}")
            if nats is not None:
                marks[-1] = f"KL ≤{nats:.2g}"
        marks += ["affine"] if edit.affine else []
        marks += ["everywhere"] if edit.affine and edit.affine_at == "everywhere" else []
        marks += ["random"] if edit.directions.estimator == "random" else []
        few = edit.directions.samples if edit.directions.file is None else None
        marks += [f"{few}+{few}"] if few else []  # prompts of each kind
        parts.append(" ".join(marks))
    return " + ".join(parts).replace("-", "−") or "base"


def _merged(merge: Merge) -> str:
    """Method and the number that says how far it goes."""
    if merge.weights.strength == 0:
        return "utility adapter"
    method = METHODS[merge.method]
    marks = [method.name]
    values = method.check(merge.parameters)
    if merge.budget is not None:
        marks.append(f"≤{merge.budget:g} nats")
    else:
        marks += [f"{sign} {values[n]:g}" for n, sign in MARKS if n in values]
    marks += [f"×{merge.weights.strength:g}"] if merge.weights.strength != 1 else []
    return " ".join(marks)


def unique(name: str, taken: set[str]) -> str:
    """The name, or the name with the next free number."""
    if name not in taken:
        return name
    return next(n for i in range(2, 10_000) if (n := f"{name} #{i}") not in taken)
