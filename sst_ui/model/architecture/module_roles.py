"""The role of each module in a decoder layer, found by name and checked by shape.

It never guesses: a module's *role* decides which side of its weight faces the residual stream, its
shape never does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.maths.ablation import through_gain
from sst_ui.model.architecture.post_norm import measured_gain
from sst_ui.recipe import KINDS

# Children of a decoder layer, by role. `linear_attn` is the recurrent mixer of hybrid Qwen models.
BLOCKS = {
    "attention": ("self_attn", "attn", "attention", "self_attention", "linear_attn"),
    "mlp": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe"),
}
# Inside such a block (or, for the MLP of OPT, in the layer itself): the projection that writes.
OUTPUTS = {
    "attention": ("o_proj", "out_proj", "c_proj", "dense", "wo"),
    "mlp": ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2"),
}
EXPERTS = ("experts",)
SHARED_EXPERTS = ("shared_expert", "shared_experts", "shared_mlp")
EXPERT_OUTPUTS = ("down_proj", "w2", "output_linear")
TRANSPOSED_EXPERTS = (
    "Llama4TextExperts",
)  # [experts, in, out]; others say so with `is_transposed`
# Linear modules that read the residual stream, by kind.
READERS = {
    "attention": {
        "q": ("q_proj", "wq"),
        "k": ("k_proj", "wk"),
        "v": ("v_proj", "wv"),
        "qkv": ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "wqkv", "in_proj_qkv"),
    },
    "mlp": {
        "gate": ("gate_proj", "w1"),
        "up": ("up_proj", "c_fc", "dense_h_to_4h", "fc1", "fc_in", "w3"),
        "gate_up": ("gate_up_proj",),
    },
}
OUTPUT_KIND = {"attention": "o", "mlp": "down"}
# Norms between what a block writes and the stream: of the attention, of the MLP. Only as
# a pair: alone, `post_attention_layernorm` is what Llama calls the norm in front of its MLP.
POST_NORMS = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2 to 4, OLMo 2, EXAONE 4
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # GLM 4
    ("post_attention_layernorm", "post_mlp_layernorm"),  # AFMoE
    ("post_norm1", "post_norm2"),  # HyperCLOVA X
    ("post_attn_norm", "post_moe_norm"),  # Grok
)


class ArchitectureError(UserError):
    """The model is not one whose edits can be complete; the message says what is missing."""


@dataclass(frozen=True)
class Written:
    """One parameter that writes: its name in the model, and the axis along the residual stream."""

    name: str
    axis: int
    bias: str | None = None


@dataclass(frozen=True, eq=False)
class Writer:
    """A module whose output is added to the residual stream.

    Attributes:
        layer: number of its decoder layer.
        role: `attention` or `mlp`.
        name: of `module` in the model. For experts it is the whole mixture, shared expert included.
        form: `linear` ([out, in]), `conv1d` ([in, out]) or `experts` (fused, several parameters).
        tensors: the parameters behind it.
        norm, norm_name: the norm that its output passes on the way to the stream, or None.
    """

    layer: int
    role: str
    name: str
    module: nn.Module
    form: str
    tensors: tuple[Written, ...]
    norm: nn.Module | None = None
    norm_name: str = ""

    @cached_property
    def gain(self) -> Tensor | None:
        """[d] float32, up to a common factor what the norm multiplies each feature by; or None.

        Raises:
            UserError: the norm does more than that.
        """
        if self.norm is None:
            return None
        return measured_gain(self.norm, self.norm_name, self.written)

    def sides(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """What an ablation along these rows [k, d] of the stream reads and writes here; see
        `maths.ablation.through_gain`."""
        return through_gain(rows, self.gain)

    @property
    def quantized(self) -> bool:
        """Whether the weight is stored packed, so that its numbers cannot be read directly."""
        weight = getattr(self.module, "weight", None)
        return self.form != "experts" and not _plain(weight)

    @property
    def width(self) -> int:
        """Features it reads: of the matrix's input, or of the residual stream for experts."""
        if self.form == "experts":
            experts = self.module.get_parameter(self.tensors[0].name.removeprefix(f"{self.name}."))
            return experts.shape[self.tensors[0].axis]
        return shape_of(self.module)[1]

    @property
    def written(self) -> int:
        """Features it writes: the width of the residual stream."""
        return self.width if self.form == "experts" else shape_of(self.module)[0]

    def weight(self) -> Tensor:
        """A float32 copy of the weight, [out, in] whatever the form.

        Raises:
            UserError: experts have one matrix each, and quantised weights cannot be read.
        """
        if self.form == "experts":
            raise UserError(f"{self.name} holds several experts; it has no single weight matrix.")
        if self.quantized:
            raise UserError(f"the weight of {self.name} is quantised; load the model without it.")
        if weight_of(self.module).is_meta:
            raise UserError(f"the weight of {self.name} is offloaded; load the model without that.")
        weight = weight_of(self.module).detach().to(torch.float32, copy=True)
        return weight.T.contiguous() if self.form == "conv1d" else weight

    def bias(self) -> Tensor | None:
        """A float32 copy of the bias [out], or None."""
        if self.form == "experts":
            raise UserError(f"{self.name} holds several experts; it has no single bias.")
        bias = getattr(self.module, "bias", None)
        return None if bias is None else bias.detach().to(torch.float32, copy=True)


