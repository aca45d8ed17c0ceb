"""The vocabulary: what an edit *is*, as small frozen data. YAML in and out, checked, with a digest.

Knows names, ranges and defaults. Does not know tensors, models or screens: everything that computes
takes a `Recipe` (or a part of one) and answers the same for the same recipe.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from sst_ui.checked import build
from sst_ui.errors import UserError, unknown

VERSION = 1
KINDS = ("attention", "mlp")  # the two roles that write to the residual stream
GROUPS = {  # kind of linear module -> the role it belongs to; the head belongs to none
    **dict.fromkeys(("q", "k", "v", "qkv", "o"), "attention"),
    **dict.fromkeys(("gate", "up", "gate_up", "down"), "mlp"),
}
MODULES = (*GROUPS, "lm_head")  # what an adapter may change
STRENGTH = (-2.0, 2.0)  # the studio's slider shows -1..2; files may go to -2
FACTOR = (-32.0, 32.0)  # of a module kind; merges have been tried with an lm_head of 20
ALPHA = (-4.0, 4.0)  # a single cell of the table, after strength

Estimator = Literal["mean_difference", "projected", "whitened", "random"]
Scope = Literal["per_layer", "single"]
Position = Literal["template", "instruction"]
Operation = Literal["ablate", "add"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "8bit", "4bit"]
Size = Literal["quick", "standard", "full"]
Target = Literal["additive", "interpolating"]
Fisher = Literal["kfac", "nearest", "input", "block"]


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and how to load it.

    Attributes:
        id: `demo`, a folder on this machine, or a Hugging Face Hub id.
        revision: branch, tag or commit on the Hub.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`, or a device map such as `balanced`.
        chat_template: path of a Jinja file, for a tokenizer that has no template of its own.
        enable_thinking: one setting for measuring, chat and metrics alike.
    """

    id: str = "demo"
    revision: str | None = None
    dtype: Dtype = "auto"
    device: str = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    enable_thinking: bool = False
    chat_template: str | None = None


@dataclass(frozen=True)
class WeightTable:
    """How strongly each (layer, module kind) cell is edited: a kernel, then exceptions.

    Attributes:
        profile: the name it came from; `custom` once a number was changed by hand.
        peak: position of the maximum, 0 (first layer) to 1 (last).
        width: standard deviation in the same unit, > 0.
        threshold: kernel values below it become 0.
        strength: 1 removes the direction, 2 reflects it, negative values reinforce it.
        modules: factor per module kind.
        curve: one kernel value a layer, in place of the Gaussian.
        overrides: kind -> layer -> alpha, final values that no other setting scales.
    """

    profile: str = "default"
    peak: float = 0.60
    width: float = 0.15
    threshold: float = 0.1
    strength: float = 1.0
    modules: Mapping[str, float] = field(default_factory=lambda: {"attention": 1.0, "mlp": 1.0})
    curve: tuple[float, ...] | None = None
    overrides: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _within("weights.peak", self.peak, 0.0, 1.0)
        if not (math.isfinite(self.width) and self.width > 0):
            raise UserError(f"weights.width is {self.width}; it must be above 0, for example 0.15.")
        _within("weights.threshold", self.threshold, 0.0, 1.0)
        _within("weights.strength", self.strength, *STRENGTH)
        for kind, value in self.modules.items():
            _within(f"weights.modules.{kind}", value, *FACTOR)
        if self.curve is not None:
            for layer, value in enumerate(self.curve):
                _within(f"weights.curve[{layer}]", value, *ALPHA)
        for kind, cells in self.overrides.items():
            for layer, value in cells.items():
                if layer < 0:
                    raise UserError(f"weights.overrides.{kind}: layer {layer} is below 0.")
                _within(f"weights.overrides.{kind}.{layer}", value, *ALPHA)


