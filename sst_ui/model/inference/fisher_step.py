"""One step of the Fisher pass: a batch forward and back, and what hooks on its modules add up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from sst_ui.model.hooks.row_plan import by_rows
from sst_ui.model.inference.batch import Batch, Row, arguments, left_padded
from sst_ui.model.runtime.host import Host
from sst_ui.recipe import Fisher as Mode

Where = Literal["response", "all"]
Conversation = tuple[Sequence[int], Sequence[int]]  # tokens of the prompt, tokens of the response
Bases = Mapping[str, tuple[Tensor, Tensor]]  # path -> U [out, q] and R [in, p] on its device
Sums = dict[str, dict[str, Tensor | float]]  # path -> name of a moment -> sum over tokens

WIDE = 64  # directions
SINKS = 1  # tokens at the start of a text: every head looks at them, whatever they say


class Step:
    """One forward pass, and one backward if gradients are wanted, over a few conversations.

    Args:
        where: which tokens count, see `fisher.moments`.
    """

    def __init__(self, host: Host, conversations: Sequence[Conversation], where: Where) -> None:
        self.host, self.conversations = host, conversations
        # The last token of a response is predicted but never read.
        texts = [[*prompt, *response][:-1] for prompt, response in conversations]
        self.batch: Batch = left_padded(texts, host.pad, host.device)
        self.keep = max(len(response) for _, response in conversations)
        length = self.batch.ids.shape[1]
        column = torch.arange(length, device=host.device)
        self.lengths = lengths = [len(response) for _, response in conversations]
        sizes = torch.tensor(lengths, device=host.device)[:, None]
        self.predicts = column >= length - sizes  # [rows, length] output predicts the response
        self.decides = column == length - sizes  # the last token of each prompt
        counted = self.predicts if where == "response" else self.batch.mask.bool()
        self.counted = counted & (self.batch.positions >= SINKS)

    def run(
        self,
        bases: Bases,
        shift: Row,
        mode: Mode,
        dice: Sequence[torch.Generator] | None,
    ) -> Sums:
        """The sums of every module, on its device.

        Args:
            shift: edits under which the model computes.
            dice: a random stream per conversation to draw labels from; None for the response's.
        """
        host, gradients = self.host, mode != "input"
        plan = host.live.compile([shift] * len(self.conversations)).ending(self.lengths)
        inputs = arguments(host, self.batch, self.keep)
        # Our hooks exist in our own turn only: nobody else's forward pass can meet them.
        with host.step(plan), torch.inference_mode(not gradients):
            with start_of_graph(host, gradients) as start, self._collecting(bases, mode) as sums:
                with torch.set_grad_enabled(gradients):
                    logits = host.model(**inputs, use_cache=False).logits[:, -self.keep :]
                    if gradients:
                        torch.autograd.grad(self._log_p(logits, dice), start)
        for path, (_, r) in bases.items():
            found = sums[path].get("a")
            if mode != "block" and spans(r) and isinstance(found, Tensor):
                sums[path]["a"] = r.to(found).mT @ found @ r.to(found)
        return sums

    def watch(self, shift: Row, hooks: Mapping[str, Callable], edited: bool = False) -> None:
        """One forward pass with forward hooks (module path -> hook) and nothing else.

        Args:
            edited: hooks see what a module writes with its edits, not what its own weights write.
                None of them may be on the head, of which one column is computed.
        """
        plan = self.host.live.compile([shift] * len(self.conversations)).ending(self.lengths)
        with self.host.step(plan), torch.inference_mode(), ExitStack() as stack:
            for path, hook in hooks.items():
                module = self.host.architecture.matrices[path]
                handle = module.register_forward_hook(hook, prepend=not edited)
                stack.callback(handle.remove)
            keep = 1 if edited else self.keep
            self.host.model(**arguments(self.host, self.batch, keep), use_cache=False)

    def _log_p(self, logits: Tensor, dice: Sequence[torch.Generator] | None) -> Tensor:
        """Log-probability of all labels together; only gradients of it are wanted."""
        total = torch.zeros((), device=logits.device)
        for row, (_, response) in enumerate(self.conversations):
            own = logits[row, -len(response) :]  # what stands before is padding or another's
            logs = own.to(torch.promote_types(own.dtype, torch.float32)).log_softmax(-1)
            if dice is None:
                labels = torch.tensor(response, device=logs.device)
            else:
                labels = draw(logs.detach(), dice[row])
            total = total + logs.gather(-1, labels[:, None]).sum()
        return total

    @contextmanager
    def _collecting(self, bases: Bases, mode: Mode) -> Iterator[Sums]:
        """Hooks on the modules that add up what passes them."""
        sums: Sums = {}
        handles = []
        try:
            for path, (u, r) in bases.items():
                module = self.host.architecture.matrices[path]
                # The head sees the last columns alone, as many as the batch happens to need.
                heads = self.host.architecture.linears.get("lm_head", ())
                counted = self.predicts & self.counted if path in heads else self.counted
                hook = self._hook(u, r, counted, mode, sums.setdefault(path, {}))
                # In front of an ablation: y is what the matrix itself writes.
                handles.append(module.register_forward_hook(hook, prepend=True))
            yield sums
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, u: Tensor, r: Tensor, counted: Tensor, mode: Mode, sums: dict) -> Callable:
        rows = len(self.conversations)
        predicted = int((self.predicts & (self.batch.positions >= SINKS)).sum())
        exact = torch.float32 if self.host.device.type == "mps" else torch.float64

        whole = mode != "block" and spans(
            r
        )  # then A is turned once, in `run`, and no token by itself

        def add(name: str, factors: Tensor) -> None:
            sums[name] = sums.get(name, 0) + (factors.mT @ factors).to(exact)

        def project(values: Tensor, basis: Tensor, turn: bool = True) -> Tensor:
            """[counted tokens, basis] of what a module reads or of a gradient.

            In float64, but for the many directions of a wide core, where it would take most of the
            time and float32 is exact enough for the sum of one batch.
            """
            values = by_rows(values.detach(), rows)
            some = values[counted[:, -values.shape[1] :].to(values.device)]
            some = some.to(torch.promote_types(some.dtype, torch.float32))
            found = some @ basis.to(some) if turn else some
            return found if basis.shape[1] > WIDE else found.to(exact)

        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            x = project(args[0], r, turn=not whole)
            sums["n"] = sums.get("n", 0) + len(x)
            sums["predicted"] = sums.get("predicted", 0) + predicted
            if mode != "nearest":
                add("a", x)
            if mode == "input":
                return

            def backward(gradient: Tensor) -> None:
                delta = project(gradient, u)
                if mode == "nearest":
                    size_x, size_d = (v.to(exact).square().sum(1, True) for v in (x, delta))
                    add("a", x * size_d.sqrt().to(x))
                    add("g", delta * size_x.sqrt().to(delta))
                    for name, sizes in (("d", size_d), ("xd", size_x * size_d)):
                        sums[name] = sums.get(name, 0) + sizes.sum()
                else:
                    add("g", delta)
                if mode == "block":  # vec(δ̃ x̃ᵀ) by rows
                    add("block", (delta[:, :, None] * x[:, None, :]).flatten(1))

            output.register_hook(backward)

        return hook


def spans(r: Tensor) -> bool:
    """Whether an orthonormal basis [in, p] spans all inputs, so that it only turns them."""
    return r.shape[0] == r.shape[1]


@contextmanager
def start_of_graph(host: Host, gradients: bool) -> Iterator[list[Tensor]]:
    """The embeddings as the start of the graph: the only tensor that asks for a gradient."""
    start: list[Tensor] = []

    def begin(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        if not gradients:
            return None
        start.append(output.detach().requires_grad_())
        return start[0].clone()  # a model may write into it

    handle = host.model.get_input_embeddings().register_forward_hook(begin)
    try:
        yield start
    finally:
        handle.remove()


def draw(logs: Tensor, die: torch.Generator) -> Tensor:
    """[tokens] labels from [tokens, vocabulary] log-probabilities, one uniform number per token."""
    total = logs.exp().cumsum(-1)
    uniform = torch.rand(len(logs), 1, generator=die).to(total) * total[:, -1:]
    return torch.searchsorted(total, uniform, right=True)[:, 0].clamp(max=logs.shape[-1] - 1)
