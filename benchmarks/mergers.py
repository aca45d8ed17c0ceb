"""Ways to merge two adapters of one decoder layer: the studio's, and PEFT's add_weighted_adapter.

A way is made with what it needs, `run()` is the work, and `result()` says what came of it.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sst_ui.maths.merge import registry
from sst_ui.maths.merge.low_rank import Delta, core
from sst_ui.maths.merge.subspace import Moments

WEIGHT = 0.8  # of the safety adapter; not 1, so that a forgotten weight shows in the error
ATTENTION, MLP = ("q", "k", "v", "o"), ("gate", "up", "down")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    hidden: int
    inner: int
    heads: int
    kv_heads: int
    layers: int

    def modules(self) -> dict[str, tuple[int, int]]:
        """Kind -> (out, in) of the seven linear modules of a layer."""
        h, n, kv = self.hidden, self.inner, self.hidden * self.kv_heads // self.heads
        sizes = ((h, h), (kv, h), (kv, h), (h, h), (n, h), (n, h), (h, n))
        return dict(zip((*ATTENTION, *MLP), sizes, strict=True))


LLAMA_8B = Shape(hidden=4096, inner=14336, heads=32, kv_heads=8, layers=32)
TINY = Shape(hidden=32, inner=48, heads=2, kv_heads=1, layers=2)


@dataclass(frozen=True, eq=False)
class Layer:
    """Two adapters of one layer: kind -> factors, float32."""

    shape: Shape
    rank: int
    utility: Mapping[str, Delta]
    safety: Mapping[str, Delta]

    def exact(self, kind: str) -> Tensor:
        """Δ_U + w Δ_S, [out, in] float64."""
        return _dense(self.utility[kind]) + WEIGHT * _dense(self.safety[kind])


def random_layer(shape: Shape, rank: int, seed: int) -> Layer:
    """Independent normal factors: no common directions, the hardest case for a truncation."""
    draw = torch.Generator().manual_seed(seed)

    def adapter() -> dict[str, Delta]:
        return {
            kind: Delta(
                torch.randn(out, rank, generator=draw) / sqrt(rank),
                torch.randn(rank, inp, generator=draw) / sqrt(inp),
            )
            for kind, (out, inp) in shape.modules().items()
        }

    return Layer(shape, rank, adapter(), adapter())


class Studio:
    """Common core space, then one of the studio's methods; from the factors to the merged factors.

    Args:
        layer: to merge.
        method: of the registry.
        rank: of the result; None is exact, at most the sum of both ranks.
    """

    def __init__(self, layer: Layer, method: str, rank: int | None) -> None:
        self.layer, self.method, self.rank = layer, method, rank
        draw = torch.Generator().manual_seed(0)
        # The Fisher pass collects them before a merge; made up here, and not on the clock.
        self.moments = {
            kind: [_moments(out, inp, layer.rank, draw) for _ in ("safety", "utility")]
            for kind, (out, inp) in layer.shape.modules().items()
        }
        self.merged: dict[str, Delta] = {}

    def run(self) -> None:
        for kind, (safety, utility) in self.moments.items():
            space = core(self.layer.utility[kind], self.layer.safety[kind])
            module = registry.Module(kind, kind, 0, space, safety, utility, weight=WEIGHT)
            self.merged[kind] = registry.merge(module, self.method, self.rank).delta

    def result(self) -> dict[str, Delta]:
        return self.merged


class Peft:
    """A Llama of one layer with both adapters on it, as PEFT would have loaded them.

    The base's weights are allocated and never written or read, so they take no memory.

    Args:
        layer: to merge.
        options: of `add_weighted_adapter`.
    """

    def __init__(self, layer: Layer, **options: object) -> None:
        shape, self.options = layer.shape, options
        config = LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.inner,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            num_hidden_layers=1,
            vocab_size=8,
        )
        with torch.device("meta"):
            base = LlamaForCausalLM(config)
        targets = [f"{kind}_proj" for kind in layer.utility]
        # alpha is not r: PEFT has to fold a scale in, as with most adapters there are
        lora = LoraConfig(r=layer.rank, lora_alpha=2 * layer.rank, target_modules=targets)
        self.model = get_peft_model(base.to_empty(device="cpu"), lora, "utility")
        self.model.add_adapter("safety", lora)
        for name, adapter in (("utility", layer.utility), ("safety", layer.safety)):
            for kind, delta in adapter.items():
                module = self._module(kind)
                module.lora_A[name].weight.data.copy_(delta.a)
                module.lora_B[name].weight.data.copy_(delta.b / module.scaling[name])

    def run(self) -> None:
        names, weights = ["utility", "safety"], [1.0, WEIGHT]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.add_weighted_adapter(names, weights, "merged", **self.options)

    def result(self) -> dict[str, Delta]:
        found = {}
        for kind in (*ATTENTION, *MLP):
            module = self._module(kind)
            b, a = module.lora_B["merged"].weight.detach(), module.lora_A["merged"].weight.detach()
            found[kind] = Delta(b * module.scaling["merged"], a)
        return found

    def _module(self, kind: str):
        layer = self.model.base_model.model.model.layers[0]
        return getattr(layer.self_attn if kind in ATTENTION else layer.mlp, f"{kind}_proj")


@dataclass(frozen=True)
class Way:
    """A row of the table.

    Attributes:
        title: what a reader calls it.
        make: the way, from a layer.
        full: whether the result has the sum of both ranks, and not one adapter's.
        sums: whether its aim is Δ_U + w Δ_S, so that it has an error against that.
        slow: minutes a layer, so that once has to do.
    """

    title: str
    make: Callable[[Layer], Studio | Peft]
    full: bool
    sums: bool = True
    slow: bool = False


def _svd(title: str, full_matrices: bool) -> Way:
    options = {"combination_type": "svd", "svd_full_matrices": full_matrices}
    return Way(
        title, lambda x: Peft(x, svd_rank=x.rank, **options), full=False, sums=True, slow=True
    )


WAYS = {
    "sst": Way("SST, exact", lambda x: Studio(x, "sst", None), True, sums=False),
    "sst_r": Way("SST, truncated", lambda x: Studio(x, "sst", x.rank), False, sums=False),
    "sum": Way("task arithmetic, exact", lambda x: Studio(x, "task_arithmetic", None), True),
    "sum_r": Way(
        "task arithmetic, truncated", lambda x: Studio(x, "task_arithmetic", x.rank), False
    ),
    "cat": Way("PEFT `cat`", lambda x: Peft(x, combination_type="cat"), True),
    "svd": _svd("PEFT `svd`", full_matrices=True),
    "svd_thin": _svd("PEFT `svd`, `svd_full_matrices=False`", full_matrices=False),
}


def error(result: Mapping[str, Delta], exact: Callable[[str], Tensor]) -> float:
    """‖result − exact‖ / ‖exact‖ over the layer, dense and in float64.

    Args:
        exact: from a kind to the change that it should be, [out, in] float64.
    """
    missed = whole = 0.0
    for kind, delta in result.items():
        aim = exact(kind)
        whole += float(aim.square().sum())
        aim -= _dense(delta)
        missed += float(aim.square().sum())
    return sqrt(missed / whole)


def disagreement(layer: Layer) -> float:
    """The studio's exact task arithmetic against PEFT's `cat`, as an `error`."""
    ours, theirs = (WAYS[name].make(layer) for name in ("sum", "cat"))
    ours.run()
    theirs.run()
    return error(ours.result(), lambda kind: _dense(theirs.result()[kind]))


def _dense(delta: Delta) -> Tensor:
    return delta.b.double() @ delta.a.double()


def _moments(out: int, inp: int, rank: int, draw: torch.Generator) -> Moments:
    """Of full rank, in the core of two random adapters of that rank."""

    def square(side: int) -> Tensor:
        samples = torch.randn(side, 2 * side, generator=draw, dtype=torch.float64)
        return samples @ samples.mT / (2 * side)

    return Moments(a=square(min(2 * rank, inp)), g=square(min(2 * rank, out)), n=1000)