@dataclass(frozen=True)
class DirectionSpec:
    """Which refusal directions: estimator, prompts, and how the vectors are averaged.

    Attributes:
        harmful, harmless: prompt sets (`demo/harmful`, a file, ...).
        k: directions per layer; the first is the difference of the means.
        scope: one direction per layer, or a `single` one from `layer` on all layers.
        layer: for `single`: layer number, fractions interpolate between neighbours.
        winsorize: clip every vector at this quantile of its own magnitudes, or None.
        position: residual at the last token of the chat template, or of the instruction.
        shrinkage: of the covariance towards a scaled identity (estimator `whitened`), 0..1.
        samples: prompts of each set to use, or None for all.
        seed: for estimator `random`, the control.
        file: a saved directions file to use instead of measuring.
    """

    estimator: Estimator = "mean_difference"
    harmful: str = "demo/harmful"
    harmless: str = "demo/harmless"
    k: int = 1
    scope: Scope = "per_layer"
    layer: float | None = None
    winsorize: float | None = None
    position: Position = "template"
    shrinkage: float = 0.1
    samples: int | None = None
    seed: int = 0
    file: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 16:
            raise UserError(f"directions.k is {self.k}; it must be 1 to 16.")
        _within("directions.shrinkage", self.shrinkage, 0.0, 1.0)
        if self.winsorize is not None:
            _within("directions.winsorize", self.winsorize, 0.5, 1.0)
        if self.samples is not None and self.samples < 2:
            raise UserError(f"directions.samples is {self.samples}; at least 2 are needed.")
        if self.scope == "single" and self.layer is None:
            raise UserError("directions.scope is 'single': say which layer with directions.layer.")
        if self.layer is not None and self.layer < 0:
            raise UserError(f"directions.layer is {self.layer}; it must be 0 or more.")


@dataclass(frozen=True)
class Ablation:
    """One edit along refusal directions.

    Attributes:
        operation: `ablate` projects the direction out of what attention and MLP write;
            `add` shifts the residual stream along it (activation addition).
        norm_preserving: keep every column norm of the edited matrices.
        affine: move the component to where harmless prompts have it, not to zero (ACE).
    """

    directions: DirectionSpec = field(default_factory=DirectionSpec)
    weights: WeightTable = field(default_factory=WeightTable)
    operation: Operation = "ablate"
    norm_preserving: bool = False
    affine: bool = False

    def __post_init__(self) -> None:
        if unknown_kinds := (set(self.weights.modules) | set(self.weights.overrides)) - set(KINDS):
            raise unknown("module kind", min(unknown_kinds), KINDS)
        if self.norm_preserving and (self.affine or self.operation == "add"):
            raise UserError(
                "norm_preserving goes with a plain ablation only: not with affine or add."
            )
        if self.affine and self.operation == "add":
            raise UserError("affine goes with operation 'ablate', not with 'add'.")


def flat() -> WeightTable:
    """A weight table that is 1 everywhere: where a merge starts from."""
    return WeightTable(profile="flat", peak=0.5, width=1e6, threshold=0.0, modules={})


def late() -> WeightTable:
    """A strong bell over the later layers: where a merge finds refusal without over-refusal."""
    return WeightTable(
        profile="custom", peak=0.7, width=0.2, threshold=0.0, strength=2.0, modules={}
    )


