"""Three ways to measure a grid of kernels on a few prompts, and what each of them finds.

All read the same tokens, and all find the same: an answer to every harmful prompt, and on every
harmless one the divergence KL(base ‖ edited) along the base's own first tokens, for every kernel.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.methods import Rewrite
from sst_ui.jobs.evaluate import observations
from sst_ui.jobs.evaluate.evaluate import MetricResult, evaluate, evaluate_rows
from sst_ui.maths import directions as direction_files
from sst_ui.maths import kernel
from sst_ui.metrics.families.divergence import TOKENS, kl_by_token
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.inference.batch import left_padded
from sst_ui.model.runtime.host import Host, load
from sst_ui.progress import finish
from sst_ui.recipe import Evaluation, ModelSpec, WeightTable

GRID = tuple(
    WeightTable(profile="custom", strength=1.0, peak=peak, width=width)
    for peak in (0.4, 0.5, 0.6, 0.7, 0.8)
    for width in (0.08, 0.12, 0.15, 0.2, 0.25)
)
HARMFUL, HARMLESS = "demo/harmful", "demo/harmless"


@dataclass(frozen=True)
class Job:
    """What every way is asked to do.

    Attributes:
        folder, device, dtype: of the model.
        directions: their file.
        untrained: the weights are random; then answers are written as token numbers.
        prompts, tokens: of each set, and of an answer at most.
        together: kernels in a batch.
        harmful, harmless: the encoded prompts.
        stop, pad: ids that end an answer, and that fill short rows.
    """

    folder: str
    device: str
    dtype: str
    directions: str
    untrained: bool
    prompts: int
    tokens: int
    together: int
    harmful: list[list[int]]
    harmless: list[list[int]]
    stop: list[int]
    pad: int

    def write(self, path: Path) -> None:
        """To a file that another process reads."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """What `write` wrote."""
        return cls(**json.loads(path.read_text()))


@dataclass(frozen=True)
class Found:
    """Of every kernel: an answer a harmful prompt, nats a harmless one.

    Attributes:
        answers: as text, or as tokens where the way has no text.
    """

    answers: list[list]
    nats: list[list[float]]


def host_of(job: Job) -> Host:
    """The studio's model; half of a random one's vocabulary has no text, so numbers stand in."""
    host = finish(load(ModelSpec(id=job.folder, device=job.device, dtype=job.dtype)))
    if job.untrained:
        host.decode = lambda ids: " ".join(map(str, ids))
    return host


class Studio:
    """Rows of one resident model: all kernels of a batch, or one kernel after the other."""

    def __init__(self, job: Job, together: int) -> None:
        self.job, self.together = job, together
        self.host = host_of(job)
        self.device = self.host.device
        directions = direction_files.load(job.directions)
        self.rows = [
            (RowEdit(directions, kernel.table(weights, self.host.layers)),) for weights in GRID
        ]

    def warm(self) -> None:
        """A little of what follows, with nothing in it that `search` could remember."""
        finish(evaluate(self.host, (), self._evaluation(1, 2)))
        observations.forget()

    def search(self) -> Found:
        found = list(self._batched() if self.together > 1 else self._in_turn())
        return Found(
            [[item.edited for item in refusals.items] for refusals, _ in found],
            [[item.edited_score for item in divergence.items] for _, divergence in found],
        )

    def _batched(self) -> Iterator[list[MetricResult]]:
        evaluation = self._evaluation(self.job.prompts, self.job.tokens)
        for start in range(0, len(self.rows), self.together):
            rows = self.rows[start : start + self.together]
            yield from finish(evaluate_rows(self.host, rows, evaluation))

    def _in_turn(self) -> Iterator[list[MetricResult]]:
        evaluation = self._evaluation(self.job.prompts, self.job.tokens)
        for row in self.rows:
            yield finish(evaluate(self.host, row, evaluation))

    def _evaluation(self, prompts: int, tokens: int) -> Evaluation:
        names = (f"refusal_rate@{HARMFUL}", f"kl_16@{HARMLESS}")
        return Evaluation(names, samples=prompts, max_new_tokens=tokens)


class Rewritten:
    """What one would write without the studio: weights edited in place from copies of the
    originals, then one batched `generate` and one forward pass; the base's part is kept."""

    def __init__(self, job: Job) -> None:
        self.job = job
        dtype = getattr(torch, job.dtype)
        self.device = torch.device(job.device)
        model = AutoModelForCausalLM.from_pretrained(job.folder, dtype=dtype, local_files_only=True)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.weights = Rewrite(self.model, direction_files.load(job.directions))

    def warm(self) -> None:
        """A little of what follows."""
        self._generated(self.job.harmful[:1], 2)

    def search(self) -> Found:
        job = self.job
        said = self._generated(job.harmless, TOKENS)
        end = min(job.stop, default=job.pad)  # predicted, never read
        said = [ids if len(ids) == TOKENS else [*ids, end] for ids in said]
        before = self._along(said)
        answers, nats = [], []
        for weights in GRID:
            self.weights.write(weights)
            answers.append(self._generated(job.harmful, job.tokens))
            pairs = zip(before, self._along(said), strict=True)
            nats.append([float(kl_by_token(*pair).mean()) for pair in pairs])
        return Found(answers, nats)

    def _generated(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        batch = left_padded(prompts, self.job.pad, self.device)
        whole = self.model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=self.job.stop or None,
            pad_token_id=self.job.pad,
        )
        rows = whole[:, batch.ids.shape[1] :].tolist()
        ends = [
            next((i for i, token in enumerate(row) if token in self.job.stop), len(row))
            for row in rows
        ]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]

    def _along(self, said: Sequence[Sequence[int]]) -> list[Tensor]:
        """Of each harmless prompt [tokens of the base's answer, vocabulary] log-probabilities."""
        texts = [[*p, *c][:-1] for p, c in zip(self.job.harmless, said, strict=True)]
        batch = left_padded(texts, self.job.pad, self.device)
        longest = max(len(tokens) for tokens in said)
        with torch.inference_mode():
            logits = self.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                logits_to_keep=longest,
            ).logits
        lines = zip(logits, said, strict=True)
        return [line[longest - len(ids) :].float().log_softmax(-1).cpu() for line, ids in lines]


WAYS = {
    "together": lambda job: Studio(job, job.together),
    "in_turn": lambda job: Studio(job, 1),
    "rewrite": Rewritten,
}
