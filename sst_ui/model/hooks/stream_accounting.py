"""The residual stream, layer by layer: what goes in, what comes out, and which module gave it.

An ablation changes what modules *write*. Whether the stream receives just that is for the model to
show, not for names: a few random tokens are run through it once, and what every layer adds must be
the sum of what its writers gave (behind their norms, times a residual multiplier where the family
has one). A layer where the sum does not come out is not edited: a module that the model bypasses, a
bias or a norm that nobody knew of would leave a part of the direction, in the live model, in the
export or in both.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError
from sst_ui.model.architecture.discover import Architecture
from sst_ui.model.architecture.module_roles import Writer, device_of
from sst_ui.model.hooks.row_plan import stream_of, with_stream

Hook = Callable[..., None]  # of a forward pass
Move = Callable[[Tensor], Tensor]

ROWS, TOKENS = 2, 6
# Largest part of what a layer adds that may remain unexplained, beside the rounding of the sums.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
HALF_TOLERANCE = 0.02


@dataclass(eq=False)
class Seen:
    """One layer in one forward pass; all tensors [tokens, d] float64 on the CPU.

    Attributes:
        into: what the layer got.
        gave: what it returned, before any edit of the stream.
        out: what left it, edits included.
        wrote: by role, what the writer computed, before any edit of it.
        written: the same after the edits.
        normed: by role, what the norm behind the writer got and gave.
        calls: by role, how often the writer was called.
        dtype: the coarsest type that the sums were made in.
    """

    into: Tensor | None = None
    gave: Tensor | None = None
    out: Tensor | None = None
    wrote: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, Tensor] = field(default_factory=dict)
    normed: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    @property
    def eps(self) -> float:
        """Relative rounding of that type."""
        return torch.finfo(self.dtype).eps

    def kept(self, x: Tensor) -> Tensor:
        """A copy, and a note of how coarse the original is."""
        if torch.finfo(x.dtype).eps > self.eps:
            self.dtype = x.dtype
        return x.detach().to("cpu", copy=True).double().reshape(-1, x.shape[-1])

    def finite(self) -> "Seen":
        """The same without tokens at which some number is not finite (half precision overflows)."""
        if self.into is None or self.gave is None or self.out is None:
            return self
        beside = [*self.wrote.values(), *self.written.values()]
        beside += [x for pair in self.normed.values() for x in pair]
        every = [self.into, self.gave, self.out, *beside]
        if len({len(x) for x in every}) > 1 or all(bool(x.isfinite().all()) for x in every):
            return self
        rows = torch.stack([x.isfinite().all(-1) for x in every]).all(0)
        return replace(
            self,
            into=self.into[rows],
            gave=self.gave[rows],
            out=self.out[rows],
            wrote={role: x[rows] for role, x in self.wrote.items()},
            written={role: x[rows] for role, x in self.written.items()},
            normed={role: (got[rows], gave[rows]) for role, (got, gave) in self.normed.items()},
        )

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The stream that enters and the one that leaves, of a layer that was called."""
        assert self.into is not None
        assert self.out is not None
        return self.into, self.out

    def given(self, writer: Writer) -> Tensor:
        """What the stream gets of a writer that was called, up to a multiplier: behind its norm."""
        if writer.norm is None:
            return self.written[writer.role]
        return self.normed[writer.role][1]


@dataclass(frozen=True)
class Account:
    """How the layers of a model add up.

    Attributes:
        factors: of each layer, by what the stream ("stream") and the writers (their roles) count in
            what it returns; empty for a layer that does not add up.
        problems: layer -> a sentence that names what does not.
        uncalled: linear modules in the layers that the model does not call.
        error: largest part of what a layer adds that remains unexplained, rounding included.
    """

    factors: tuple[Mapping[str, float], ...]
    problems: Mapping[int, str]
    uncalled: frozenset[str]
    error: float


def tolerance(dtype: torch.dtype) -> float:
    return TOLERANCE.get(dtype, HALF_TOLERANCE)


