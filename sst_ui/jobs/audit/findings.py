"""What a comparison found of one tensor, and of everything, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sst_ui.maths.audit.kernel_fit import KernelFit
from sst_ui.model.load.settings_differences import Difference

Kind = Literal[
    "same", "retyped", "rounding", "quantised", "packed", "ablation", "low_rank", "dense",
    "ablated_bias", "vector", "broken",
]  # fmt: skip
# From what explains least to what explains most: a tensor of several experts is called by the
# first of these that occurs among them.
ORDER: tuple[Kind, ...] = (
    "broken", "dense", "vector", "packed", "low_rank", "quantised", "rounding", "ablation",
    "ablated_bias", "retyped", "same",
)  # fmt: skip
CHANGED = ("broken", "dense", "vector", "packed", "low_rank", "quantised", "rounding",
           "ablation", "ablated_bias")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Finding:
    """One stored tensor.

    Attributes:
        name, other_name: in the files.
        kind: what was done to it; `vector`: a bias or a norm that changed, `ablated_bias`: the bias
            of what writes, changed along the ablated directions only; `packed`: numbers that cannot
            be read; the others as `maths.audit.change.Change` has them.
        size: ‖change‖ / ‖base‖.
        rank: of the change; None where it is high or was not looked for.
        layer, role: of what writes to the residual stream.
        alpha: of an ablation; of a low rank, how much of W's own component goes.
        spread: between the α of several directions or experts, at most.
        misfit: what the nearest ablation leaves of it, relative.
        read: |cos| between what a low rank reads and Wᵀr̂.
        norms: largest relative deviation of a column norm.
        preserving: whether an ablation kept column norms.
        cosine: |cos| of the direction to the given one, of several to their span.
        shared: |cos| of the direction to that of the layer's other writer.
        bits: of a quantisation.
        target: where the component of the output moves to, of an affine edit.
        direction: [k, hidden] what goes, orthonormal.
    """

    name: str
    other_name: str
    kind: Kind
    types: tuple[str, str]
    shape: tuple[int, ...]
    size: float = 0.0
    rank: int | None = None
    layer: int | None = None
    role: str = ""
    alpha: float | None = None
    spread: float = 0.0
    misfit: float | None = None
    read: float | None = None
    norms: float = 0.0
    preserving: bool | None = None
    cosine: float | None = None
    shared: float | None = None
    bits: int | None = None
    target: float | None = None
    direction: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data without the direction and without what is not known or not finite."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "direction"
            and value is not None
            and not (isinstance(value, float) and not math.isfinite(value))
        }


@dataclass(frozen=True)
class Verdict:
    """What was done to the whole.

    Attributes:
        kind: `unchanged`, `retyped`, `quantised`, `rounding`, `ablation`, `filter`, `adapter`,
            `full` (a fine-tune or a merge of full models), `other` (another model) or `unclear`.
        title: in a few words.
        evidence: the numbers it rests on, in sentences.
    """

    kind: str
    title: str
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Behaviour:
    """What running both models says.

    Attributes:
        gap, other_gap: [layers] how far harmful and harmless prompts lie apart along one direction
            per layer, at the last token of the prompt, in the residual's unit.
        rate, other_rate: refusal rate on harmful prompts, 0 to 1.
        samples: prompts of each kind.
    """

    gap: tuple[float, ...]
    other_gap: tuple[float, ...]
    rate: float
    other_rate: float
    samples: int


@dataclass(frozen=True, eq=False)
class Audit:
    """A comparison of two models.

    Attributes:
        base, other: how the screen calls them.
        layers: of the base.
        findings: of every tensor that both have.
        missing, added: names of tensors that only one of them has.
        renamed: (base's name, other's).
        reshaped: (name, base's shape, other's).
        settings: differences of the small files.
        alpha: [layers, kinds] of an ablation; 0 where nothing changed, NaN where it is not known.
        kernels: which weight kernels follow it, the best first.
        exact_alpha: whether `alpha` of a filter is α, and not how much of W's own component goes.
        behaviour: what running both says, if that was asked.
        notes: what else a person should know, in sentences.
    """

    base: str
    other: str
    layers: int
    findings: tuple[Finding, ...]
    verdict: Verdict
    missing: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    settings: tuple[Difference, ...] = ()
    alpha: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    kernels: tuple[KernelFit, ...] = ()
    exact_alpha: bool = False
    behaviour: Behaviour | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "base": self.base,
            "other": self.other,
            "layers": self.layers,
            "verdict": asdict(self.verdict),
            "alpha": [[None if np.isnan(a) else float(a) for a in row] for row in self.alpha],
            "exact_alpha": self.exact_alpha or self.verdict.kind == "ablation",
            "kernels": [asdict(row) for row in self.kernels],
            "behaviour": None if self.behaviour is None else asdict(self.behaviour),
            "tensors": [f.to_json() for f in self.findings if f.kind != "same"],
            "counts": counts(self.findings),
            "missing": list(self.missing),
            "added": list(self.added),
            "renamed": [list(pair) for pair in self.renamed],
            "reshaped": [[name, list(a), list(b)] for name, a, b in self.reshaped],
            "settings": [asdict(row) for row in self.settings],
            "notes": list(self.notes),
        }


def counts(findings: tuple[Finding, ...]) -> Mapping[str, int]:
    """Kind -> how many tensors."""
    found: dict[str, int] = {}
    for finding in findings:
        found[finding.kind] = found.get(finding.kind, 0) + 1
    return found
