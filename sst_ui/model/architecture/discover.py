"""What a model is made of, by role: layers, what writes to the residual stream, linear modules.

A model with a layer that is not understood completely is an error, never a silent skip. Single
layers are examined in `module_roles.py`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from sst_ui.model.architecture.module_roles import (
    BLOCKS,
    EXPERTS,
    OUTPUT_KIND,
    OUTPUTS,
    READERS,
    ArchitectureError,
    Writer,
    Written,
    find_block,
    find_home,
    find_writer,
    is_matrix,
    strangers,
)
from sst_ui.recipe import KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Architecture", "ArchitectureError", "Writer", "Written", "discover", "fold"]


@dataclass(frozen=True, eq=False)
class Architecture:
    """The roles of a model's modules.

    Attributes:
        model_type: the family, as its configuration calls it.
        decoder: the body without the language-model head.
        layers, layer_names: decoder layers in order.
        writers: attention and mlp of layer 0, of layer 1, ...
        linears: kind -> names of modules; the kinds are q, k, v, o, gate, up, down, lm_head, and
            qkv and gate_up where they are fused.
        matrices: name -> module of every linear module that sees all tokens of every row. Experts
            of a mixture do not: which rows' tokens reach them is the router's choice.
        untouched: names of the modules with parameters that no ablation changes.
        hidden: width of the residual stream.
        notes: what a reader of the results should know about this family.
    """

    model_type: str
    decoder: "PreTrainedModel"
    layers: tuple[nn.Module, ...]
    layer_names: tuple[str, ...]
    writers: tuple[Writer, ...]
    linears: Mapping[str, tuple[str, ...]]
    matrices: Mapping[str, nn.Module]
    untouched: tuple[str, ...]
    hidden: int
    notes: tuple[str, ...] = ()

    def writer(self, layer: int, role: str) -> Writer:
        """The one module of this layer and role."""
        return self.writers[layer * len(KINDS) + KINDS.index(role)]

    def layer_of(self, path: str) -> int:
        """The number of the layer that a module is in: −1 before the layers, their number behind
        them (the language-model head)."""
        for number, name in enumerate(self.layer_names):
            if path.startswith(f"{name}."):
                return number
        return len(self.layers) if path in self.linears.get("lm_head", ()) else -1


def discover(model: "PreTrainedModel") -> Architecture:
    """Find the decoder layers, what writes to the residual stream, and the linear modules by kind.

    Args:
        model: a causal language model of transformers.

    Raises:
        ArchitectureError: an encoder or encoder-decoder, or a layer without an attention or MLP
            output or with a module of unknown role; the message names what was found and what is
            missing.
    """
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False):
        raise ArchitectureError(
            f"{config.model_type} is an encoder-decoder; the studio edits decoder-only models."
        )
    names = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    hidden = config.hidden_size
    layers = _layers(decoder, names, config.model_type)
    family = f"'{config.model_type}' ({type(model).__name__})"
    writers, linears = _roles(layers, names, hidden, family)
    if len({id(w.module) for w in writers}) < len(writers):
        raise ArchitectureError(f"{config.model_type} shares one module between several layers.")
    if (head := model.get_output_embeddings()) is not None:
        linears["lm_head"] = [names[id(head)]]
    return Architecture(
        model_type=config.model_type,
        decoder=decoder,
        layers=layers,
        layer_names=tuple(names[id(layer)] for layer in layers),
        writers=tuple(writers),
        linears={kind: tuple(found) for kind, found in linears.items()},
        matrices={
            name: module
            for name, module in model.named_modules()
            if is_matrix(module) and not set(name.split(".")) & set(EXPERTS)
        },
        untouched=_untouched(model, writers),
        hidden=hidden,
        notes=_notes(model, writers, head),
    )


def fold(names: Iterable[str]) -> str:
    """Names with layer numbers replaced by `*`, each pattern once, with how often it occurs."""
    counts: dict[str, int] = {}
    for name in names:
        pattern = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)
        counts[pattern] = counts.get(pattern, 0) + 1
    return ", ".join(f"{name} ×{n}" if n > 1 else name for name, n in counts.items())


def _layers(
    decoder: "PreTrainedModel", names: Mapping[int, str], family: str
) -> tuple[nn.Module, ...]:
    """The longest list of modules some of which have both blocks; `discover` refuses the rest."""
    lists = [m for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m)]
    whole = [ls for ls in lists if any(all(find_home(x, role) for role in KINDS) for x in ls)]
    if whole:
        return tuple(max(whole, key=lambda layers: len(list(layers))))
    seen = [
        f"{names[id(ls)]} ({len(ls)} × {type(ls[0]).__name__} with "
        f"{', '.join(name for name, _ in ls[0].named_children())})"
        for ls in lists
    ]
    known = " and ".join(f"a block for {role} ({', '.join(BLOCKS[role])})" for role in KINDS)
    raise ArchitectureError(
        f"the architecture '{family}' ({type(decoder).__name__}) is not supported: no list of "
        f"decoder layers was found whose members have {known}. "
        f"Found: {'; '.join(seen) or 'no list at all'}."
    )


def _roles(
    layers: Sequence[nn.Module], names: Mapping[int, str], hidden: int, family: str
) -> tuple[list[Writer], dict[str, list[str]]]:
    """What writes to the residual stream, and the linear modules by kind, of all layers.

    Raises:
        ArchitectureError: modules that are missing or of unknown role; up to four are named.
    """
    writers: list[Writer] = []
    linears: dict[str, list[str]] = {}
    problems: list[str] = []
    for number, layer in enumerate(layers):
        for role in KINDS:
            try:
                writer = find_writer(layer, number, role, names, hidden)
            except ArchitectureError as error:
                problems.append(str(error))
                continue
            writers.append(writer)
            _collect(linears, find_block(layer, role) or layer, role, names)
        problems += strangers(layer, names)
    if problems:
        more = f" And {len(problems) - 4} more." if len(problems) > 4 else ""
        found = fold(w.name for w in writers) or "none"
        raise ArchitectureError(
            f"the architecture {family} is not supported: "
            f"{' '.join(problems[:4])}{more} Found: {found} "
            f"({len(writers)} of {len(KINDS) * len(layers)} modules that write)."
        )
    return writers, linears


def _collect(
    linears: dict[str, list[str]], block: nn.Module, role: str, names: Mapping[int, str]
) -> None:
    """Sort the linear modules of one block by kind."""
    kinds = READERS[role] | {OUTPUT_KIND[role]: OUTPUTS[role]}
    for path, module in block.named_modules():
        for kind, known in kinds.items():
            last = path.rpartition(".")[2]
            if last in known and (hasattr(module, "out_features") or hasattr(module, "nf")):
                linears.setdefault(kind, []).append(names[id(module)])


def _untouched(model: "PreTrainedModel", writers: list[Writer]) -> tuple[str, ...]:
    changed = {t.name for w in writers for t in w.tensors}
    changed |= {t.bias for w in writers for t in w.tensors if t.bias}
    left: list[str] = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = [f"{name}.{p}" for p, _ in module.named_parameters(recurse=False)]
        rest = [p for p in own if p not in changed]
        # Of a module that is changed in part (fused experts), name the parameters that are not.
        left += [name] if rest and len(rest) == len(own) else rest
    return tuple(left)


def _notes(
    model: "PreTrainedModel", writers: Sequence[Writer], head: nn.Module | None
) -> tuple[str, ...]:
    notes = []
    if any(writer.norm is not None for writer in writers):
        notes.append(
            "a norm sits between these modules and the residual stream; edits account for its "
            "per-feature scale, so the direction is gone after the norm"
        )
    embedding = model.get_input_embeddings()
    if head is not None and getattr(head, "weight", 0) is getattr(embedding, "weight", None):
        notes.append("the language-model head is tied to the embedding; neither is edited")
    return tuple(notes)