@torch.no_grad()
def account(architecture: Architecture) -> Account:
    """Run a few random tokens through a model and add its layers up. Costs one short forward pass,
    and one more of every mixture of experts.

    Raises:
        UserError: the model cannot be run.
    """
    found = _Finding(architecture)
    with watched(architecture) as layers, found.watching():
        run_tokens(architecture)
    factors, problems, errors = [], dict(found.mixtures()), [0.0]
    for number, seen in enumerate(seen.finite() for seen in layers):
        writers = [w for w in architecture.writers if w.layer == number]
        problem = (
            problems.get(number)
            or found.foreign(writers)
            or _missing(seen, writers, architecture.layer_names[number])
        )
        fit: dict[str, float] = {}
        if not problem:
            fit, error = _fit(seen, writers)
            errors.append(error)
            problem = "" if fit else found.reason(number, seen, writers, error)
        factors.append(fit)
        if problem:
            problems[number] = problem
    matrices = {n for n in architecture.matrices if 0 <= architecture.layer_of(n) < len(layers)}
    return Account(tuple(factors), problems, frozenset(matrices - found.called), max(errors))


def run_tokens(architecture: Architecture, rows: int = ROWS) -> None:
    """A forward pass of the decoder over a few random tokens, without a cache.

    Raises:
        UserError: it fails.
    """
    draw = torch.Generator().manual_seed(0)
    try:
        embedding = architecture.decoder.get_input_embeddings()
        ids = torch.randint(embedding.weight.shape[0], (rows, TOKENS), generator=draw)
        ids = ids.to(device_of(embedding))
        architecture.decoder(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise UserError(
            f"the weights of this {architecture.model_type} leave no memory for {TOKENS} tokens; "
            "free some, or load it quantised."
        ) from error
    except Exception as error:  # a family can fail in any way
        raise UserError(
            f"this {architecture.model_type} cannot be run over {TOKENS} tokens: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


@contextmanager
def watched(architecture: Architecture) -> Iterator[list[Seen]]:
    """What the forward pass inside does to the stream, a `Seen` for every layer."""
    layers = [Seen() for _ in architecture.layers]
    handles = []
    for seen, layer in zip(layers, architecture.layers, strict=True):
        handles += _watch_layer(seen, layer)
    for writer in architecture.writers:
        handles += _watch_writer(layers[writer.layer], writer)
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def _watch_layer(seen: Seen, layer: nn.Module) -> list:
    def into(_module: nn.Module, args: Any, kwargs: Any) -> None:
        stream = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(stream, Tensor):
            seen.into = seen.kept(stream)

    def gave(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.gave = seen.kept(stream_of(output))

    def out(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.out = seen.kept(stream_of(output))

    return [
        layer.register_forward_pre_hook(into, with_kwargs=True),
        layer.register_forward_hook(gave, prepend=True),
        layer.register_forward_hook(out),
    ]


def _watch_writer(seen: Seen, writer: Writer) -> list:
    role = writer.role

    def wrote(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.calls[role] = seen.calls.get(role, 0) + 1
        seen.wrote[role] = seen.kept(stream_of(output))

    def written(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.written[role] = seen.kept(stream_of(output))

    def normed(_module: nn.Module, args: Any, output: Any) -> None:
        seen.normed[role] = (seen.kept(args[0]), seen.kept(output))

    module = writer.module
    handles = [
        module.register_forward_hook(wrote, prepend=True),
        module.register_forward_hook(written),
    ]
    if writer.norm is not None:
        handles.append(writer.norm.register_forward_hook(normed))
    return handles


def _missing(seen: Seen, writers: list[Writer], layer: str) -> str:
    """What of a layer was not seen at all, in a sentence; '' for nothing."""
    for writer in writers:
        if not (calls := seen.calls.get(writer.role, 0)):
            return (
                f"the model does not call {writer.name}: it uses its weight in another way, "
                "which edits do not reach."
            )
        if calls > 1:
            return f"the model calls {writer.name} {calls} times in one pass."
        if not len(seen.wrote[writer.role]):
            return f"{writer.name} writes numbers that are not finite; load it in another type."
        if not _close(seen.wrote[writer.role], seen.written[writer.role], seen.eps):
            return f"a hook changes what {writer.name} writes, which no weights would hold."
        if writer.norm is None:
            continue
        try:
            _ = writer.gain
        except UserError as error:
            return str(error)
        got = seen.normed.get(writer.role)
        want = seen.written[writer.role]
        if got is None or got[0].shape != want.shape or not _close(got[0], want, seen.eps):
            return f"{writer.norm_name} does not get what {writer.name} writes."
    if seen.into is None or seen.out is None or seen.into.shape != seen.out.shape:
        return f"{layer} does not return a residual stream of the shape that it gets."
    for writer in writers:
        if seen.given(writer).shape != seen.out.shape:
            return f"{writer.name} writes another shape than {layer} returns."
    return ""


def _close(a: Tensor, b: Tensor, eps: float) -> bool:
    return bool(((a - b).abs() <= 4 * eps * b.abs().max()).all())


def _fit(seen: Seen, writers: list[Writer]) -> tuple[dict[str, float], float]:
    """The factors by which stream and writers make up what a layer returns, {} for none that do,
    and the part of what is added that they leave unexplained."""
    names = ["stream", *(w.role for w in writers)]
    into, out = seen.ends
    parts = torch.stack([into, *(seen.given(w) for w in writers)])  # [1 + writers, tokens, d]
    rounding = seen.eps * (parts.abs().sum(0) + out.abs())
    limit = tolerance(seen.dtype)

    def unexplained(factors: Tensor) -> float:
        weighed = parts * factors[:, None, None]
        rest = (out - weighed.sum(0)).abs() - rounding
        size = weighed[1:].sum(0).norm()
        return float(rest.clamp_min(0).norm() / size.clamp_min(1e-30))

    ones = torch.ones(len(parts), dtype=torch.float64)
    if (error := unexplained(ones)) <= limit:
        return dict.fromkeys(names, 1.0), error
    # Every number counts by how exactly it is known: a few features of a stream are far larger.
    weight = 1 / (rounding + seen.eps * rounding.mean() + 1e-300)
    columns = (parts * weight).flatten(1).mT
    factors = torch.linalg.lstsq(columns, (out * weight).flatten()[:, None]).solution[:, 0]
    fitted = unexplained(factors) if bool(factors.isfinite().all()) else error
    if fitted <= limit and bool((factors.abs() > 1e-6).all()):
        return dict(zip(names, factors.tolist(), strict=True)), fitted
    return {}, min(error, fitted)


class _Finding:
    """What is looked at beside the stream in the pass that adds the layers up."""

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.called: set[str] = set()
        self._changes: dict[int, list[tuple[str, str, str]]] = {}  # (module, its class, writer)
        self._foreign: dict[str, float] = {}  # writer -> how far off its weight and bias it is
        self._blocks: dict[int, tuple[tuple, dict, Tensor]] = {}  # mixtures: arguments, output

    @contextmanager
    def watching(self) -> Iterator[None]:
        architecture, handles = self.architecture, []
        for name, module in architecture.matrices.items():
            handles.append(module.register_forward_hook(self._call(name)))
        for number, (layer, where) in enumerate(
            zip(architecture.layers, architecture.layer_names, strict=True)
        ):
            last: dict[str, Tensor] = {}
            writers = [w for w in architecture.writers if w.layer == number]
            own = {id(m) for w in writers for m in (w.module, w.norm) if m is not None}
            for writer in writers:
                handles.append(writer.module.register_forward_hook(self._keep(last, writer)))
                if writer.form == "experts":
                    handles.append(
                        writer.module.register_forward_hook(self._block(number), with_kwargs=True)
                    )
            for name, module in layer.named_modules():
                if id(module) not in own and not any(module.children()):
                    hook = self._follow(last, number, f"{where}.{name}")
                    handles.append(module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _call(self, name: str) -> Hook:
        return lambda *_: self.called.add(name)

    def _keep(self, last: dict[str, Tensor], writer: Writer) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            last[writer.name] = y = stream_of(output)
            weight = getattr(module, "weight", None)
            if writer.form == "experts" or writer.quantized or weight is None or weight.is_meta:
                return
            weight = weight.mT if writer.form == "conv1d" else weight
            own = nn.functional.linear(
                args[0].to(weight.dtype), weight, getattr(module, "bias", None)
            ).float()
            error = (own - y.float()).norm() / own.norm().clamp_min(1e-30)
            if own.isfinite().all() and not error <= max(
                tolerance(y.dtype), 4 * torch.finfo(y.dtype).eps
            ):
                self._foreign[writer.name] = float(error)

        return hook

    def foreign(self, writers: list[Writer]) -> str:
        """Which writer computes something that its weight and bias do not say; '' for none."""
        for writer in writers:
            if writer.name in self._foreign:
                return (
                    f"{writer.name} ({type(writer.module).__name__}) does not compute what its "
                    f"weight and bias say (it is {self._foreign[writer.name]:.2g} off), so edited "
                    "weights would not reproduce the edit."
                )
        return ""

    def _block(self, number: int) -> Hook:
        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._blocks[number] = (args, kwargs, stream_of(output).clone())

        return hook

    def _follow(self, last: dict[str, Tensor], number: int, name: str) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            got = args[0] if args else None
            if not isinstance(got, Tensor) or not isinstance(output, Tensor):
                return
            for writer, y in last.items():
                same = got is y or (got.shape == y.shape and torch.equal(got, y))
                if same and not (got.shape == output.shape and torch.equal(got, output)):
                    change = (name, type(module).__name__, writer)
                    self._changes.setdefault(number, []).append(change)

        return hook

    def reason(self, number: int, seen: Seen, writers: list[Writer], error: float) -> str:
        """Why a layer does not add up, in a sentence."""
        layer = self.architecture.layer_names[number]
        beginning = (
            f"{error:.2g} of what {layer} adds to the residual stream is not what "
            f"{' and '.join(w.name for w in writers)} write"
        )
        if changes := self._changes.get(number):
            name, kind, writer = changes[-1]
            return f"{beginning}: {name} ({kind}) changes the output of {writer}."
        into, out = seen.ends
        rest = out - into - sum((seen.given(w) for w in writers), torch.zeros_like(out))
        constant = rest.mean(0)
        if (rest - constant).norm() <= 1e-3 * rest.norm():
            return f"{beginning}: {self._bias(number, constant)} is added at every token."
        return f"{beginning}; where the rest comes from is unknown."

    def _bias(self, number: int, constant: Tensor) -> str:
        layer = self.architecture.layer_names[number]
        for name, parameter in self.architecture.layers[number].named_parameters():
            here = parameter.shape == constant.shape and not parameter.is_meta
            if here and torch.allclose(parameter.double().cpu(), constant, rtol=1e-2, atol=1e-5):
                return f"{layer}.{name}"
        return "a constant"

    def mixtures(self) -> Iterator[tuple[int, str]]:
        """(layer, sentence) of every mixture whose output is not linear in what its experts write:
        then edited experts (the export) and an edited output (the live model) differ."""
        for number, (args, kwargs, before) in self._blocks.items():
            writer = self.architecture.writer(number, "mlp")
            draw = torch.Generator().manual_seed(number)
            mask = torch.randint(0, 2, before.shape[-1:], generator=draw).to(before)

            def moved(y: Tensor, mask: Tensor = mask) -> Tensor:
                """Linear, and it goes through neither a norm nor a scale per feature."""
                return y.roll(1, -1) * mask

            def hook(_module: nn.Module, _args: Any, output: Any, moved: Move = moved) -> Any:
                return with_stream(output, moved(stream_of(output)))

            names = [tensor.name.removeprefix(f"{writer.name}.") for tensor in writer.tensors]
            inner = {writer.module.get_submodule(name.rpartition(".")[0]) for name in names}
            handles = [module.register_forward_hook(hook, prepend=True) for module in inner]
            try:
                after = stream_of(writer.module(*args, **kwargs))
            finally:
                for handle in handles:
                    handle.remove()
            wanted = moved(before)
            error = float((after - wanted).double().norm() / before.double().norm())
            if not error <= max(tolerance(before.dtype), 4 * torch.finfo(before.dtype).eps):
                yield (
                    number,
                    f"something in {writer.name} changes what its experts write before it reaches "
                    f"the residual stream ({error:.2g} of it), so edited experts would not "
                    "reproduce the edit.",
                )
