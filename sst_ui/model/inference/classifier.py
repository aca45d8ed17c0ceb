"""A text classifier of transformers: loaded as safely as any model, asked in batches."""

import logging
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from sst_ui.errors import UserError
from sst_ui.model.inference.batch import out_of_memory, too_little_memory
from sst_ui.model.load.devices import SEVERAL, free_memory, roomiest_gpu
from sst_ui.model.load.load import contents, identity, read_model
from sst_ui.model.load.memory import Report, dtype_for, read_config, size
from sst_ui.model.load.source import Source, open_source
from sst_ui.progress import Progress, finish
from sst_ui.recipe import ModelSpec

HEAD = "ForSequenceClassification"
LENGTH = 1024  # tokens of a text that are read at most, also by models that could read more
TOKENS = {"cpu": 2048, "other": 16384}  # padded tokens of a batch

log = logging.getLogger(__name__)

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Classifier:
    """A loaded classifier.

    Attributes:
        name: as the user gave it.
        labels: what its outputs are called, in their order.
        exclusive: whether exactly one label holds (softmax), or each for itself (sigmoid).
        length: tokens of a text that it reads; the rest is cut off.
        identity: twelve hex digits of everything that changes its outputs.
    """

    name: str
    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    exclusive: bool
    length: int
    identity: str

    @property
    def takes_pairs(self) -> bool:
        """Whether the tokenizer puts something between the texts of a pair."""
        special = self.tokenizer.num_special_tokens_to_add
        return special(pair=True) > special(pair=False)

    def probabilities(self, texts: Sequence[Text]) -> Generator[Progress, None, Tensor]:
        """Ask about texts, or pairs of texts.

        Returns:
            [texts, labels] float32 on the CPU.

        Raises:
            UserError: not even one text fits the memory.
        """
        result = torch.empty(len(texts), len(self.labels))
        encoded = [self._encode(text) for text in texts]
        lengths = [len(row["input_ids"]) for row in encoded]
        waiting = sorted(range(len(texts)), key=lambda i: lengths[i], reverse=True)
        device = self.model.device
        budget = TOKENS["cpu" if device.type == "cpu" else "other"]
        most = len(texts) if self.tokenizer.pad_token_id is not None else 1
        while waiting:
            longest = max(1, lengths[waiting[0]])
            chunk = waiting[: max(1, min(budget // longest, most))]
            yield Progress("judge", len(texts) - len(waiting), len(texts))
            try:
                result[chunk] = self._forward([encoded[i] for i in chunk])
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise too_little_memory(longest) from error
                most = len(chunk) // 2  # and stay there: the next batch is no smaller
            else:
                waiting = waiting[len(chunk) :]
                continue
            if device.type == "cuda":  # after the error is gone, and with it what it held
                torch.cuda.empty_cache()
        yield Progress("judge", len(texts), len(texts))
        return result

    def _encode(self, text: Text) -> dict[str, list[int]]:
        first, second = (text, None) if isinstance(text, str) else text
        return self.tokenizer(first, second, truncation=True, max_length=self.length)

    def _forward(self, rows: list[dict[str, list[int]]]) -> Tensor:
        if len(rows) == 1:
            batch = {name: torch.tensor([values]) for name, values in rows[0].items()}
        else:
            batch = self.tokenizer.pad({k: [row[k] for row in rows] for k in rows[0]}, True)
            batch = {name: torch.tensor(values) for name, values in batch.items()}
        batch = {name: values.to(self.model.device) for name, values in batch.items()}
        with torch.inference_mode():
            logits = self.model(**batch).logits.float()  # [rows, labels]
        return (logits.softmax(-1) if self.exclusive else logits.sigmoid()).cpu()


def load_classifier(name: str, device: str = "auto") -> Classifier:
    """Load a text classifier by Hub name or folder: safetensors only, no code of its own.

    Args:
        device: as for models; `auto` is the accelerator if it fits there, else the CPU.

    Raises:
        UserError: not there, pickles only, no classification head, damaged, or too large.
    """
    spec = ModelSpec(id=name, device=device)
    source = open_source(spec)
    config = read_config(spec, source)
    if found := [a for a in config.architectures or () if not a.endswith(HEAD)]:
        raise UserError(
            f"{name} is not a text classifier ({found[0]}); a judge is a model for text "
            f"classification, whose config.json names a class that ends in {HEAD}."
        )
    folder = finish(source.download())
    report = _place(spec, source, config)
    model, tokenizer, warnings = read_model(
        spec, folder, report, AutoModelForSequenceClassification
    )
    for warning in warnings:
        log.warning(warning)
    # decoders find a row's last token by this number, so both have to mean the same; where neither
    # knows one, texts go one by one
    if tokenizer.pad_token_id is None and model.config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    several = model.config.problem_type == "multi_label_classification"
    return Classifier(
        name=name,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        labels=tuple(labels),
        exclusive=len(labels) > 1 and not several,
        length=_length(tokenizer, model.config),
        identity=identity(spec, finish(contents(folder, source.weights())), "", report.dtype),
    )


def _place(spec: ModelSpec, source: Source, config: PreTrainedConfig) -> Report:
    """Where it goes: beside the resident model, which keeps its place."""
    stored = sum(source.files.get(name, 0) for name in source.weights())
    device, free = free_memory(spec.device)
    if device == SEVERAL:
        device, free = roomiest_gpu()
    if spec.device == "auto" and 2 * stored > free:
        device, free = free_memory("cpu")
    if stored > free:
        raise UserError(
            f"{spec.id} does not fit: its weights are {size(stored)}, and {size(free)} are free "
            f"on {device}. Free some, or give a smaller classifier."
        )
    dtype = str(dtype_for(spec, config, device)).removeprefix("torch.")
    kind = (config.architectures or [HEAD])[0]
    return Report(0, stored, 0, kind, dtype, device, free)


def _length(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> int:
    """Tokens of a text that fit the model."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
    if config.model_type in ("roberta", "xlm-roberta", "camembert", "distilroberta"):
        positions -= (config.pad_token_id or 0) + 1  # they count from behind the padding token
    return int(min(LENGTH, positions, tokenizer.model_max_length or math.inf))
