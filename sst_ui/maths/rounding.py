"""From float32 to the type that is stored: to the nearest number, or up and down by chance.

Stochastic rounding goes up with the probability that makes the expectation exact, so that small
changes survive on average (Gupta et al. 2015, arXiv 1502.02551). The price is noise of up to a
whole step.
"""

import torch
from torch import Tensor

SHORT = {torch.bfloat16: (7, -126), torch.float16: (10, -14)}  # bits of fraction, least exponent


def to_dtype(values: Tensor, dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """Round to a stored type.

    Args:
        values: float32 or float64, any shape.
        dtype: where it goes; to a type that is no shorter nothing needs rounding.
        generator: of the chances, or None for the nearest number (ties to even).

    Returns:
        The same shape, in `dtype`. What is beyond its range becomes infinite.
    """
    if generator is None or dtype not in SHORT:
        return values.to(dtype)
    if dtype == torch.bfloat16 and values.dtype == torch.float32:
        # bfloat16 is the upper half of float32: a random lower half carries over by itself
        noise = torch.empty(values.shape, dtype=torch.int32, device=values.device)
        noise.random_(0, 1 << 16, generator=generator)
        carried = (values.contiguous().view(torch.int32) + noise) & -65536
        return torch.where(values.isfinite(), carried.view(torch.float32), values).to(dtype)
    bits, least = SHORT[dtype]
    exponent = torch.frexp(values).exponent.sub_(1).clamp_min(least)
    step = torch.ldexp(torch.ones_like(values), exponent - bits)
    chance = torch.rand(values.shape, generator=generator, dtype=values.dtype, device=values.device)
    rounded = torch.floor(values / step + chance) * step
    return torch.where(values.isfinite(), rounded, values).to(dtype)
