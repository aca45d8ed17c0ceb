"""Decisions: where a model decides to refuse, each with the direction that it lies along.

The first lies at the prompt's last token. After an edit along its direction many models begin to
answer and stumble at a later token, along another direction; that is the next decision.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PROMPT, ANSWER, REFUSAL = "prompt", "answer", "refusal"


@dataclass(frozen=True, eq=False)
class Decision:
    """One direction's place.

    Attributes:
        round: in which it was found, from 1 on.
        anchor: what positions are counted from: `prompt` (its last token, the answer's position 0),
            `answer` (the same token of every answer) or `refusal` (where each answer's refusal
            begins).
        offset: tokens from there.
        position: tokens of the answer that have been read there, the median over prompts.
        layer: where harmful and reference residuals differ most, of the layers that are edited.
        contrast: what it was compared with.
        heads: tokens of each prompt with its answer up to there: what a filter has to open for.
        map: [P, L] float32, how far the two lie apart at each position of the answer and layer, as
            a share of their norm; nan where too few answers reach. Empty in the first round.
    """

    round: int
    anchor: str
    offset: int
    position: int
    layer: int
    contrast: str
    heads: tuple[tuple[int, ...], ...]
    map: Tensor = field(default_factory=lambda: torch.empty(0, 0))

    def told(self) -> dict[str, int | str]:
        """What a person or a file is told of it."""
        names = ("round", "anchor", "offset", "position", "layer", "contrast")
        return {name: getattr(self, name) for name in names} | {"prompts": len(self.heads)}


def pack(decisions: Sequence[Decision]) -> tuple[dict[str, Tensor], str]:
    """Tensors and JSON text for a file; `unpack` gives the decisions back."""
    tensors = {}
    for number, each in enumerate(decisions):
        flat = [token for head in each.heads for token in head]
        tensors[f"decisions.{number}.tokens"] = torch.tensor(flat, dtype=torch.int64)
        lengths = [len(head) for head in each.heads]
        tensors[f"decisions.{number}.lengths"] = torch.tensor(lengths, dtype=torch.int64)
        tensors[f"decisions.{number}.map"] = each.map.contiguous()
    return tensors, json.dumps([each.told() for each in decisions])


def unpack(tensors: Mapping[str, Tensor], text: str) -> tuple[Decision, ...]:
    """What `pack` packed.

    Raises:
        KeyError, ValueError, TypeError: it did not.
    """
    found = []
    for number, row in enumerate(json.loads(text)):
        row.pop("prompts")
        flat, lengths, seen = (
            tensors[f"decisions.{number}.{name}"] for name in ("tokens", "lengths", "map")
        )
        heads = tuple(tuple(part.tolist()) for part in flat.long().split(lengths.long().tolist()))
        found.append(Decision(**row, heads=heads, map=seen))
    return tuple(found)
