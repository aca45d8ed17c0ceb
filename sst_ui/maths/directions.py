"""Refusal directions: a few orthonormal vectors per decoder layer, with what was measured."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sst_ui import disk
from sst_ui.errors import UserError, shown
from sst_ui.maths.decisions import Decision, pack, unpack
from sst_ui.maths.direction_statistics import neutrality

FORMAT = "sst-studio directions 1"
AGREED, SIGNIFICANT = 0.8, 0.05  # why these: `maths/reliability.py`
STATS = ("norm", "snr", "cosine", "purity", "quality", "auroc", "cohens_d")
Doubt = Literal["", "chance", "halves"]
CURVES = ("evidence", *STATS)  # what has intervals and a reliability


@dataclass(frozen=True)
class Reliability:
    """How a curve over the layers did in the two tests of `maths/reliability.py`.

    Attributes:
        halves: 0 to 1, how far two halves of the prompts agree on it, corrected for their size.
        chance: p of its best layer against shuffled labels.
    """

    halves: float
    chance: float

    @property
    def doubt(self) -> Doubt:
        """The test that it failed, '' where it passed both."""
        if self.chance > SIGNIFICANT:
            return "chance"
        return "halves" if self.halves < AGREED else ""

    @property
    def holds(self) -> bool:
        """Whether it passed both."""
        return not self.doubt


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions of every layer of one model.

    Attributes:
        vectors: [L, k, d] float32 on the CPU, orthonormal rows in every layer. The first is the
            main direction and points from harmless to harmful prompts.
        norms: [L] float32, how far the two means lie apart along the main direction, in units of
            the layer's residual: ‖r‖ for the mean difference and for its projection.
        neutral: [L, k] float32, component of the harmless prompts' mean along every direction.
        stats: [L] float32 each, see `STATS`; NaN where nothing was measured.
        meta: where it comes from: model, estimator, prompts, settings (text to text).
        decisions: where each direction was measured, if they were found in rounds; else empty.
        intervals: [L, 2] float32 each, 95 % intervals of `CURVES`; those of the evidence are in the
            unit of `signal`. Empty for what was measured without them.
        reliability: of `CURVES`; what is missing is not known.
    """

    vectors: Tensor
    norms: Tensor
    neutral: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    decisions: tuple[Decision, ...] = ()
    intervals: Mapping[str, Tensor] = field(default_factory=dict)
    reliability: Mapping[str, Reliability] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vectors.ndim != 3:
            raise ValueError(f"vectors must be [L, k, d], not {list(self.vectors.shape)}")
        layers, k, _ = self.vectors.shape
        nothing = torch.full((layers,), float("nan"))
        stats = {name: self.stats.get(name, nothing) for name in STATS}
        shaped = {"norms": (self.norms, (layers,)), "neutral": (self.neutral, (layers, k))}
        shaped |= {name: (value, (layers,)) for name, value in stats.items()}
        shaped |= {f"interval of {n}": (value, (layers, 2)) for n, value in self.intervals.items()}
        for name, (value, shape) in shaped.items():
            if value.shape != shape:
                raise ValueError(f"{name} must be {list(shape)}, not {list(value.shape)}")
        gram = self.vectors.double() @ self.vectors.double().mT  # [L, k, k]
        if not torch.allclose(gram, torch.eye(k, dtype=gram.dtype).expand_as(gram), atol=1e-4):
            raise ValueError("the vectors of a layer must be finite and orthonormal")
        object.__setattr__(self, "stats", stats)
        object.__setattr__(self, "meta", dict(self.meta))

    @property
    def layers(self) -> int:
        return self.vectors.shape[0]

    @property
    def k(self) -> int:
        return self.vectors.shape[1]

    @property
    def hidden(self) -> int:
        return self.vectors.shape[2]

    @property
    def control(self) -> bool:
        """Whether they were drawn at random: layers then have no evidence to be compared by."""
        return self.meta.get("estimator") == "random"

    def doubt(self, name: str) -> Doubt:
        """The test that one of `CURVES` failed; '' for none, also where it was never tested."""
        found = self.reliability.get(name)
        return "" if found is None else found.doubt

    def told(self) -> dict[str, dict]:
        """Intervals and reliability as JSON takes them."""
        tested = {n: {**vars(r), "holds": r.holds} for n, r in self.reliability.items()}
        intervals = {name: value.tolist() for name, value in self.intervals.items()}
        return {"reliability": tested, "intervals": intervals}

    def digest(self) -> str:
        """Twelve hex digits over all that an edit uses: not the statistics, not the meta."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256(str(tuple(self.vectors.shape)).encode())
        for tensor in (self.vectors, self.norms, self.neutral):
            content.update(tensor.contiguous().numpy().tobytes())
        for decision in self.decisions:  # a filter is measured at them
            content.update(str(decision.heads).encode())
        return content.hexdigest()[:12]

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with metadata, whole or not at all.

        Raises:
            UserError: the system refuses it.
        """
        path = Path(path)
        with disk.written(path) as part:
            self.write(part)
        return path

    def write(self, path: Path) -> None:
        """Write the file itself."""
        tensors = {"vectors": self.vectors, "norms": self.norms, "neutral": self.neutral}
        tensors |= {f"stats.{name}": value for name, value in self.stats.items()}
        tensors |= {f"interval.{name}": value for name, value in self.intervals.items()}
        more, decisions = pack(self.decisions)
        tensors |= more
        told = {"format": FORMAT, "meta": json.dumps(dict(self.meta)), "decisions": decisions}
        told["reliability"] = json.dumps({name: vars(r) for name, r in self.reliability.items()})
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, path, told)


