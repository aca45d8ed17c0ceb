"""What a row of edits does to each stored tensor: W + deltas first, then the ablations in order.

What the live hooks compute and no weights can hold is refused here, and so is an edit of a module
whose tensor is not in the files: nothing is left out silently.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.maths.ablation import edit_bias, edit_weight, through_gain
from sst_ui.maths.rounding import to_dtype
from sst_ui.model.architecture.discover import Architecture, fold
from sst_ui.model.architecture.module_roles import EXPERTS, Writer, Written, is_conv1d
from sst_ui.model.architecture.post_norm import measured_gain
from sst_ui.model.hooks.live_edits import Edit
from sst_ui.model.hooks.low_rank import RowDelta, Scaled, bias_of, summed
from sst_ui.model.hooks.row_plan import RowEdit
from sst_ui.model.weights.given_biases import given
from sst_ui.model.weights.stored_tensors import DTYPES, Shard, Stored
from sst_ui.recipe import KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 1 << 18  # numbers worked on at a time: 1 MiB in float32, for the cache's sake
# Families whose layer ends with x + mlp(...), bias included and nothing in between.
PLAIN_ENDS = ("gpt2", "gpt_neox", "llama")

EVERYWHERE = (
    "With affine_at 'everywhere' it is an ablation and a bias, which can be exported; see whether "
    "it does what you want. Or use operation 'filter', whose affine centre needs no bias, or a "
    "plain ablation (affine: false); or keep the recipe and run it in the studio."
)


class Link(NamedTuple):
    """One ablation of a writer.

    Attributes:
        rows: [k, d] what is read.
        alpha: its strength.
        preserving: whether column norms are kept.
        write: [k, d] what is written; None for the same.
        target: [k] what the component of the output moves to; None for zero.
    """

    rows: Tensor
    alpha: float
    preserving: bool
    write: Tensor | None
    target: Tensor | None = None


Places = Sequence[tuple[Shard, Stored]]
Located = Mapping[str, Places]


@dataclass(frozen=True, eq=False)
class Change:
    """What happens to one parameter, or to each of the stored tensors it is made of.

    Attributes:
        last: whether the output features are the last axis (Conv1D, some experts, biases), not the
            one before it.
        bias: a vector and not a matrix: ablations project it, norms do not concern it.
        deltas: added first, with their scales.
        added: [out] the deltas' own biases, for a bias.
        links: the ablations, in order.
        shift: [d] what is subtracted from a bias at the end.
    """

    last: bool = False
    bias: bool = False
    deltas: tuple[Scaled, ...] = ()
    added: Tensor | None = None
    links: tuple[Link, ...] = ()
    shift: Tensor | None = None

    def apply(self, stored: Tensor, generator: torch.Generator | None = None) -> bool:
        """Change a tensor in place, a block of columns at a time: each column is on its own.

        Args:
            stored: as it lies in the file, any of `DTYPES`; experts may be stacked in front.
            generator: of stochastic rounding, or None for rounding to the nearest.

        Returns:
            Whether all results are finite. Not so: they were not, or the type's range is too short.
        """
        if self.bias:
            exact = stored.to(torch.promote_types(stored.dtype, torch.float32))
            if self.added is not None:
                exact = exact + self.added.to(exact)
            for rows, alpha, _, write, target in self.links:
                exact = edit_bias(exact, rows, alpha, write, target)
            if self.shift is not None:
                exact = exact - self.shift.to(exact)
            stored.copy_(to_dtype(exact, stored.dtype, generator))
            return bool(stored.isfinite().all())
        finite = True
        for matrix in stored.unbind() if stored.dim() == 3 else (stored,):
            weight = matrix.mT if self.last else matrix  # [out, in]
            step = max(1, BLOCK // weight.shape[0])
            for start in range(0, weight.shape[1], step):
                finite &= self._block(weight, slice(start, start + step), generator)
        return finite

    def _block(self, weight: Tensor, some: slice, generator: torch.Generator | None) -> bool:
        part = weight[:, some]
        exact = part.to(torch.promote_types(part.dtype, torch.float32))
        for delta, scale in self.deltas:
            exact = torch.addmm(exact, delta.b.to(exact), delta.a[:, some].to(exact), alpha=scale)
        for rows, alpha, norm_preserving, write, _ in self.links:
            exact = edit_weight(exact, rows, alpha, norm_preserving, write)
        part.copy_(to_dtype(exact, part.dtype, generator))
        # the sum of squares is finite unless a number is not, or is beyond what a model holds
        return bool(torch.linalg.vector_norm(part, dtype=torch.float32).isfinite())


@dataclass(frozen=True, eq=False)
class Added:
    """A bias that the files have none of, and get.

    Attributes:
        beside: name of the stored weight that it goes with; it has that one's type.
        stored: the tensor as it is written; only name, type and size count.
        change: what makes it from zeros.
    """

    beside: str
    stored: Stored
    change: Change


@dataclass(frozen=True, eq=False)
class Alterations:
    """All changes of a model's stored tensors.

    Attributes:
        changes: stored tensor's name -> what happens to it.
        untied: where a tied head gets numbers of its own, the name of the tensor that the files
            lack, and the stored one that it is made from: the head of the embedding, or the
            embedding of the head where only that is stored; else None.
        twin: what happens to such a tensor on the way.
        untie: whether config.json must say that the two are no longer tied.
        added: biases that come with settings of config.json.
        flags: those settings, which must be true.
    """

    changes: Mapping[str, Change]
    untied: tuple[str, Stored] | None = None
    twin: Change | None = None
    untie: bool = False
    added: tuple[Added, ...] = ()
    flags: tuple[str, ...] = ()


def check(edits: Sequence[Edit], architecture: Architecture) -> None:
    """Refuse edits that no weights can hold, before files are looked at.

    Raises:
        UserError: an affine edit or an addition that no bias can hold.
    """
    granted(edits, architecture)
    parts = (_ablations, _shifts, _biases)
    for _ in (found for part in parts for found in part(edits, architecture)):
        pass


def alterations(
    edits: Sequence[Edit], architecture: Architecture, model: "PreTrainedModel", located: Located
) -> Alterations:
    """Work out what a row of edits does to a model's files.

    Args:
        architecture: of the model whose edits these are.
        model: the same model, or its skeleton.
        located: `stored.locate(model, shards)`.

    Raises:
        UserError: edits that no weights can hold or that are of another model; a tensor that is not
            in the files, or is quantised there.
    """
    found: dict[str, Change] = {}
    for name, last, scaled in _deltas(edits, architecture):
        found[name] = Change(last=last, deltas=scaled)
    for name, added in _biases(edits, architecture):
        found[name] = Change(last=True, bias=True, added=added)
    without: dict[str, tuple[Link, ...]] = {}
    for written, links in _ablations(edits, architecture, located):
        before = found.get(written.name, Change())
        last = written.axis == model.get_parameter(written.name).dim() - 1
        found[written.name] = replace(before, last=last, links=links)
        if written.bias:
            before = found.get(written.bias, Change(last=True, bias=True))
            found[written.bias] = replace(before, links=links)
        elif any(link.target is not None for link in links):
            without[f"{written.name.removesuffix('.weight')}.bias"] = links
    for name, shift in _shifts(edits, architecture):
        before = found.get(name, Change(last=True, bias=True))
        there = before.shift
        found[name] = replace(before, shift=shift if there is None else there + shift)
    head, embedding = _tied(model)
    changes, untied, twin = {}, None, None
    for name, change in found.items():
        places = located.get(name, ())
        if name == head and not places and len(table := located.get(embedding, ())) == 1:
            untied, twin, places = (head, table[0][1]), change, table
        elif name == head and len(places) == 1 and embedding not in located:
            untied, twin = (embedding, places[0][1]), Change()
        for _, stored in _present(name, places, change, model):
            if twin is not change:
                changes[stored.name] = change
    flags, sizes = granted(edits, architecture)
    fresh = tuple(_new(name, size, without, located) for name, size in sizes.items())
    return Alterations(changes, untied, twin, head in found, fresh, flags)


def _new(name: str, size: int, links: Mapping[str, tuple[Link, ...]], located: Located) -> Added:
    """A bias that a setting brings along: of a module that is edited, or zeros."""
    places = located.get(f"{name.removesuffix('.bias')}.weight", ())
    if len(places) != 1 or not (beside := places[0][1]).name.endswith("weight"):
        raise UserError(
            f"the model's files do not hold the weight that {name} would go with as one tensor of "
            f"its own. {EVERYWHERE}"
        )
    if beside.dtype not in DTYPES:
        raise UserError(
            f"{beside.name} is stored as {beside.dtype}, a quantised form that cannot be edited. "
            f"{otherwise(name)}"
        )
    width = torch.finfo(DTYPES[beside.dtype]).bits // 8
    stored = Stored(
        f"{beside.name.removesuffix('weight')}bias", beside.dtype, (size,), 0, size * width
    )
    return Added(beside.name, stored, Change(last=True, bias=True, links=links.get(name, ())))


def granted(
    edits: Sequence[Edit], architecture: Architecture
) -> tuple[tuple[str, ...], Mapping[str, int]]:
    """Settings of config.json that give every writer of an affine edit its bias, and the length of
    each bias that they bring.

    Raises:
        UserError: an affine edit that acts at one token; a writer that cannot have a bias.
    """
    bare = without_bias(edits, architecture)
    found = given(architecture, bare)
    if found is None or found.sizes is None:
        raise UserError(
            f"an affine edit needs a bias at what each module writes; {fold(bare)} of "
            f"{architecture.model_type} have none, and no setting of its config.json gives them "
            "one. Export an adapter (format adapter), which brings its own."
        )
    return found.flags, found.sizes


def without_bias(edits: Sequence[Edit], architecture: Architecture) -> list[str]:
    """The modules that an affine edit needs a bias of and that have none.

    Raises:
        UserError: an affine edit that acts at one token, or on a mixture of experts.
    """
    rows = [edit for edit in edits if isinstance(edit, RowEdit) and edit.affine]
    if any(edit.at_end and edit.alpha.any() for edit in rows):
        raise UserError(
            "an affine edit with affine_at 'prompt_end' acts at one token of a conversation, which "
            f"no weights and no adapter can do. {EVERYWHERE}"
        )
    bare = []
    for writer in architecture.writers:
        kind = KINDS.index(writer.role)
        if not any(edit.alpha[writer.layer, kind] for edit in rows):
            continue
        if writer.form == "experts":
            raise UserError(
                f"an affine edit needs a bias at what each module writes, and {writer.name} is a "
                "mixture of experts, which has none of its own. Set the weight of such modules "
                "to 0 (weights.modules.mlp), or keep the recipe and run it in the studio."
            )
        if writer.tensors[0].bias is None:
            bare.append(writer.name)
    return bare


def _present(name: str, places: Places, change: Change, model: nn.Module) -> Places:
    """The tensors a parameter is made of, all there and of the right kind."""
    expected = model.get_parameter(name).shape
    if not places or sum(_numbers(stored.shape) for _, stored in places) != expected.numel():
        raise UserError(
            f"{name} is to be changed, and the model's files hold no tensor {list(expected)} of "
            f"that name, nor its experts one by one. {otherwise(name)}"
        )
    for _, stored in places:
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{stored.name} is stored as {stored.dtype}, a quantised form that cannot be "
                f"edited (only {', '.join(DTYPES)} can). {otherwise(name)}"
            )
        for delta, _ in change.deltas:
            shape = (delta.inp, delta.out) if change.last else (delta.out, delta.inp)
            if stored.shape != shape:
                raise UserError(
                    f"the delta of {name} is {list(shape)}, the stored tensor "
                    f"{list(stored.shape)}: it belongs to another model."
                )
    return places


def otherwise(name: str) -> str:
    """What to do with a parameter whose numbers the files do not hold as such, in sentences. No
    adapter can hold a change of experts either, so that their model must be unpacked first."""
    if set(name.split(".")) & set(EXPERTS):
        return (
            "If they are quantised or packed, as gpt-oss is, write an unpacked copy with "
            "transformers (from_pretrained with Mxfp4Config(dequantize=True), then "
            "save_pretrained) and export from that; an adapter cannot change experts."
        )
    return (
        "If they are quantised or packed in another way, export from the original model; or export "
        "an adapter."
    )


def _numbers(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _deltas(
    edits: Sequence[Edit], architecture: Architecture
) -> Iterator[tuple[str, bool, tuple[Scaled, ...]]]:
    """(parameter, output features last, deltas) of every module that gets some."""
    for path, scaled in summed(e for e in edits if isinstance(e, RowDelta)).items():
        module = architecture.matrices.get(path)
        if module is None:
            raise UserError(
                f"the model has no linear module {path!r} that a delta could be added to."
            )
        yield f"{path}.weight", is_conv1d(module), scaled


def _biases(edits: Sequence[Edit], architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
    """(bias, what the deltas add to it) of every module that gets some."""
    for path, scaled in summed(e for e in edits if isinstance(e, RowDelta)).items():
        if (added := bias_of(scaled)) is None:
            continue
        if getattr(architecture.matrices[path], "bias", None) is None:
            raise UserError(
                f"an adapter adds a bias to {path}, which has none in this model, so that its "
                "files cannot hold it. Export an adapter (format adapter) instead."
            )
        yield f"{path}.bias", added


def _ablations(
    edits: Sequence[Edit], architecture: Architecture, located: Located | None = None
) -> Iterator[tuple[Written, tuple[Link, ...]]]:
    """(what writes, its ablations in order) of every writer that some edit changes."""
    rows = [edit for edit in edits if isinstance(edit, RowEdit)]
    for edit in rows:
        layers, hidden = len(architecture.layers), architecture.hidden
        if (edit.directions.layers, edit.directions.hidden) != (layers, hidden):
            raise UserError(
                f"the directions have {edit.directions.layers} layers of {edit.directions.hidden}, "
                f"the model has {layers} of {hidden}: they were measured on another model."
            )
    for writer in architecture.writers:
        kind = KINDS.index(writer.role)
        active = [e for e in rows if not e.on_residual and e.alpha[writer.layer, kind] != 0]
        if not active:
            continue
        gain = stored_gain(writer, located)
        links = []
        for edit in active:
            read, write = through_gain(edit.directions.vectors[writer.layer].float().cpu(), gain)
            alpha, target = float(edit.alpha[writer.layer, kind]), edit.target(writer.layer, kind)
            links.append(Link(read, alpha, edit.norm_preserving, write, target))
        yield from ((written, tuple(links)) for written in writer.tensors)


def stored_gain(writer: Writer, located: Located | None) -> Tensor | None:
    """`writer.gain`; from the files where the architecture is that of a skeleton."""
    gain = writer.gain
    if gain is None or not gain.is_meta or located is None:
        return gain
    assert writer.norm is not None  # where the gain is from
    numbers = {}
    for name, _ in writer.norm.named_parameters():
        places = located.get(f"{writer.norm_name}.{name}", ())
        if len(places) != 1:
            raise UserError(
                f"the files hold no {writer.norm_name}.{name}, whose numbers an edit of "
                f"{writer.name} needs."
            )
        numbers[name] = places[0][0].read(places[0][1]).float()
    return measured_gain(writer.norm, writer.norm_name, writer.written, numbers)


def _shifts(edits: Sequence[Edit], architecture: Architecture) -> Iterator[tuple[str, Tensor]]:
    """(bias, what is subtracted) of every layer that an activation addition shifts."""
    for edit in edits:
        if not isinstance(edit, RowEdit) or edit.operation != "add":
            continue
        for layer, shift in enumerate(edit.shifts().tolist()):
            if not shift:
                continue
            writer = architecture.writer(layer, "mlp")
            bias = writer.tensors[0].bias if writer.form != "experts" else None
            if bias is None or writer.norm is not None or architecture.model_type not in PLAIN_ENDS:
                why = "has no bias" if bias is None else "is not the last thing in its layer"
                raise UserError(
                    "operation 'add' shifts the residual stream after each layer, which only a "
                    f"bias of what the layer writes last can hold, and {writer.name} "
                    f"({architecture.model_type}) {why}. Use operation 'ablate' for what you "
                    "export, or keep the recipe and run it in the studio."
                )
            yield bias, shift * edit.directions.vectors[layer, 0].float().cpu()


def _tied(model: "PreTrainedModel") -> tuple[str | None, str]:
    """The names of the head's weight, where the configuration ties it to the embedding, and of the
    embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
    tied = head is not None and getattr(head, "weight", None) is embedding.weight
    return names[id(head)] if tied else None, names[id(embedding)]
