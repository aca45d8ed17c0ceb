"""What the model does with a prompt set, base and edited in the same batches.

Observations of the base do not depend on the edit, so they are kept in memory. How each kind is
made is in `observers`.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

from sst_ui.data.prompt_sets import PromptSet
from sst_ui.errors import UserError
from sst_ui.jobs.evaluate import observers
from sst_ui.jobs.evaluate.observers import Row, Seen, Task
from sst_ui.lru import Memory
from sst_ui.metrics.registry import Reads
from sst_ui.model.runtime.host import Host
from sst_ui.progress import Progress

KEPT = 64  # prompt sets of which the base's observations are remembered


def prepare(host: Host, reads: Reads, prompts: PromptSet, max_new_tokens: int, title: str) -> Task:
    """Encode the prompts, so that bad ones are found before anything is computed.

    Raises:
        UserError: a prompt that does not fit the context, or lacks what the observation needs.
    """
    tokens = []
    for number, prompt in enumerate(prompts.prompts, start=1):
        where = f"{prompts.name}, prompt {number}"
        if reads == "text" and not prompt.text:
            raise UserError(f"{where} has no 'text'; {title} needs plain texts.")
        if reads != "text" and not prompt.prompt:
            raise UserError(f"{where} is plain text; {title} needs prompts.")
        if reads == "choice" and not prompt.choices:
            raise UserError(f"{where} has no 'choices'; {title} needs multiple choice questions.")
        try:
            ids = (
                _plain(host, prompt.text)
                if reads == "text"
                else host.encode(prompts.messages(prompt))
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        tokens.append(tuple(ids))
    return Task(reads, prompts, tuple(tokens), max_new_tokens, title)


def observe(
    host: Host, task: Task, rows: Sequence[Row]
) -> Generator[Progress, None, tuple[Seen, list[Seen]]]:
    """Observe the base and every edited row, side by side in the same batches.

    If the base is known already, only the edited rows run.

    Returns:
        observations of the base, and those of each row, one per prompt.
    """
    if task.reads == "divergence":
        written = yield from _written(host, task)
        return (yield from observers.divergence(host, task, rows, written))
    key = (host.digest, task.prompts.digest, task.reads, task.max_new_tokens)
    base = _memory.get(key) if host.digest else None
    asked: list[Row] = ([()] if base is None else []) + list(rows)
    if not asked:
        seen = []
    elif task.reads == "refusals":
        answers, _ = yield from observe(host, replace(task, reads="answer"), [])
        said = [shown.tokens for shown in answers]
        seen = yield from observers.refusals(host, task, asked, said)
    else:
        seen = yield from observers.READERS[task.reads](host, task, asked)
    if base is None:
        base, *seen = seen
        if host.digest:
            _memory.put(key, base)
        if host.digest and task.reads == "answer" and task.max_new_tokens >= observers.TOKENS:
            _memory.put(_opening(host, task), [shown.tokens for shown in base])
    return base, seen


def forget() -> None:
    """Drop everything remembered of base models."""
    _memory.clear()


_memory: Memory[list] = Memory(KEPT)


def _written(host: Host, task: Task) -> Generator[Progress, None, list[list[int]]]:
    """The first tokens of the base's own greedy answers, with an end token where one ended.

    Another metric may have asked for these answers before: then nothing is generated.
    """
    written = _memory.get(_opening(host, task)) if host.digest else None
    if written is None:
        written = yield from observers.openings(host, task)
        if host.digest:
            _memory.put(_opening(host, task), written)
    end = min(host.stop, default=host.pad)  # predicted, never read: any end token will do
    short = [list(tokens[: observers.TOKENS]) for tokens in written]
    return [ids if len(ids) == observers.TOKENS else [*ids, end] for ids in short]


def _opening(host: Host, task: Task) -> tuple:
    return (host.digest, task.prompts.digest, "opening tokens")


def _plain(host: Host, text: str) -> list[int]:
    """A plain text as tokens, BOS first where the tokenizer wants one."""
    bos = [host.tokenizer.bos_token_id] if host.template.adds_bos else []
    ids = bos + host.tokens(text)
    if not 2 <= len(ids) <= host.context:
        raise UserError(
            f"the text has {len(ids)} tokens; {host.name} reads 2 to {host.context} of a text."
        )
    return ids