def load(path: str | Path) -> Directions:
    """Read what `Directions.save` wrote.

    Raises:
        UserError: no such file, not a directions file, or a damaged one.
    """
    path = Path(path)
    if not os.path.isfile(path):  # Path.is_file raises for what cannot be a path
        raise UserError(f"no directions file at {shown(str(path))}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} is not a directions file of this studio.")
        return Directions(
            tensors["vectors"].float(),
            tensors["norms"].float(),
            tensors["neutral"].float(),
            {name: tensors[f"stats.{name}"].float() for name in STATS},
            json.loads(metadata["meta"]),
            unpack(tensors, metadata.get("decisions", "[]")),
            {n: tensors[key].float() for n in CURVES if (key := f"interval.{n}") in tensors},
            _tested(metadata.get("reliability", "{}")),
        )
    except UserError:
        raise
    except (
        OSError,
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
        AttributeError,
        RuntimeError,
    ) as error:
        raise UserError(f"the directions file {path} is damaged: {error}") from error


def _tested(text: str) -> dict[str, Reliability]:
    """What a file says of reliability; nothing in files from before it was measured."""
    return {
        name: Reliability(float(found["halves"]), float(found["chance"]))
        for name, found in json.loads(text).items()
        if name in CURVES
    }


def is_directions(path: str | Path) -> bool:
    """Whether a file is one that `Directions.save` wrote, so that it may be replaced by another."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def random(
    layers: int, hidden: int, k: int = 1, seed: int = 0, norms: Tensor | None = None
) -> Directions:
    """Directions that mean nothing: the control for an edit at the same weights.

    Args:
        norms: [layers] of the measured directions, so that `add` shifts as far; ones by default.
    """
    draw = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(layers, hidden, k, generator=draw, dtype=torch.float64)
    vectors = torch.linalg.qr(gaussian).Q.mT.float().contiguous()  # [L, k, d]
    return Directions(
        vectors,
        torch.ones(layers) if norms is None else norms.clone(),
        torch.zeros(layers, k),
        meta={"estimator": "random", "seed": str(seed)},
    )


def signal(directions: Directions) -> np.ndarray:
    """How much each layer has to offer, [L] float64, 0 to 1; zeros where nothing was measured, and
    for random directions: scaled to its maximum, chance would look like evidence.

    A layer is worth ablating where the direction tells held-out prompts apart (Cohen's d; quality
    where there are none) and where zero, the point an ablation moves to, is neutral. On the axis
    with the harmless mean at 0 and the harmful one at 1, zero lies at z = -neutral / norm: at
    z <= 0 it is as harmless as can be, from z = 1/2 on it is nearer to harmful prompts, and
    ablating there makes the model refuse harmless ones. The last layers often separate best and
    are of no use for that reason (an affine target is the way to use them).
    """
    if directions.control:
        return np.zeros(directions.layers)
    found = _scaled(directions.stats.get("cohens_d", torch.zeros(directions.layers)))
    if not found.any():
        found = _scaled(directions.stats.get("quality", torch.zeros(directions.layers)))
    weight = neutrality(directions.neutral[:, 0], directions.norms).numpy()
    return _scaled(torch.from_numpy(found * weight))


def _scaled(values: Tensor) -> np.ndarray:
    """Negative values and NaN to 0, maximum to 1; infinite counts as the largest finite value."""
    array = values.double().numpy()
    largest = max(array[np.isfinite(array)], default=0.0)
    array = np.nan_to_num(array, nan=0.0, posinf=max(largest, 1.0), neginf=0.0).clip(min=0.0)
    return array / array.max() if array.any() else array