@dataclass(frozen=True)
class Merge:
    """A safety adapter joined to a utility adapter: the edit is W0 -> W0 + utility + E.

    Attributes:
        utility, safety: folders of LoRA adapters (PEFT), or Hub ids.
        method: a name of `maths.merging.METHODS`.
        parameters: of the method, by name; what is missing has the method's default.
        budget: most KL that the utility side may lose, nats a token; it chooses mu, in place of a
            parameter `mu`. None for the parameters as they are.
        target: interpolating (E aims at safety − utility: to do as the safety adapter where safety
            is concerned) or additive (at the safety delta, on top of the utility adapter).
        fisher: K-FAC, the nearest Kronecker product, the input side only (no gradients), or exact
            blocks on small cores.
        inputs: directions of each module's input, beside the adapters' own, in which the edit may
            tell prompts apart; 0 for the adapters' own only. Those of most energy on the data.
        weights: w κ(l) t_m of every (layer, module kind) cell; strength is the safety weight.
        utility_prompts, safety_prompts: prompt sets with answers, for the Fisher statistics.
        samples: conversations of each, or None for all.
        unaligned: a model before its safety training, for safe_lora and safe_merge.
        rank: of the merged adapter; None for the exact sum.
    """

    utility: str
    safety: str
    method: str = "sst"
    parameters: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    target: Target = "interpolating"
    fisher: Fisher = "nearest"
    inputs: int = 256
    weights: WeightTable = field(default_factory=flat)
    utility_prompts: str = "demo/sst_utility"
    safety_prompts: str = "demo/sst_safety"
    samples: int | None = None
    unaligned: str | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("utility", "safety"):
            if not getattr(self, name).strip():
                raise UserError(f"merge.{name} is empty; give the adapter's folder or Hub id.")
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise UserError(f"merge.budget is {self.budget}; it must be above 0 nats a token.")
        if self.samples is not None and self.samples < 2:
            raise UserError(f"merge.samples is {self.samples}; at least 2 are needed.")
        if not 0 <= self.inputs <= 4096:
            raise UserError(f"merge.inputs is {self.inputs}; it must be 0 to 4096.")
        if self.inputs and self.fisher == "block":
            raise UserError("merge.fisher 'block' is for small cores: set merge.inputs to 0.")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"merge.rank is {self.rank}; it must be 1 or more.")
        known = (*KINDS, *MODULES)
        if unknown_kinds := (set(self.weights.modules) | set(self.weights.overrides)) - set(known):
            raise unknown("module kind", min(unknown_kinds), known)


@dataclass(frozen=True)
class Evaluation:
    """Which metrics to compute, on how many prompts each, with how long answers.

    Attributes:
        metrics: names; empty for the default list of the registry. `name@prompts` measures one on
            other prompts.
        preset: quick, standard or full (presets/evaluation.yaml): how many prompts, how long.
        samples: prompts of each set in place of the preset's; sets that are smaller are used whole.
        max_new_tokens: length of the answers in place of the preset's.
        judge: a text-classification model, by name or folder, that tells refusals from other
            answers in place of the phrase lists; None for the phrase lists.
        labels: a JSON lines file of corrected labels (prompt, answer, label), or None.
    """

    metrics: tuple[str, ...] = ()
    preset: Size = "standard"
    samples: int | None = None
    max_new_tokens: int | None = None
    judge: str | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise UserError(f"evaluation.samples is {self.samples}; it must be 1 or more.")
        if self.max_new_tokens is not None and not 1 <= self.max_new_tokens <= 4096:
            raise UserError(
                f"evaluation.max_new_tokens is {self.max_new_tokens}; it must be 1 to 4096."
            )


@dataclass(frozen=True)
class Recipe:
    """A whole run: base model, edits in order, and what to measure afterwards."""

    name: str = ""
    model: ModelSpec = field(default_factory=ModelSpec)
    edits: tuple[Ablation | Merge, ...] = ()
    evaluation: Evaluation = field(default_factory=Evaluation)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise UserError(f"recipe version {self.version} is not supported; this is {VERSION}.")

    def digest(self) -> str:
        """Twelve hex digits over everything that changes the edited model (not the name)."""
        return digest(to_dict(replace(self, name="", evaluation=Evaluation())))


def digest(value: Any) -> str:
    """Twelve hex digits of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def to_dict(value: Any) -> Any:
    """Plain data for YAML or JSON; defaults stay in, so that a file says everything."""
    if is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: to_dict(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    return value


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text; `from_yaml` gives the same recipe back."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)


def from_yaml(text: str) -> Recipe:
    """Read a recipe; every unknown key, wrong type and value out of range is a `UserError`."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the recipe is not valid YAML: {_one_line(error)}") from error
    if not isinstance(data, Mapping):
        raise UserError("the recipe is empty or not a mapping; it needs at least 'version: 1'.")
    if "version" not in data:
        raise UserError("the recipe has no 'version'; add 'version: 1'.")
    return build(Recipe, data, "recipe")


def load(path: str | Path) -> Recipe:
    """Read a recipe file (UTF-8 YAML)."""
    path = Path(path)
    try:
        return from_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}.") from error
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}.") from error


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise UserError(f"{name} is {value}; it must be {low:g} to {high:g}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