def find_block(layer: nn.Module, role: str) -> nn.Module | None:
    return next((c for n, c in layer.named_children() if n in BLOCKS[role]), None)


def find_home(layer: nn.Module, role: str) -> nn.Module | None:
    """Where the writer of this role is looked for; for OPT's MLP that is the layer itself."""
    if (block := find_block(layer, role)) is not None:
        return block
    return layer if role == "mlp" and hasattr(layer, "fc2") else None


def find_norm(layer: nn.Module, role: str) -> nn.Module | None:
    """The norm behind the writer of this role, by its name; `stream.account` sees if it is so."""
    for pair in POST_NORMS:
        if all(hasattr(layer, name) for name in pair):
            norm = getattr(layer, pair[KINDS.index(role)])
            return None if isinstance(norm, nn.Identity) else norm
    return None


def find_writer(
    layer: nn.Module, number: int, role: str, names: Mapping[int, str], hidden: int
) -> Writer:
    writer = _find_writer(layer, number, role, names, hidden)
    if (norm := find_norm(layer, role)) is None:
        return writer
    return replace(writer, norm=norm, norm_name=names[id(norm)])


def _find_writer(
    layer: nn.Module, number: int, role: str, names: Mapping[int, str], hidden: int
) -> Writer:
    where, kind = names[id(layer)], type(layer).__name__
    home = find_home(layer, role)
    if home is None:
        found = ", ".join(name for name, _ in layer.named_children())
        raise ArchitectureError(
            f"{where} ({kind}) has no block for {role} (one of {', '.join(BLOCKS[role])}), "
            f"only {found}."
        )
    if any(hasattr(home, name) for name in EXPERTS):
        return Writer(number, role, names[id(home)], home, "experts", _experts(home, names, hidden))
    # Direct children first; GPT-Neo keeps its attention's projections one level deeper.
    for parent in (home, *(home.children() if role == "attention" else ())):
        for name in OUTPUTS[role]:
            module = getattr(parent, name, None)
            if isinstance(module, nn.Module):
                return _dense(module, number, role, names[id(module)], hidden)
    found = ", ".join(name for name, _ in home.named_children()) or "nothing"
    raise ArchitectureError(
        f"{names[id(home)]} ({type(home).__name__}) has no output projection "
        f"(one of {', '.join(OUTPUTS[role])}), only {found}."
    )


def _dense(module: nn.Module, number: int, role: str, name: str, hidden: int) -> Writer:
    conv1d = is_conv1d(module)
    width = getattr(module, "nf" if conv1d else "out_features", None)
    if width != hidden:
        raise ArchitectureError(
            f"{name} ({type(module).__name__}) writes {width} features; "
            f"the residual stream has {hidden}."
        )
    bias = f"{name}.bias" if getattr(module, "bias", None) is not None else None
    tensors = (Written(f"{name}.weight", 1 if conv1d else 0, bias),)
    return Writer(number, role, name, module, "conv1d" if conv1d else "linear", tensors)


