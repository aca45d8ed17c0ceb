"""The vocabulary: what an edit *is*, as small frozen data. YAML in and out, checked, with a digest.

Every setting's type, range, default and slider stand at its field and nowhere else; its unit and
help stand in presets/settings.yaml (schema.py reads both). Does not know tensors, models or
screens: everything that computes takes a `Recipe` (or a part of one) and answers the same for the
same recipe.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag

from sst_ui import profiles, schema
from sst_ui.checked import Checked, Flag, Number, Several, Table, Text, Whole
from sst_ui.errors import UserError, shown, unknown
from sst_ui.profiles import WIDEST
from sst_ui.schema import Slider, build, described
from sst_ui.yaml_text import LENGTH, parse

VERSION = 1
KINDS = ("attention", "mlp")  # the two roles that write to the residual stream
GROUPS = {  # kind of linear module -> the role it belongs to; the head belongs to none
    **dict.fromkeys(("q", "k", "v", "qkv", "o"), "attention"),
    **dict.fromkeys(("gate", "up", "gate_up", "down"), "mlp"),
}
FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}  # several kinds in one matrix
MODULES = (*GROUPS, "lm_head")  # what an adapter may change
SEEDS = 2**32 - 1  # the largest seed that torch, numpy and Optuna all take
LAYERS = 10_000  # more than any model has
FILE = "recipe.yaml"  # of a run, of an export, and what a window offers for download
COMPUTED = ("dtype", "quantization", "enable_thinking", "chat_template")  # of what a model computes

Share = Annotated[Number, Field(ge=0, le=1), Slider(0.01)]
Width = Annotated[  # its square must be a number, and not 0
    Number, Field(gt=0, ge=1 / WIDEST, le=WIDEST, examples=[0.15]), Slider(0.01, low=0, high=0.5)
]
# Merges have been tried with an lm_head of 20.
Factor = Annotated[Number, Field(ge=-32, le=32), Slider(0.05, low=0, high=2)]
Alpha = Annotated[Number, Field(ge=-4, le=4)]  # of a single cell, after strength
Layer = Annotated[Whole, Field(ge=0, le=LAYERS)]
Seed = Annotated[Whole, Field(ge=0, le=SEEDS)]
Pairs = Annotated[Whole, Field(ge=2)]  # examples that a mean or a Fisher matrix is made of
Prompts = Annotated[Whole, Field(ge=1)]
Tokens = Annotated[Whole, Field(ge=1, le=4096)]  # of an answer
Rank = Annotated[Whole, Field(ge=1)]
# A slider of decades: its step is one of the exponent.
Budget = Annotated[Number, Field(gt=0), Slider(0.01, low=1e-5, high=3)]

Price = Annotated[Number, Field(ge=0, le=1e9), Slider(0.05, low=1e-3, high=1e3)]

SHAPE = ("peak", "width", "threshold")  # what a profile's name stands for

Estimator = Literal["mean_difference", "projected", "biprojected", "whitened", "surgical", "random"]
Scope = Literal["per_layer", "single"]
Position = Literal["template", "instruction"]
Operation = Literal["ablate", "add", "filter"]
AffineAt = Literal["prompt_end", "everywhere"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "8bit", "4bit"]
Size = Literal["quick", "standard", "full"]
Aim = Literal["auto", "remove", "reinforce", "measure"]
Target = Literal["additive", "interpolating"]
Fisher = Literal["kfac", "nearest", "input", "block"]


@described("model")
@dataclass(frozen=True)
class ModelSpec(Checked):
    """Which model, and how to load it."""

    id: Text = "demo"
    revision: Text | None = None
    dtype: Dtype = "auto"
    device: Text = "auto"
    quantization: Quantization = "none"
    trust_remote_code: Flag = False
    enable_thinking: Flag = False
    chat_template: Text | None = None

    def __post_init__(self) -> None:
        if not self.id.strip():
            raise UserError("model.id is empty; give a folder, a Hub id, or demo.")
        schema.check(self)

    def __str__(self) -> str:
        """Id and what is not as usual, for messages: never longer than a line."""
        told = [shown(self.id).strip("'\"")]
        told += [f"revision {shown(self.revision)}"] if self.revision else []
        told += [
            f"{name} {shown(getattr(self, name))}"
            for name in COMPUTED
            if getattr(self, name) != getattr(ModelSpec, name)
        ]
        return ", ".join(told)

    def is_of(self, loaded: "ModelSpec") -> bool:
        """Whether a recipe for this model may be answered by a loaded one.

        Both are the same id and revision, and what this one says of type, quantisation and
        template is so there; what it leaves at the default it does not ask for. The device and
        leave to run the model's code are not the recipe's to choose.
        """
        if (self.id, self.revision or "main") != (loaded.id, loaded.revision or "main"):
            return False
        return all(
            getattr(self, name) in (getattr(ModelSpec, name), getattr(loaded, name))
            for name in COMPUTED
        )


@described("weights")
@dataclass(frozen=True)
class WeightTable(Checked):
    """How strongly each (layer, module kind) cell is edited: a kernel, then exceptions.

    A profile's name stands for its peak, width and threshold (presets/profiles.yaml). Numbers given
    beside the name count, and where they differ from the profile's the table is `custom`: a table
    never has a name that its numbers do not bear out. In the profile `table` the cells count, which
    are the overrides.
    """

    profile: Text = "default"
    peak: Share | None = None
    width: Width | None = None
    threshold: Share | None = None
    strength: Annotated[Number, Field(ge=-2, le=2), Slider(0.05, low=-1)] = 1.0
    modules: Table[Text, Factor] = field(default_factory=lambda: {"attention": 1.0, "mlp": 1.0})
    peaks: Table[Text, Share] = field(default_factory=dict)
    widths: Table[Text, Width] = field(default_factory=dict)
    curve: Several[Alpha] | None = None
    overrides: Table[Text, Table[Layer, Alpha]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._take_profile()
        if strangers := self.kinds - {*KINDS, *MODULES}:
            raise unknown("module kind", min(strangers), (*KINDS, *MODULES))
        schema.check(self)

    @property
    def bell(self) -> tuple[float, float]:
        """Peak and width, the profile's where the recipe does not say them."""
        assert self.peak is not None  # filled in by now
        assert self.width is not None
        return self.peak, self.width

    @property
    def kinds(self) -> set[str]:
        """The kinds of module that have something of their own."""
        return {*self.modules, *self.peaks, *self.widths, *self.overrides}

    @property
    def own_bells(self) -> set[str]:
        """The kinds of module that have a peak or a width of their own."""
        return {*self.peaks, *self.widths}

    def _take_profile(self) -> None:
        """Fill in the profile's numbers; other ones beside its name make the table `custom`."""
        known = profiles.named()
        if self.profile not in (*known, *profiles.OWN):
            raise unknown("weights.profile", self.profile, (*known, *profiles.OWN))
        given = {n: v for n in SHAPE if (v := getattr(self, n)) is not None}
        if self.profile in ("measured", "model") and not {"peak", "width"} <= given.keys():
            raise UserError(
                f"weights.profile is {self.profile!r} without numbers of its own: write peak and "
                f"width beside it, or name one of {', '.join(known)}."
            )
        own = known.get(self.profile, known["default"])
        for name in SHAPE:
            object.__setattr__(self, name, given.get(name, own[name]))
        told = self.profile not in known or all(given[n] == own[n] for n in given)
        cells = self.profile != "table" or self.overrides
        if not told or not cells or self.curve is not None or self.own_bells:
            object.__setattr__(self, "profile", "custom")


