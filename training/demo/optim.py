"""The optimiser: Muon for the stacked matrices, Adam for the embedding and the norms.

Muon (Jordan 2024) replaces a matrix's momentum by the nearest orthogonal one; it needs about half
the tokens Adam does here. Works on stacks [layers, out, in], all layers in one batched product.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards U Vᵀ of every matrix in a stack [n, out, in]."""
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan's quintic coefficients
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        y = x @ x.mT
        x = a * x + (b * y + c * (y @ y)) @ x
    return (x.mT if tall else x).float()


PARTS = {"qkv": 3, "o": 1, "gate_up": 2, "down": 1}  # matrices fused in each stack


class Muon:
    """Both optimisers behind one `step(lr)`; `lr` is Muon's, Adam's follows in proportion.

    Args:
        net: its stacks get Muon, its embedding and norms Adam.
        adam_ratio: Adam's learning rate over Muon's.
    """

    def __init__(
        self,
        net: nn.Module,
        adam_ratio: float = 0.15,
        momentum: float = 0.95,
        decay: float = 0.05,
    ) -> None:
        self.stacks = [(p, PARTS[name]) for name, p in net.named_parameters() if name in PARTS]
        others = [p for name, p in net.named_parameters() if name not in PARTS]
        self.adam = torch.optim.Adam(others, lr=0.0, betas=(0.9, 0.98))
        self.momentum, self.decay, self.adam_ratio = momentum, decay, adam_ratio
        self.buffers = [torch.zeros_like(p) for p, _ in self.stacks]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for (p, parts), m in zip(self.stacks, self.buffers, strict=True):
            m.lerp_(p.grad, 1 - self.momentum)
            g = p.grad.lerp(m, self.momentum)  # Nesterov
            n, out, inner = g.shape
            update = orthogonalise(g.reshape(n * parts, out // parts, inner)).view(n, out, inner)
            scale = max(1.0, out / parts / inner) ** 0.5
            p.sub_(lr * (self.decay * p + scale * update))
            p.grad = None
        for group in self.adam.param_groups:
            group["lr"] = lr * self.adam_ratio
        self.adam.step()
        self.adam.zero_grad()
