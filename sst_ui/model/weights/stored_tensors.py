"""A model's tensors as they lie in its safetensors files, and which parameter each of them is.

Transformers renames some of what it reads (a prefix, `block_sparse_moe`) and stacks others
(experts).
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.utils import logging

from sst_ui.errors import UserError
from sst_ui.model.load.memory import padded
from sst_ui.model.load.source import META, read_header
from sst_ui.recipe import ModelSpec

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}  # what can be computed with; everything else is packed by some quantisation


@dataclass(frozen=True)
class Stored:
    """One tensor of a file.

    Attributes:
        name: in the file.
        dtype: as safetensors calls it, such as BF16.
        start, end: bytes, counted from the end of the header.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header as it stands and, in the order they lie there, its tensors.

    Attributes:
        header: all bytes before the first tensor, the eight of the length included.
    """

    path: Path
    header: bytes
    tensors: tuple[Stored, ...]

    @property
    def end(self) -> int:
        """Bytes of all tensors."""
        return max((tensor.end for tensor in self.tensors), default=0)

    def read(self, stored: Stored) -> Tensor:
        """The numbers of one of its tensors, in a copy of their own."""
        with self.path.open("rb") as file:
            file.seek(len(self.header) + stored.start)
            raw = bytearray(file.read(stored.bytes))
        return torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).view(stored.shape)

    def entries(self) -> dict:
        """The header as it reads: name -> dtype, shape and offsets, and the file's own notes."""
        return json.loads(self.header[8:])


def read_shard(path: Path) -> Shard:
    """Read a file's header; `source.check_safetensors` has refused what is damaged."""
    header, entries = read_header(path)
    tensors = [
        Stored(name, entry["dtype"], tuple(entry["shape"]), *entry["data_offsets"])
        for name, entry in entries.items()
        if name != META
    ]
    return Shard(path, header, tuple(sorted(tensors, key=lambda tensor: tensor.start)))


def write_header(entries: Mapping[str, object]) -> bytes:
    """The bytes in front of the tensors, filled up with blanks to a multiple of eight."""
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def skeleton(spec: ModelSpec, folder: Path) -> nn.Module:
    """The model without its numbers: every module and parameter, on no device, in no memory."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=spec.trust_remote_code, local_files_only=True
        )
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                padded(config), trust_remote_code=spec.trust_remote_code
            )
    except Exception as error:  # a wrong configuration fails in as many ways as there are models
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the model of {spec.id} cannot be built: {why}") from error
    finally:
        logging.set_verbosity(verbosity)


def check_stored(spec: ModelSpec, folder: Path, weights: Sequence[Path]) -> None:
    """Compare a model's files with its configuration, from their headers alone.

    Raises:
        UserError: two files hold the same tensor; a tensor has another shape than config.json says,
            or is packed while config.json says nothing of a quantisation.
    """
    shards = [read_shard(path) for path in weights]
    where: dict[str, str] = {}
    for shard in shards:
        for stored in shard.tensors:
            if (other := where.setdefault(stored.name, shard.path.name)) != shard.path.name:
                raise UserError(
                    f"{spec.id} holds {stored.name[:120]} twice, in {other} and in "
                    f"{shard.path.name}; it is not clear which is meant."
                )
    model = skeleton(spec, folder)
    if getattr(model.config, "quantization_config", None):
        return
    state = model.state_dict()
    for name, maker, (_, stored) in _renamed(model, shards):
        if name not in state or not state[name].is_floating_point():
            continue
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{spec.id} stores {stored.name[:120]} as {stored.dtype}, a quantised form, and "
                "its config.json does not say which (quantization_config)."
            )
        if maker is None and stored.shape != tuple(state[name].shape):
            raise UserError(
                f"{spec.id} holds {stored.name[:120]} {list(stored.shape)[:8]}, and by its "
                f"config.json it is {list(state[name].shape)}: the two do not belong together."
            )


def locate(model: nn.Module, shards: Sequence[Shard]) -> dict[str, list[tuple[Shard, Stored]]]:
    """Parameter's name -> the stored tensors it is made of: itself, or one for each expert.

    Parameters that are made in another way are missing: what they are cut from or glued together of
    is known to transformers only.

    Args:
        model: of transformers, its skeleton will do.
    """
    found: dict[str, list[tuple[Shard, Stored]]] = {}
    for name, pattern, place in _renamed(model, shards):
        if pattern is None or _stacks(pattern):
            found.setdefault(name, []).append(place)
    return found


def _renamed(
    model: nn.Module, shards: Sequence[Shard]
) -> Iterator[tuple[str, WeightConverter | None, tuple[Shard, Stored]]]:
    """(parameter, what makes it of several, where) of every stored tensor, as loading goes about
    it."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    makers = {source: entry for entry in converters for source in entry.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    for shard in shards:
        for stored in shard.tensors:
            name, source = rename_source_key(stored.name, renamings, converters, prefix, state)
            if name not in state and stored.name in state:
                name, source = stored.name, None
            yield name, makers.get(source), (shard, stored)


def _stacks(maker: WeightConverter) -> bool:
    """Whether it puts one tensor per expert on top of each other and does nothing else."""
    return (
        len(maker.source_patterns) == len(maker.target_patterns) == len(maker.operations) == 1
        and isinstance(maker.operations[0], MergeModulelist)
        and maker.operations[0].dim == 0
    )