@described("directions")
@dataclass(frozen=True)
class DirectionSpec(Checked):
    """Which refusal directions: estimator, prompts, and how the vectors are averaged."""

    estimator: Estimator = "mean_difference"
    harmful: Text = "demo/harmful"
    harmless: Text = "demo/harmless"
    k: Annotated[Whole, Field(ge=1, le=16), Slider(1, high=8)] = 1
    scope: Scope = "per_layer"
    layer: Annotated[Number, Field(ge=0, le=LAYERS), Slider(0.5)] | None = None
    winsorize: Annotated[Number, Field(ge=0.5, le=1), Slider(0.005, low=0.9)] | None = None
    position: Position = "template"
    shrinkage: Share = 0.1
    concepts: Text | None = None
    samples: Pairs | None = None
    seed: Seed = 0
    file: Text | None = None

    def __post_init__(self) -> None:
        schema.check(self)
        if self.scope == "single" and self.layer is None:
            raise UserError("directions.scope is 'single': say which layer with directions.layer.")


@described("filter")
@dataclass(frozen=True)
class Filter(Checked):
    """What the operation `filter` leaves as it is, at what price: μ, or a budget of either kind."""

    mu: Price = 1.0
    budget: Annotated[Number, Field(gt=0, le=1), Slider(0.01, low=1e-4)] | None = None
    kl: Annotated[Number, Field(gt=0, le=10), Slider(0.01, low=1e-5, high=1)] | None = None
    ridge: Annotated[Number, Field(gt=0, ge=1e-6, le=1)] = 1e-3
    answers: Annotated[Whole, Field(ge=0, le=512)] = 16
    lookalikes: Text | None = None
    lookalike_weight: Annotated[Number, Field(ge=0, le=100)] = 1.0
    null_space: Annotated[Number, Field(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        schema.check(self)
        if self.budget is not None and self.kl is not None:
            raise UserError("filter.budget and filter.kl both choose the price; give one of them.")


@described("edit")
@dataclass(frozen=True)
class Ablation(Checked):
    """One edit along refusal directions."""

    directions: DirectionSpec = field(default_factory=DirectionSpec)
    weights: WeightTable = field(default_factory=WeightTable)
    operation: Operation = "ablate"
    norm_preserving: Flag = False
    affine: Flag = False
    affine_at: AffineAt = "prompt_end"
    filter: Filter = field(default_factory=Filter)

    def __post_init__(self) -> None:
        schema.check(self)
        if unknown_kinds := self.weights.kinds - set(KINDS):
            raise unknown("module kind", min(unknown_kinds), KINDS)
        if self.norm_preserving and (self.affine or self.operation != "ablate"):
            raise UserError(
                "norm_preserving goes with a plain ablation only: not with affine, add or filter."
            )
        if self.affine and self.operation == "add":
            raise UserError("affine goes with operations 'ablate' and 'filter', not with 'add'.")


def flat() -> WeightTable:
    """A weight table that is 1 everywhere: where a merge starts from."""
    return WeightTable(profile="flat", modules={})


def late() -> WeightTable:
    """A strong bell over the later layers: where a merge finds refusal without over-refusal."""
    return WeightTable(
        profile="custom", peak=0.7, width=0.2, threshold=0.0, strength=2.0, modules={}
    )


@described("merge")
@dataclass(frozen=True)
class Merge(Checked):
    """A safety adapter joined to a utility adapter: the edit is W0 -> W0 + utility + E."""

    utility: Text
    safety: Text
    method: Text = "sst"
    parameters: Table[Text, Number] = field(default_factory=dict)
    budget: Budget | None = None
    target: Target = "interpolating"
    fisher: Fisher = "nearest"
    inputs: Annotated[Whole, Field(ge=0, le=4096)] = 256
    weights: WeightTable = field(default_factory=flat)
    utility_prompts: Text = "demo/sst_utility"
    safety_prompts: Text = "demo/sst_safety"
    samples: Pairs | None = None
    unaligned: Text | None = None
    rank: Rank | None = None
    lookalikes: Text | None = None
    lookalike_weight: Annotated[Number, Field(ge=0, le=100)] = 1.0
    rounds: Annotated[Whole, Field(ge=0, le=5)] = 0

    def __post_init__(self) -> None:
        for name in ("utility", "safety"):
            if not getattr(self, name).strip():
                raise UserError(f"merge.{name} is empty; give the adapter's folder or Hub id.")
        schema.check(self)
        if self.inputs and self.fisher == "block":
            raise UserError("merge.fisher 'block' is for small cores: set merge.inputs to 0.")
        if "lm_head" in self.weights.overrides:
            raise UserError(
                "weights.overrides.lm_head: the head is in no layer; weigh it with "
                "weights.modules.lm_head."
            )


EDITS = {"edit": Ablation, "merge": Merge}


def _looks_like(edit: Any) -> str:
    """The kind of edit that plain data has most keys of."""
    keys = edit.keys() if isinstance(edit, Mapping) else ()
    counts = {name: sum(f.name in keys for f in fields(kind)) for name, kind in EDITS.items()}
    return max(counts, key=lambda name: counts[name])


Edit = Annotated[
    Annotated[Ablation, Tag("edit")] | Annotated[Merge, Tag("merge")], Discriminator(_looks_like)
]


@described("evaluation")
@dataclass(frozen=True)
class Evaluation(Checked):
    """Which metrics to compute, on how many prompts each, with how long answers."""

    metrics: Several[Text] = ()
    goal: Aim = "auto"
    preset: Size = "standard"
    samples: Prompts | None = None
    max_new_tokens: Tokens | None = None
    judge: Text | None = None
    labels: Text | None = None

    def __post_init__(self) -> None:
        schema.check(self)


@described("recipe")
@dataclass(frozen=True)
class Recipe(Checked):
    """A whole run: base model, edits in order, and what to measure afterwards."""

    name: Text = ""
    model: ModelSpec = field(default_factory=ModelSpec)
    edits: Several[Edit] = ()
    evaluation: Evaluation = field(default_factory=Evaluation)
    version: Whole = VERSION

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise UserError(f"recipe version {self.version} is not supported; this is {VERSION}.")
        edits = tuple(
            replace(edit, weights=_of_model(edit.weights, self.model.id)) for edit in self.edits
        )
        object.__setattr__(self, "edits", edits)

    def digest(self) -> str:
        """Twelve hex digits over everything that changes the edited model (not the name)."""
        data = to_dict(replace(self, name="", evaluation=Evaluation()))
        del data["evaluation"]["goal"]  # hashes of recipes from before there was one stay good
        return digest(data)


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
    if not isinstance(text, str):
        raise UserError(f"the recipe is {shown(text)}; it must be text.")
    return from_data(parse(text, "the recipe"))


def from_data(data: Any) -> Recipe:
    """A recipe from plain data, as YAML or JSON holds it; checked as by `from_yaml`."""
    if not isinstance(data, Mapping):
        raise UserError("the recipe is empty or not a mapping; it needs at least 'version: 1'.")
    if "version" not in data:
        raise UserError("the recipe has no 'version'; add 'version: 1'.")
    return build(Recipe, _with_own_profiles(data), "recipe")


def _with_own_profiles(data: Mapping) -> Mapping:
    """The data with the numbers of `profile: model`, which only the recipe's model has."""
    model, edits = data.get("model"), data.get("edits")
    name = model.get("id") if isinstance(model, Mapping) else None
    own = profiles.of_model(name if isinstance(name, str) else ModelSpec().id)
    if own is None or not isinstance(edits, list | tuple):
        return data
    numbers = dict(zip(("peak", "width"), own[1:], strict=True))

    def filled(edit: Any) -> Any:
        weights = edit.get("weights") if isinstance(edit, Mapping) else None
        if not isinstance(weights, Mapping) or weights.get("profile") != "model":
            return edit
        given = {name: value for name, value in weights.items() if value is not None}
        return {**edit, "weights": {**numbers, **given}}

    return {**data, "edits": [filled(edit) for edit in edits]}


def _of_model(weights: WeightTable, model_id: str) -> WeightTable:
    """The table, `custom` where it claims to be a known model's own and is not."""
    own = profiles.of_model(model_id) if weights.profile == "model" else None
    if own is None or own[1:] == (weights.peak, weights.width):
        return weights
    return replace(weights, profile="custom")


def load(path: str | Path) -> Recipe:
    """Read a recipe file (UTF-8 YAML)."""
    return from_yaml(read_text(path))


def read_text(path: str | Path) -> str:
    """The text of a recipe file, a byte order mark left out.

    Raises:
        UserError: no such file, a folder, not readable, too large, or not UTF-8.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give a recipe file (YAML).")
        if path.is_file() and path.stat().st_size > 4 * LENGTH:
            raise UserError(f"{path} is {path.stat().st_size:,} bytes large; that is no recipe.")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}.") from error
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the recipe {shown(str(path))}: {reason}.") from error
