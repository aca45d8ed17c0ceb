"""Directions in rounds: where the edited model still refuses or evades, and along which direction.

1. The first direction is measured at the prompt's last token, and the model is edited along it.
2. The *edited* model answers the harmful measuring prompts; of the answers that are still refused
   or evaded, and of the places where that may have been decided (`candidates.py`), the one counts
   whose direction, added to the others, lets the edited model deliver most on the selection
   prompts.
3. That goes on until few enough of those are refused or evaded, no more rounds are left, or nothing
   gets better.

Nothing is measured on the selection prompts, and no prompt set that a metric reports on may be
among them.
"""

from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import yaml

from sst_ui.data import prompt_sets
from sst_ui.data.prompt_sets import PromptSet
from sst_ui.errors import UserError
from sst_ui.jobs.directions.candidates import FEW, Said, candidates, onset
from sst_ui.jobs.directions.concepts import concepts
from sst_ui.jobs.directions.concepts import residuals as protected_residuals
from sst_ui.jobs.directions.filtering import refuse
from sst_ui.jobs.directions.measure import along, described, texts
from sst_ui.jobs.directions.residual_cache import captured, encode
from sst_ui.maths import kernel
from sst_ui.maths.contrast import extended
from sst_ui.maths.decisions import PROMPT, Decision
from sst_ui.maths.direction_estimators import estimate
from sst_ui.maths.directions import Directions
from sst_ui.metrics.registry import METRICS, Metric
from sst_ui.metrics.text.labels import LABELS, Label, label
from sst_ui.model.inference.batch import Row
from sst_ui.model.inference.fisher_step import Conversation
from sst_ui.model.inference.replies import replies
from sst_ui.model.runtime.host import Host
from sst_ui.options import Contrast, RoundsOptions
from sst_ui.paths import PRESETS
from sst_ui.progress import Progress
from sst_ui.recipe import Ablation

PATIENCE = 1  # rounds that may bring nothing: where two decisions refuse, one alone may not show
EVERY = 4  # of the measuring prompts one in so many is kept for selecting


@dataclass(frozen=True)
class Parts:
    """Prompts by what they are for; harmful ones are in one of the two only."""

    harmful: PromptSet
    harmless: PromptSet
    select: PromptSet


@dataclass(frozen=True, eq=False)
class Round:
    """What the selection prompts get under the directions so far.

    Attributes:
        number: directions so far.
        decision: the newest, None before the first edit.
        shares: label -> share of the answers.
        tried: candidates of this round.
    """

    number: int
    decision: Decision | None
    shares: Mapping[str, float]
    tried: int = 1

    @property
    def held(self) -> float:
        """Share of refused and evaded answers."""
        return self.shares["refused"] + self.shares["evaded"]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        told = None if self.decision is None else self.decision.told()
        shares = dict(self.shares)
        return {"directions": self.number, "decision": told, "shares": shares, "tried": self.tried}


@dataclass(frozen=True, eq=False)
class Rounds:
    """Directions found in rounds.

    Attributes:
        rounds: what each did, that without an edit first; those that were there at the beginning
            are one.
        ended: why: `goal`, `rounds`, `worse` or `none`.
        tokens: length of the answers.
    """

    directions: Directions
    rounds: tuple[Round, ...]
    ended: str
    tokens: int


def rounds(
    host: Host,
    edit: Ablation,
    options: RoundsOptions,
    begin: Directions | None = None,
    before: Row = (),
    identity: str = "",
) -> Generator[Progress | Round, None, Rounds]:
    """Find directions one by one. Closing the generator stops it and leaves nothing.

    Args:
        edit: how the model is edited along them: operation, weights and, of a filter, its price.
            Its prompt sets are measured on.
        begin: directions found so far; None to begin with the first.
        before: the edits in front of it, and `identity` what names them.

    Yields:
        Progress, and a `Round` for each direction; the first is without any. Directions after the
        best round are not kept.

    Raises:
        UserError: prompts that are too few, selected on and measured on, or reported on.
    """
    job = yield from _Search.begun(host, edit, options, before, identity)
    known = begin
    if known is None:
        known = yield from job.first()
    else:
        job.check(known)
    done = [Round(0, None, (yield from job.shares(job.before)))]
    yield done[0]
    row = yield from job.row(known)
    now = Round(known.k, known.decisions[-1], (yield from job.shares(row)))
    yield now
    done.append(now)
    best, stale = (known, len(done)), 0
    while (ended := job.over(done[0], done[best[1] - 1], now)) is None:
        found = yield from job.next(known, row)
        if found is None:
            ended = "none"
            break
        known, row, now = found
        stale = 0 if _rank(now) > max(map(_rank, done)) else stale + 1
        if stale > PATIENCE:
            ended = "worse"
            break
        done.append(now)
        if not stale:
            best = (known, len(done))
        yield now
    if ended == "rounds" and stale:
        ended = "worse"
    return Rounds(best[0], tuple(done[: best[1]]), ended, job.tokens)


