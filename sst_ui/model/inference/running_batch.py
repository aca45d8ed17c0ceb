"""One running batch for all: answers join at its next step and leave when they end.

There is no thread behind it. Whoever wants a token and finds none computes one pass for everybody
and leaves the others' tokens in their queues; so nobody needs the others to go on, and one who is
slow to read holds up nobody. A pass either begins answers (their prompts are read together) or
gives one token to every row. Rows differ in their edits, sampling and limits, as they do in
`generate`, which answers alone: where a model's cache does not let rows join, and for callers with
more rows than the batch takes.

Beside the host this is what changes while the program runs: only the one who leads a pass touches
the rows; the marks and queues that others touch are single operations, which Python does whole. A
lock would not do there, since a generator may be closed by the garbage collector, at any moment.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sst_ui.model.hooks.plan_joining import joined
from sst_ui.model.hooks.row_plan import Plan
from sst_ui.model.inference.batch import (
    Row,
    forward,
    out_of_memory,
    rows_for,
    smaller,
    tokens_a_step,
    too_little_memory,
)
from sst_ui.model.inference.generate import check_lengths, generate, no_numbers, pick
from sst_ui.model.inference.joining import Block, able
from sst_ui.model.inference.kv_cache import fresh_cache
from sst_ui.model.inference.prefill import arranged, fitting, start
from sst_ui.model.runtime.host import Host

log = logging.getLogger(__name__)
ROWS = 32  # of chats at a time; those of further callers wait in order
JOBS = 96  # of jobs, beside them: a metric's 64, and others while its last answers come


def together(
    host: Host,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Row] | None,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | Sequence[int] = 0,
    top_p: float = 1.0,
    job: bool = False,
) -> Generator[dict[int, int]]:
    """Like `generate`, in one batch with everybody else who calls this with the same host.

    Args:
        job: nobody reads these answers as they come: chats begin first, and an error for want of
            memory is passed on as it is, for a job that has more rows tries fewer.

    The tokens are the same, but for roundings: in half precision the last bits of a row may depend
    on how many others there are, and where two tokens are nearly equally likely, so may the answer.

    Raises:
        UserError: as `generate`; or not even these prompts fit the memory.
    """
    rows = rows_for(prompts, rows)
    if not prompts or max_new_tokens < 1:
        return
    if len(prompts) > (JOBS if job else ROWS) or not able(host):
        yield from generate(host, prompts, rows, max_new_tokens, temperature, seed, top_p)
        return
    check_lengths(host, prompts)
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    dice = [torch.Generator().manual_seed(one) for one in seeds]
    guest = _Guest(
        # compiled by each caller in a thread of its own: a refusal is the caller's alone
        plan=host.live.compile(rows).ending([0] * len(rows)),
        limit=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        job=job,
    )
    guest.rows = [
        _Answer(guest, number, [*prompt], edits, die)
        for number, (prompt, edits, die) in enumerate(zip(prompts, rows, dice, strict=True))
    ]
    batch = running(host)
    batch.enter(guest)
    try:
        while (column := batch.next(host, guest)) is not None:
            yield column
    finally:
        batch.leave(guest)


@dataclass(eq=False, repr=False)
class _Guest:
    """One caller.

    Attributes:
        plan: of the rows that have not ended.
        limit: longest answer in tokens.
        job: see `together`.
        rows: those that have not ended.
        columns: what the caller has not fetched yet.
        awake: set behind every pass.
        over: nothing more will come, but for `error`. Set last.
        left: the caller wants no more.
    """

    plan: Plan
    limit: int
    temperature: float
    top_p: float
    job: bool = False
    rows: "list[_Answer]" = field(default_factory=list)
    columns: deque[dict[int, int]] = field(default_factory=deque)
    awake: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    over: bool = False
    left: bool = False

    def keep(self, stay: "Sequence[_Answer]") -> None:
        """Drop the other rows."""
        if len(stay) < len(self.rows):
            self.plan = self.plan.select([self.rows.index(row) for row in stay])
            self.rows = [*stay]

    @property
    def divides(self) -> bool:
        """Whether the caller, told that memory is short, tries fewer rows."""
        return self.job and len(self.rows) > 1

    def end(self, error: BaseException | None = None) -> None:
        """All is said."""
        self.rows, self.error = [], error
        self.over = True


@dataclass(eq=False, repr=False)
class _Answer:
    """One row.

    Attributes:
        number: among its caller's prompts.
        tokens: the prompt, and what was said.
        die: what it draws with.
        said: tokens of the answer.
    """

    guest: _Guest
    number: int
    tokens: list[int]
    edits: Row
    die: torch.Generator
    said: int = 0


class RunningBatch:
    """The rows of all callers of one model. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lead = threading.Lock()  # held for one pass
        self._guests: set[_Guest] = set()
        self._waiting: deque[_Guest] = deque()  # not begun, in the order they came
        self._leaving: deque[_Guest] = deque()  # to be taken out
        self._seated: list[_Guest] = []  # whose rows are in the block, in its order
        self._rows: list[_Answer] = []  # those of the block
        self._block: Block | None = None
        self._plan: Plan | None = None
        self._most = ROWS + JOBS  # rows that fit the memory
        self._few = ROWS  # callers to begin with in one pass
        self._full = False  # nobody else fits until someone leaves
        self._began = False  # the last pass read prompts: now it is the others' turn
        self.short = 0  # how often memory was too short for all who were there or came

    @property
    def size(self) -> int:
        """Rows that are being answered."""
        return len(self._rows)

    def enter(self, guest: _Guest) -> None:
        """Begin at the next pass that has room."""
        self._guests.add(guest)
        self._waiting.append(guest)

    def leave(self, guest: _Guest) -> None:
        """Never mind the rest; the rows go at once, or behind the pass that is being computed."""
        guest.left = True
        self._guests.discard(guest)
        self._leaving.append(guest)
        self._tidy()

    def next(self, host: Host, guest: _Guest) -> dict[int, int] | None:
        """The caller's next column; None behind the last one.

        Raises:
            UserError: the caller's edits compute no numbers, or its prompts do not fit the memory.
            Exception: what a pass with its rows raised.
        """
        while True:
            over = guest.over  # asked first: what came before that is in the queue
            if guest.columns:
                return guest.columns.popleft()
            if over:
                if guest.error is not None:
                    raise guest.error
                return None
            if not self._lead.acquire(blocking=False):
                guest.awake.wait()
                guest.awake.clear()
                continue
            try:
                if not guest.columns and not guest.over:
                    self._pass(host)
            finally:
                self._lead.release()
                self._wake()
                self._tidy()

    def _wake(self) -> None:
        """All look for what they wait for, or lead."""
        for guest in tuple(self._guests):
            guest.awake.set()

    def _tidy(self) -> None:
        """Take out who left. If another leads, that one does it behind the pass."""
        while self._leaving and self._lead.acquire(blocking=False):
            try:
                self._sweep()
            except Exception as error:
                self._recover(error)
            finally:
                self._lead.release()
                self._wake()

    # --- by the one who leads ----------------------------------------------------------------

    def _pass(self, host: Host) -> None:
        """One forward pass: the prompts of some, or a token for every row."""
        try:
            self._sweep()
            begin = [] if self._began and self._block else self._admitted(host)
            self._began = bool(begin)
            if begin:
                self._begin(host, begin)
            elif self._block is not None:
                self._say(host, self._rows, self._block.logits(host, self._plan))
                self._block.append([row.tokens[-1] for row in self._rows])
                self._shrink()
        except BaseException as error:
            self._recover(error)
            if not isinstance(error, Exception):
                raise

    def _sweep(self) -> None:
        """Those who left leave the block, with their part of the cache and of the plan."""
        while self._leaving:
            guest = self._leaving.popleft()
            guest.end()
            if guest in self._waiting:
                self._waiting.remove(guest)
        self._shrink()

    def _shrink(self) -> None:
        """Rows that ended leave the block."""
        stay = [i for i, row in enumerate(self._rows) if row in row.guest.rows]
        if self._block is None or len(stay) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in stay]
        self._seated = [guest for guest in self._seated if guest.rows]
        self._full = False
        if stay:
            self._block.keep(stay)
            self._plan = joined([guest.plan for guest in self._seated])
        else:
            self._block, self._plan, self._most = None, None, ROWS + JOBS

    def _admitted(self, host: Host) -> list[_Guest]:
        """Who begins now: the first of those who wait, as far as there is room, and no more than
        the others gladly wait for. Chats first, and not in a pass with the long prompts of jobs."""
        if self._full and self._block is not None:
            return []
        found: list[_Guest] = []
        for job, most in ((False, ROWS), (True, JOBS)):
            kind = sum(row.guest.job is job for row in self._rows)
            free = min(most - kind, self._most - self.size)
            for guest in [each for each in self._waiting if each.job is job][: self._few]:
                free -= len(guest.rows)
                if free < 0 and (found or self._block is not None):
                    break
                found.append(guest)
            if found:
                break
        while len(found) > 1:
            rows = [row for guest in found for row in guest.rows]
            texts, edits = [row.tokens for row in rows], [row.edits for row in rows]
            order = arranged(host, texts, edits)
            texts, edits = [texts[i] for i in order], [edits[i] for i in order]
            if fitting(host, texts, edits, [1] * len(rows), tokens_a_step(host)) >= len(rows):
                break
            found.pop()
        return found

    def _begin(self, host: Host, guests: list[_Guest]) -> None:
        """Read the prompts of the first who wait, and take them in.

        What fails concerns them alone: they are tried again in smaller groups, and one who fails
        alone waits for memory, if others take up some, or is told.
        """
        rows = [row for guest in guests for row in guest.rows]
        try:
            block, logits = _read(host, guests, rows)
        except Exception as error:
            tight = out_of_memory(error)
            if len(guests) > 1:
                self._few = (len(guests) + 1) // 2
                self._tell(tight, len(rows), self._few)
            elif tight and self._block is not None and not guests[0].divides:
                self._full = True
                self._tell(tight, self.size + len(rows), self.size)
            else:
                self._waiting.remove(guests[0])
                guests[0].end(_told(guests[0], error))
            if tight and torch.cuda.is_available():
                torch.cuda.empty_cache()
            return
        self._few = ROWS
        for guest in guests:
            self._waiting.remove(guest)
        self._seated += guests
        self._say(host, rows, logits)
        block.append([row.tokens[-1] for row in rows])
        self._take_in(host, block, rows)

    def _take_in(self, host: Host, block: Block, rows: Sequence[_Answer]) -> None:
        """Rows that have just begun join the others, but for those that have ended already."""
        self._seated = [guest for guest in self._seated if guest.rows]
        stay = [i for i, row in enumerate(rows) if row in row.guest.rows]
        if not stay:
            return
        block.keep(stay)
        if self._block is None:
            self._block = block
        else:
            self._block.join(block, host.pad)
        self._rows += [rows[i] for i in stay]
        self._plan = joined([guest.plan for guest in self._seated])

    def _say(self, host: Host, rows: Sequence[_Answer], logits: Tensor) -> None:
        """Draw the rows' next tokens, put them into the callers' queues, and drop who has ended."""
        chosen = _picked(rows, logits)
        broken = logits.amax(-1).isnan().tolist()
        columns: dict[_Guest, dict[int, int]] = {row.guest: {} for row in rows}
        stay: dict[_Guest, list[_Answer]] = {guest: [] for guest in columns}
        for row, token in zip(rows, chosen, strict=True):
            if token in host.stop:
                continue
            columns[row.guest][row.number] = token
            row.tokens.append(token)
            row.said += 1
            if row.said < row.guest.limit and len(row.tokens) < host.context:
                stay[row.guest].append(row)
        for guest in {row.guest for row, bad in zip(rows, broken, strict=True) if bad}:
            del columns[guest]
            guest.end(no_numbers())
        for guest, column in columns.items():
            if column:
                guest.columns.append(column)
            if stay[guest]:
                guest.keep(stay[guest])
            else:
                guest.end()

    def _recover(self, error: BaseException) -> None:
        """A pass failed in the middle: what is in the block cannot be used any more.

        Where memory was short, or only the leader was interrupted, the rows begin again from their
        tokens, with fewer at a time; else everybody is told what happened.
        """
        guests = [guest for guest in self._seated if guest.rows]
        rows = sum(len(guest.rows) for guest in guests)
        self._seated, self._rows, self._block, self._plan = [], [], None, None
        self._full = False
        tight = isinstance(error, Exception) and out_of_memory(error)
        if tight and len(guests) == 1:
            guests[0].end(_told(guests[0], error))
        elif tight or not isinstance(error, Exception):
            self._waiting.extendleft(reversed(guests))
            self._most = max(1, rows // 2) if tight else self._most
            self._tell(tight, rows, self._most)
        else:
            for guest in guests:
                guest.end(error)

    def _tell(self, tight: bool, rows: int, now: int) -> None:
        """Note that memory was short, for the log and for those who ask."""
        if tight:
            self.short += 1
            log.info("%s", smaller(rows, now))


def _told(guest: _Guest, error: BaseException) -> BaseException:
    """What a caller hears of an error that concerns its rows."""
    if guest.divides or not isinstance(error, Exception) or not out_of_memory(error):
        return error
    return too_little_memory(max(len(row.tokens) for row in guest.rows))


def _read(host: Host, guests: Sequence[_Guest], rows: Sequence[_Answer]) -> tuple[Block, Tensor]:
    """The block of these callers' rows, and its [rows, vocabulary] float32 logits."""
    cache = fresh_cache(host)
    assert cache is not None  # or it would not be `able`
    begun = start(
        host,
        [row.tokens for row in rows],
        [row.edits for row in rows],
        [row.said + 1 for row in rows],  # those that begin again have an answer behind the prompt
        cache,
        plan=joined([guest.plan for guest in guests]),
    )
    logits = forward(host, begun.batch, begun.plan, 1, cache, begun.new)
    block = Block(begun.whole, cache, [len(row.tokens) for row in rows])
    return block, begun.finish(logits[:, -1].float())


def _picked(rows: Sequence[_Answer], logits: Tensor) -> list[int]:
    """One token for each row, drawn as its caller wants it."""
    ways: dict[tuple[float, float], list[int]] = {}
    for place, row in enumerate(rows):
        ways.setdefault((row.guest.temperature, row.guest.top_p), []).append(place)
    chosen = [0] * len(rows)
    for (temperature, top_p), places in ways.items():
        some = logits if len(places) == len(rows) else logits[places]
        tokens = pick(some, temperature, top_p, [rows[place].die for place in places])
        for place, token in zip(places, tokens, strict=True):
            chosen[place] = token
    return chosen


_running: WeakKeyDictionary[Host, RunningBatch] = WeakKeyDictionary()  # goes with its model
if hasattr(os, "register_at_fork"):  # a child has none of the threads that may be leading
    os.register_at_fork(after_in_child=_running.clear)


def running(host: Host) -> RunningBatch:
    """The batch of this model."""
    return _running.setdefault(host, RunningBatch())
