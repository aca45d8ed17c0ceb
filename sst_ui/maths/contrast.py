"""One more direction: a difference of residuals, made orthogonal to the directions known so far."""

from dataclasses import replace

import torch
from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.maths.decisions import Decision
from sst_ui.maths.directions import Directions

NEGLIGIBLE = 1e-6  # a difference that the known directions explain but for this share is rounding


def remaining(difference: Tensor, vectors: Tensor) -> Tensor:
    """What of differences [..., L, d] lies along none of the vectors [L, k, d]; float64."""
    rows = vectors.double()
    along = torch.einsum("...ld,lkd->...lk", difference.double(), rows)
    return difference.double() - torch.einsum("...lk,lkd->...ld", along, rows)


def apart(difference: Tensor, one: Tensor, other: Tensor, vectors: Tensor) -> Tensor:
    """How far two means [..., L, d] lie apart beside the known directions, as a share of the larger
    norm; [..., L]."""
    size = torch.maximum(one.norm(dim=-1), other.norm(dim=-1)).clamp(min=1e-30)
    return remaining(difference, vectors).norm(dim=-1) / size


def extended(
    directions: Directions, difference: Tensor, reference: Tensor, decision: Decision
) -> Directions:
    """The directions with one more in every layer, the last of its rows.

    Args:
        difference: [L, d] harmful minus reference mean.
        reference: [L, d] that mean; what `neutral` is along the new direction.

    Raises:
        UserError: a layer in which the known directions explain all of the difference.
    """
    rest = remaining(difference, directions.vectors)
    size = rest.norm(dim=-1, keepdim=True)
    if bool((size <= NEGLIGIBLE * difference.double().norm(dim=-1, keepdim=True)).any()):
        raise UserError("there is no further direction in which these answers differ.")
    new = remaining(rest / size, directions.vectors)  # once more, against rounding
    new = new / new.norm(dim=-1, keepdim=True)
    neutral = (new * reference.double()).sum(-1, keepdim=True)
    return replace(
        directions,
        vectors=torch.cat([directions.vectors, new[:, None].float()], dim=1),
        neutral=torch.cat([directions.neutral, neutral.float()], dim=1),
        decisions=(*directions.decisions, decision),
    )