def _rank(found: Round) -> tuple[float, float]:
    """More delivered is better; of the same, less refused and evaded."""
    return round(found.shares["delivered"], 6), -round(found.held, 6)


@dataclass(frozen=True, eq=False)
class _Search:
    host: Host
    edit: Ablation
    options: RoundsOptions
    parts: Parts
    harmless: tuple[Conversation, ...]  # with the unedited model's answers
    tokens: int
    before: Row
    identity: str

    @classmethod
    def begun(
        cls, host: Host, edit: Ablation, options: RoundsOptions, before: Row, identity: str
    ) -> Generator[Progress, None, "_Search"]:
        if edit.operation == "filter":
            refuse(host, edit)
        if edit.operation == "add":
            raise UserError("rounds go with the operations ablate and filter, not with add.")
        kernel.table(edit.weights, host.layers)
        parts = divided(edit, options)
        tokens = options.max_new_tokens or _length(host)
        asked = encode(host, parts.harmless, "template").prompts
        tokens = min(tokens, host.context - max(map(len, asked)))
        said = yield from replies(host, asked, [before] * len(asked), tokens)
        pairs = tuple((p, r.tokens) for p, r in zip(asked, said, strict=True))
        return cls(host, edit, options, parts, pairs, tokens, before, identity)

    def first(self) -> Generator[Progress, None, Directions]:
        """The direction at the prompt's last token."""
        host, spec = self.host, self.edit.directions
        sets = [
            encode(host, each, spec.position) for each in (self.parts.harmful, self.parts.harmless)
        ]
        harmful, harmless = yield from captured(host, sets)
        parts = self.parts
        protected = concepts(spec, parts.harmful, parts.harmless)
        kept = yield from protected_residuals(host, spec, protected)
        found = estimate(harmful, harmless, spec, host.digest, concepts=kept)
        meta = described(host, spec, (parts.harmful, parts.harmless), protected)
        meta["select"] = described(host, spec, (parts.select,))["harmful"]
        ends = sets[0].positions or [len(p) - 1 for p in sets[0].prompts]
        heads = tuple(p[: e + 1] for p, e in zip(sets[0].prompts, ends, strict=True))
        active = self.active()
        quality = found.stats["quality"]
        layer = max(active, key=lambda i: float(quality[i]))
        decisions = tuple(
            Decision(1, PROMPT, 0, 0, layer, "harmless", heads if i == 0 else ())
            for i in range(found.k)
        )
        return replace(found, decisions=decisions, meta={**found.meta, **meta})

    def check(self, begin: Directions) -> None:
        """Raise a `UserError` where nobody can go on from these directions."""
        if not begin.decisions:
            raise UserError(
                "these directions do not say where they were measured; begin without a directions "
                "file."
            )
        heads = {head for each in begin.decisions for head in each.heads}
        asked = encode(self.host, self.parts.select, "template").prompts
        if known := [ids for ids in asked if any(head[: len(ids)] == ids for head in heads)]:
            raise UserError(
                f"these directions were measured on {len(known)} of the prompts to select by; "
                "select by others, or begin without a directions file."
            )

    def active(self) -> list[int]:
        alpha = kernel.table(self.edit.weights, self.host.layers)
        layers = [int(i) for i in (alpha != 0).any(1).nonzero()[0]]
        if not layers:
            raise UserError(
                "all weights of this edit are 0; rounds need an edit that does something."
            )
        return layers

    def row(self, directions: Directions) -> Generator[Progress, None, Row]:
        """The edit along these directions, behind those in front of it."""
        edit = yield from along(self.host, self.edit, directions, self.before, self.identity)
        return (*self.before, edit)

    def said(
        self, prompts: PromptSet, row: Row, stage: str
    ) -> Generator[Progress, None, list[Said]]:
        """Answers to prompts under an edit, with their labels."""
        asked = encode(self.host, prompts, "template").prompts
        tokens = min(self.tokens, self.host.context - max(map(len, asked)))
        found = yield from replies(self.host, asked, [row] * len(asked), tokens, stage=stage)
        said = []
        for prompt, ids, reply in zip(prompts.prompts, asked, found, strict=True):
            kind = label(prompt.user, self.host.answer(reply.tokens), reply.ended)
            start = onset(self.host, reply.tokens) if kind == "refused" else None
            said.append(Said(ids, reply.tokens, kind, start))
        return said

    def shares(self, row: Row) -> Generator[Progress, None, dict[str, float]]:
        """Label -> share of the answers to the selection prompts."""
        said = yield from self.said(self.parts.select, row, "selection")
        counts: Counter[Label] = Counter(each.label for each in said)
        return {name: counts[name] / len(said) for name in LABELS}

    def over(self, base: Round, best: Round, now: Round) -> str | None:
        """Why no further round is needed or allowed. What counts is the round in which most is
        delivered; answers that the edit broke are as far from the goal as those that refuse."""
        broken = max(0.0, best.shares["degenerate"] - base.shares["degenerate"])
        if best.held + broken <= self.options.goal:
            return "goal"
        return "rounds" if now.number >= self.options.rounds else None

    def next(
        self, known: Directions, row: Row
    ) -> Generator[Progress, None, tuple[Directions, Row, Round] | None]:
        """The best of the candidates; None where there are none."""
        said = yield from self.said(self.parts.harmful, row, "answers")
        if sum(each.held for each in said) < FEW:
            return None
        wanted = self.options.contrast
        names = get_args(Contrast)[1:] if wanted == "best" else (wanted,)
        found = yield from candidates(
            self.host, known, row, said, self.harmless, self.active(), names
        )
        best: tuple[Directions, Row, Round] | None = None
        tried = 0
        for tried, candidate in enumerate(found, 1):  # noqa: B007  how far it came
            try:
                more = extended(
                    known, candidate.difference, candidate.reference, candidate.decision
                )
            except UserError:
                continue  # nothing new there
            edited = yield from self.row(more)
            shares = yield from self.shares(edited)
            then = Round(more.k, candidate.decision, shares)
            if best is None or _rank(then) > _rank(best[2]):
                best = (more, edited, then)
            if then.held <= self.options.goal and not then.shares["degenerate"]:
                break  # nothing better is asked for
        if best is None:
            return None
        more, edited, then = best
        return more, edited, replace(then, tried=tried)


