"""What one would write without the studio: two models, `generate`, and a pass for every choice.

Prompts are token lists, so that every way reads the same ones, and answers are written by the same
tokenizer.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.methods import edit
from sst_ui.maths.directions import Directions
from sst_ui.model.architecture.discover import discover
from sst_ui.model.inference.batch import left_padded
from sst_ui.model.runtime.host import Host
from sst_ui.recipe import WeightTable

Answers = list[list[str]]  # of the base and of the edited model, one per prompt


class Plain:
    """The base and the edited model, each with weights of its own and no hooks.

    Args:
        folder: of the model.
        host: the studio's copy of it: which device and dtype, how tokens become text.
        directions, strength: of the edit in the second model's weights.
    """

    def __init__(self, folder: Path, host: Host, directions: Directions, strength: float) -> None:
        self.host = host
        self.models = [
            AutoModelForCausalLM.from_pretrained(
                folder, dtype=host.model.dtype, local_files_only=True
            )
            .to(host.device)
            .eval()
            .requires_grad_(False)
            for _ in range(2)
        ]
        with torch.no_grad():
            edit(discover(self.models[1]), directions, WeightTable(strength=strength))

    def loop(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """One `generate` a prompt."""
        return [
            [self._generated(model, [prompt], tokens)[0] for prompt in prompts]
            for model in self.models
        ]

    def batch(self, prompts: Sequence[Sequence[int]], tokens: int) -> Answers:
        """One `generate` a model, all prompts in it, padded on the left."""
        return [self._generated(model, prompts, tokens) for model in self.models]

    def choices(
        self, prompts: Sequence[Sequence[int]], letters: Sequence[Sequence[int]]
    ) -> list[list[int]]:
        """The likeliest choice of each question: a row a choice, the rows of a question together.

        Args:
            letters: the tokens that stand for a question's choices, one a choice.
        """
        asked = list(zip(prompts, letters, strict=True))
        return [[self._likeliest(model, *question) for question in asked] for model in self.models]

    def _generated(self, model, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
        batch = left_padded(prompts, self.host.pad, self.host.device)
        whole = model.generate(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=sorted(self.host.stop),
            pad_token_id=self.host.pad,
        )
        return [self._text(row) for row in whole[:, batch.ids.shape[1] :]]

    def _text(self, row: Tensor) -> str:
        """The answer up to the token that ended it."""
        ids = row.tolist()
        end = next((i for i, token in enumerate(ids) if token in self.host.stop), len(ids))
        return self.host.decode(ids[:end]).strip()

    def _likeliest(self, model, prompt: Sequence[int], letters: Sequence[int]) -> int:
        ids = torch.tensor([[*prompt, letter] for letter in letters], device=self.host.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=2).logits[:, 0]  # [choices, vocabulary]
        likelihoods = logits.float().log_softmax(-1).gather(1, ids[:, -1:])  # [choices, 1]
        return int(likelihoods.argmax())