def _experts(block: nn.Module, names: Mapping[int, str], hidden: int) -> tuple[Written, ...]:
    """Every parameter in a mixture that writes: the experts' and the shared expert's."""
    experts = next(getattr(block, name) for name in EXPERTS if hasattr(block, name))
    where = names[id(experts)]
    found: list[Written] = []
    for name in EXPERT_OUTPUTS:
        weight = getattr(experts, name, None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 3:
            transposed = getattr(experts, "is_transposed", False)
            axis = 2 if transposed or type(experts).__name__ in TRANSPOSED_EXPERTS else 1
            if weight.shape[axis] != hidden:
                raise ArchitectureError(
                    f"{where}.{name} is {list(weight.shape)}: axis {axis} should be the residual "
                    f"stream's {hidden}."
                )
            bias = f"{name}_bias" if hasattr(experts, f"{name}_bias") else None
            found.append(Written(f"{where}.{name}", axis, bias and f"{where}.{bias}"))
    if isinstance(experts, nn.ModuleList):
        found += [_shared(expert, names, hidden) for expert in experts]
    if not found:
        held = ", ".join(n for n, _ in experts.named_parameters()) or type(experts).__name__
        raise ArchitectureError(
            f"{where} has no fused output (one of {', '.join(EXPERT_OUTPUTS)}), only {held}."
        )
    shared = (getattr(block, name, None) for name in SHARED_EXPERTS)
    return (*found, *(_shared(s, names, hidden) for s in shared if s is not None))


def _shared(expert: nn.Module, names: Mapping[int, str], hidden: int) -> Written:
    for name in OUTPUTS["mlp"]:
        if isinstance(module := getattr(expert, name, None), nn.Module):
            return _dense(module, 0, "mlp", names[id(module)], hidden).tensors[0]
    raise ArchitectureError(
        f"{names[id(expert)]} has no output projection (one of {', '.join(OUTPUTS['mlp'])})."
    )


def strangers(layer: nn.Module, names: Mapping[int, str]) -> list[str]:
    """Modules of a layer that may write to the residual stream without our knowing how."""
    blocks = {role: find_block(layer, role) for role in BLOCKS}
    found = [c for c in layer.children() if not any(c is b for b in blocks.values())]
    readers = [name for known in READERS["mlp"].values() for name in known]
    known = (*readers, *OUTPUTS["mlp"])
    if blocks["mlp"] is None:  # OPT: both matrices lie in the layer itself
        found = [c for c in found if names[id(c)].rpartition(".")[2] not in known]
    elif not any(hasattr(blocks["mlp"], name) for name in EXPERTS):
        # A mixture under another name would hide behind the shared expert's `down_proj`.
        found += [
            m
            for path, m in blocks["mlp"].named_modules()
            if any(p.dim() > 1 for p in m.parameters(recurse=False))
            and path.rpartition(".")[2] not in known
        ]
    return [
        f"{names[id(module)]} ({type(module).__name__}) is a module of unknown role."
        for module in found
        if any(p.dim() > 1 for p in module.parameters())
    ]


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a linear module, quantised or Conv1D."""
    linear: Any = module  # whichever class it is, it has these
    if is_conv1d(module):
        return linear.nf, linear.nx
    return linear.out_features, linear.in_features


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear module, as it is stored."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' GPT-2 layer, whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D"


def is_matrix(module: nn.Module) -> bool:
    """Whether a module is one linear map: Linear, Conv1D, or a quantised form of them."""
    linear = hasattr(module, "in_features") and hasattr(module, "out_features")
    return linear or is_conv1d(module)


def _plain(weight: Tensor | None) -> bool:
    """Whether a weight is a matrix of ordinary floating-point numbers."""
    if weight is None or weight.dim() != 2:
        return False
    return weight.is_floating_point() and weight.dtype.itemsize > 1


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes; one whose weights are offloaded says so in accelerate's hook."""
    cpu = torch.device("cpu")
    device = next((p.device for p in module.parameters()), cpu)
    if device.type == "meta":
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", cpu)
    return torch.device(device)