def divided(edit: Ablation, options: RoundsOptions) -> Parts:
    """The prompts to measure on and to select by.

    Raises:
        UserError: as `rounds`.
    """
    spec = edit.directions
    harmful, harmless = (prompt_sets.load(n, spec.samples) for n in (spec.harmful, spec.harmless))
    if options.select is None:
        kept = range(EVERY - 1, len(harmful), EVERY)
        select = harmful.only(kept)
        harmful = harmful.only([i for i in range(len(harmful)) if i not in kept])
    else:
        select = prompt_sets.load(options.select)
    if len(select) < FEW or len(harmful) < FEW:
        raise UserError(
            f"{len(harmful)} harmful prompts to measure on and {len(select)} to select by are too "
            f"few; give at least {FEW} of each, better 50."
        )
    if shared := texts(select) & texts(harmful):
        raise UserError(
            f"{len(shared)} prompts of {select.name!r} are also measured on; what decides when to "
            "stop must take no part in measuring."
        )
    _not_reported(select)
    return Parts(harmful, harmless, select)


def _not_reported(select: PromptSet) -> None:
    """Refuse selection prompts that metrics report on.

    Raises:
        UserError: there are such.
    """
    shipped = {m.prompts for m in METRICS if isinstance(m, Metric)} & {*prompt_sets.names()}
    for name in sorted(shipped):
        if shared := texts(select) & texts(prompt_sets.load(name)):
            raise UserError(
                f"{len(shared)} prompts to select by are in {name!r}, which results are reported "
                "on; select by others."
            )


def _length(host: Host) -> int:
    """Tokens of an answer, as a search has them."""
    known = yaml.safe_load((PRESETS / "search.yaml").read_text(encoding="utf-8"))["answers"]
    return known["demo" if host.spec.id == "demo" else "max_new_tokens"]
