"""Three ways to get from a slider to an edited model, behind one small interface.

Each way has `change(strength)`, after which `first_token(prompt)` answers with the new edit.
"""

import gc
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from transformers.utils.logging import disable_progress_bar

from sst_ui.maths import kernel
from sst_ui.maths.directions import Directions
from sst_ui.model.architecture.discover import Architecture, discover
from sst_ui.model.hooks.live_edits import RowEdit
from sst_ui.model.inference.batch import forward, left_padded
from sst_ui.model.runtime.host import Host
from sst_ui.recipe import KINDS, WeightTable

disable_progress_bar()  # a bar belongs on no stopwatch


class Live:
    """The studio's way: new numbers become a plan, the weights stay as they are."""

    def __init__(self, host: Host, directions: Directions) -> None:
        self.host, self.directions = host, directions
        self.row: tuple[RowEdit, ...] = ()
        self.plan = None

    def change(self, strength: float) -> None:
        alpha = kernel.table(WeightTable(strength=strength), self.host.layers)
        self.row = (RowEdit(self.directions, alpha),)
        self.plan = self.host.live.compile([self.row])

    def first_token(self, prompt: Sequence[int]) -> Tensor:
        """[vocabulary] logits of the token after the prompt."""
        batch = left_padded([prompt], self.host.pad, self.host.device)
        return forward(self.host, batch, self.plan, keep=1)[0, -1]


class Rewrite:
    """Write the edit into the resident weights, from copies of the originals.

    At its best: only cells that are edited are copied, restored and written.
    """

    def __init__(self, model, directions: Directions) -> None:
        self.model, self.directions = model, directions
        self.architecture = discover(model)
        self.originals: dict[str, Tensor] = {}

    def change(self, strength: float) -> None:
        self.write(WeightTable(strength=strength))

    def write(self, weights: WeightTable) -> None:
        """The same for a whole table of weights."""
        with torch.no_grad():
            for writer in self.architecture.writers:
                if writer.name in self.originals:
                    writer.module.weight.copy_(self.originals[writer.name])
            edit(self.architecture, self.directions, weights, keep=self.originals)

    def first_token(self, prompt: Sequence[int]) -> Tensor:
        """[vocabulary] logits of the token after the prompt."""
        return _answer(self.model, prompt)


class Reload:
    """Load the weights from disk again and edit them; the base stays in memory to compare with."""

    def __init__(self, folder: Path, dtype: torch.dtype, device, directions: Directions) -> None:
        self.folder, self.dtype, self.device = folder, dtype, device
        self.directions = directions
        self.model = None

    def change(self, strength: float) -> None:
        self.model = None
        gc.collect()
        model = AutoModelForCausalLM.from_pretrained(
            self.folder, dtype=self.dtype, local_files_only=True
        )
        self.model = model.to(self.device).eval().requires_grad_(False)
        with torch.no_grad():
            edit(discover(self.model), self.directions, WeightTable(strength=strength))

    def first_token(self, prompt: Sequence[int]) -> Tensor:
        """[vocabulary] logits of the token after the prompt."""
        return _answer(self.model, prompt)


def edit(
    architecture: Architecture,
    directions: Directions,
    weights: WeightTable,
    keep: dict[str, Tensor] | None = None,
) -> None:
    """W' = W - alpha r (r W) in place; originals of what is edited go into `keep`."""
    alpha = kernel.table(weights, len(architecture.layers))
    for writer in architecture.writers:
        weight = writer.module.weight  # [out, in]
        amount = float(alpha[writer.layer, KINDS.index(writer.role)])
        if amount == 0:
            continue
        if keep is not None and writer.name not in keep:
            keep[writer.name] = weight.detach().clone()
        r = directions.vectors[writer.layer, 0].to(weight)
        weight.addr_(r, r @ weight, alpha=-amount)


def _answer(model, prompt: Sequence[int]) -> Tensor:
    ids = torch.tensor([list(prompt)], device=model.device)
    with torch.inference_mode():
        return model(input_ids=ids, logits_to_keep=1).logits[0, -1]


def random_qwen2(folder: Path, tokenizer_folder: Path, dtype: torch.dtype) -> None:
    """Save a randomly initialised Qwen2 of half a billion parameters, in the shape of Qwen2.5-0.5B.

    The tokenizer is a small one from another folder: its ids are valid, and the text does not
    matter to a clock.
    """
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    config = Qwen2Config(
        hidden_size=896,
        num_hidden_layers=24,
        intermediate_size=4864,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151_936,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
