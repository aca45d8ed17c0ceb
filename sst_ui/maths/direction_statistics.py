"""What is measured of one layer's means and of a direction's projections."""

import torch
from torch import Tensor

from sst_ui.maths import statistics


def described(mu_harmful: Tensor, mu_harmless: Tensor) -> dict[str, Tensor]:
    """Per-layer statistics of two means [..., d], each [...].

    norm ‖r‖; SNR ‖r‖ / max(‖μ_h‖, ‖μ_s‖); cosine of the means; purity ‖r⊥‖ / ‖r‖, the share of r
    that is not along the harmless mean; quality SNR (1 − cosine) purity.
    """
    difference = mu_harmful - mu_harmless
    norm, size_h, size_s = (v.norm(dim=-1) for v in (difference, mu_harmful, mu_harmless))
    snr = norm / torch.maximum(size_h, size_s)
    cosine = torch.cosine_similarity(mu_harmful, mu_harmless, dim=-1)
    purity = without(difference, unit(mu_harmless)).norm(dim=-1) / norm
    quality = snr * (1 - cosine) * purity
    return {"norm": norm, "snr": snr, "cosine": cosine, "purity": purity, "quality": quality}


def separation(harmful: Tensor, harmless: Tensor, vectors: Tensor) -> dict[str, Tensor]:
    """How well [L, d] directions tell prompts [n, L, d] apart: AUROC and Cohen's d, each [L]."""
    high, low = (
        torch.einsum("nld,ld->ln", x.double(), vectors.double()).numpy()
        for x in (harmful, harmless)
    )
    pairs = list(zip(high, low, strict=True))
    return {
        "auroc": torch.tensor([statistics.auroc(h, s) for h, s in pairs], dtype=torch.float64),
        "cohens_d": torch.tensor([statistics.cohens_d(h, s) for h, s in pairs]).double(),
    }


def neutrality(neutral: Tensor, norms: Tensor) -> Tensor:
    """How neutral zero is, 1 to 0, where the harmless mean lies at `neutral` along a direction and
    the harmful one `norms` further (see `directions.signal`); any shapes that fit."""
    zero = -neutral.double() / norms.double().clamp_min(1e-12)  # z
    return (1 - 2 * zero.clamp_min(0.0)).clamp(0.0, 1.0)


def unit(x: Tensor) -> Tensor:
    """x / ‖x‖ along the last dimension; zero stays zero."""
    return torch.nn.functional.normalize(x, dim=-1, eps=1e-30)


def without(x: Tensor, direction: Tensor) -> Tensor:
    """x without its component along a unit vector (or x itself for the zero vector)."""
    return x - (x * direction).sum(-1, keepdim=True) * direction
