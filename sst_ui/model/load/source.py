"""Where a model's files are, and whether they are ones we load: a folder, the Hub, or the demo.

Everything that can be refused without fetching the weights is refused here.
"""

import json
import os
import re
import shutil
import struct
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants
from safetensors import SafetensorError, safe_open

from sst_ui import reach
from sst_ui.errors import UserError, line_of
from sst_ui.model.load import hub
from sst_ui.paths import DEMO
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS = (".safetensors", ".safetensors.index.json")
SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "chat_template*")
LFS = b"version https://git-lfs"  # what a clone without Git LFS holds instead of the weights
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
ADAPTER = "adapter_config.json"
META = "__metadata__"
NAMED = "transformers_weights"  # of config.json: the weight file, or the index, to take
# Files of a distributed checkpoint, which transformers takes before any other.
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
# What reading a header that is none may raise.
HEADERS = (
    struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError,
)  # fmt: skip
LARGEST = 1 << 27  # bytes of a JSON file; the index of the largest models has a hundredth of it


@dataclass(frozen=True)
class Source:
    """A model's files, present or on the Hub.

    Attributes:
        name: how the screen calls it.
        folder: where it is, or None while it is on the Hub only.
        files: name -> size in bytes (0 where the Hub does not say).
        commit: on the Hub, the commit the revision stands for.
    """

    spec: ModelSpec
    name: str
    folder: Path | None
    files: Mapping[str, int]
    commit: str | None = None

    def read(self, name: str) -> dict:
        """One of the small JSON files, fetched if need be."""
        path = self.folder / name if self.folder else hub.fetch(self.spec.id, name, self.commit)
        try:
            if (size := Path(path).stat().st_size) > LARGEST:
                raise ValueError(f"{size:,} bytes are too many")
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{name} of {self.name} cannot be read: {line_of(error)}") from error
        if not isinstance(data, dict):
            raise UserError(f"{name} of {self.name} is not a JSON object.")
        return data

    def entry(self) -> str | None:
        """The file that leads to the weights: the only one, or the index of several; None without.

        The rule is that of transformers' `from_pretrained`: what config.json names, else the single
        file, else the index. Whoever needs a model's weights asks here or `weights`, so that what
        is loaded, exported and identified is the same.
        """
        named = None
        if "config.json" in self.files and any(name.endswith(KINDS) for name in self.files):
            named = self.read("config.json").get(NAMED)
        if named is not None:
            if named not in list(self.files) or not named.endswith(KINDS):
                raise UserError(
                    f"config.json of {self.name} sets {NAMED} to {str(named)[:80]!r}, which is not "
                    "a safetensors file of its folder, nor the index of several."
                )
            return named
        return next((name for name in (SINGLE, INDEX) if name in self.files), None)

    def weights(self) -> list[str]:
        """Names of the safetensors files that hold the weights (see `entry`).

        Raises:
            UserError: there are none, or the index is no index.
        """
        if (entry := self.entry()) is None:
            raise UserError(f"{self.name} has no weights: neither {SINGLE} nor {INDEX} is there.")
        return _shards(self.read(entry), entry, self.name) if entry.endswith(".json") else [entry]

    def download(self) -> Generator[Progress, None, Path]:
        """Fetch what is missing (bytes as progress) and return the folder."""
        if self.folder is None:
            patterns = (*SETTINGS, *(("*.py",) if self.spec.trust_remote_code else ()))
            names = [n for n in self.files if any(fnmatch(n, p) for p in patterns)]
            names = [n for n in names if "/" not in n or n.endswith(".jinja")]
            names += [n for n in self.weights() if n not in names]
            total = sum(self.files.get(name, 0) for name in names)
            _check_disk(total)
            done = 0
            for name in names:
                yield Progress("download", done, total, name)
                path = Path(hub.fetch(self.spec.id, name, self.commit))
                done += self.files.get(name, 0)
            yield Progress("download", total, total)
            folder = path.parents[len(Path(name).parts) - 1]
        else:
            folder = self.folder
        for name in self.weights():
            check_safetensors(folder / name)
        return folder


def open_source(spec: ModelSpec) -> Source:
    """Find a model and refuse what cannot be loaded, before any weights are fetched.

    Raises:
        UserError: not found, not reachable, an adapter, pickled weights, or no model at all.
    """
    if not spec.id.strip():
        raise UserError("no model given; give a Hub id, a folder, or 'demo'.")
    source = find_files(spec)
    _check(source)
    return source


def find_files(spec: ModelSpec, kind: str = "config.json") -> Source:
    """The files under an id, whatever they are.

    Args:
        kind: the file that a folder of this kind holds, for messages.

    Raises:
        UserError: not found or not reachable.
    """
    return _folder(spec, kind) if is_local(spec.id) else _remote(spec)


def is_local(model: str) -> bool:
    """Whether an id means a folder: `demo`, anything that looks like a path, or that exists."""
    return (
        model == "demo"
        or model.startswith(("/", "./", "../", "~", "\\"))
        or model[1:3] in (":\\", ":/")  # C:\models
        or os.path.exists(model)  # False, too, for what no file can be called
    )


def _folder(spec: ModelSpec, kind: str) -> Source:
    shown = line_of(ascii(spec.id)[1:-1] if not spec.id.isprintable() else spec.id)
    if spec.id != "demo":
        reach.check(spec.id)
    try:
        folder = DEMO if spec.id == "demo" else Path(spec.id).expanduser().resolve()
        if not os.path.exists(folder):
            raise UserError(
                f"the folder {shown} does not exist; give a folder, a Hub id, or 'demo'."
            )
        if not folder.is_dir():
            raise UserError(f"{shown} is a file; give the folder that holds {kind}.")
        return Source(spec, "demo" if folder == DEMO else folder.name, folder, _sizes(folder))
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no permission, no such user, no name
        why = getattr(error, "strerror", None) or line_of(error)
        raise UserError(f"the folder {shown} cannot be read: {why}.") from error


def _remote(spec: ModelSpec) -> Source:
    listing = hub.list_files(spec.id, spec.revision)
    if isinstance(listing, Path):  # no network, but an earlier download is there
        return Source(spec, spec.id, listing, _sizes(listing), listing.name)
    return Source(spec, spec.id, None, *listing)


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def _check(source: Source) -> None:
    """Refuse adapters, pickles and folders that hold no model."""
    files, name = source.files, source.name
    has_weights = "config.json" in files and source.entry() is not None
    if ADAPTER in files and not has_weights:
        base = str(source.read(ADAPTER).get("base_model_name_or_path") or "its base model")[:200]
        raise UserError(
            f"{name} is an adapter, not a model; load {base} and add this one as an adapter."
        )
    if ADAPTER in files:  # transformers would put it into the model without a word
        raise UserError(
            f"{name} holds a model and an adapter ({ADAPTER}), so that it is not clear which of "
            "the two is meant. Move the adapter's files to a folder of their own and add it there."
        )
    if found := [file for file in files if DISTRIBUTED.fullmatch(file)]:
        raise UserError(
            f"{name} holds a distributed checkpoint ({found[0]}), which is not loaded here; "
            "save the model once more with save_pretrained(folder)."
        )
    if "config.json" not in files:
        gguf = (
            " GGUF files are for other programs." if any(n.endswith(".gguf") for n in files) else ""
        )
        raise UserError(
            f"{name} has no config.json, so it is not a transformers model.{gguf} "
            "Give the folder or Hub id of the original model."
        )
    if not has_weights:
        pickles = sorted(n for n in files if any(fnmatch(n, p) for p in PICKLES))
        if pickles:
            raise UserError(
                f"{name} has its weights as pickles only ({pickles[0]}), which can run any code "
                "when opened. Only safetensors are loaded; convert it once, where you trust the "
                "file: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)."
            )
        others = [n for n in sorted(files) if n.endswith(KINDS)]
        there = f", only {others[0]}; rename it if it is the model" if others else ""
        raise UserError(f"{name} has no weights: neither {SINGLE} nor {INDEX} is there{there}.")
    missing = [shard for shard in source.weights() if shard not in files]
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} of its weight files ({missing[0]}); fetch it again."
        )


def _shards(index: dict, entry: str, name: str) -> list[str]:
    """The files that an index names."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not isinstance(index.get("metadata"), dict):
        raise UserError(
            f"{entry} of {name} is not a valid index: it needs the objects metadata and weight_map "
            "(tensor: file). Fetch it again, or save the model once more."
        )
    strange = [v for v in places.values() if not isinstance(v, str) or Path(v).name != v]
    if strange or any(not shard.endswith(".safetensors") for shard in places.values()):
        shown = str(strange[0] if strange else next(iter(places.values())))[:80]
        raise UserError(
            f"{entry} of {name} names {shown!r}, which is not a safetensors file of its folder."
        )
    return sorted(set(places.values()))


def read_header(path: Path) -> tuple[bytes, dict]:
    """The header of a safetensors file: its bytes, the eight of the length included, and what they
    say: name -> dtype, shape and offsets, and under `META` the file's own notes.

    Raises:
        OSError: the file cannot be read.
        ValueError, struct.error: it has no such header.
    """
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start)
        if not 0 < length <= path.stat().st_size - 8:
            raise ValueError("header longer than the file")
        header = start + file.read(length)
    return header, json.loads(header[8:])


def check_safetensors(path: Path) -> None:
    """Whether a file is what its header says; its tensors are not read.

    Raises:
        UserError: the file is cut off, damaged, no safetensors file, or cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise UserError(
                    f"{path.name} is a Git LFS pointer, not the weights; run `git lfs pull` there."
                )
        header, entries = read_header(path)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != META]
        expected = len(header) + max(ends, default=0)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {error.strerror}.") from error
    except HEADERS as error:
        raise UserError(
            f"{path.name} is damaged or not a safetensors file: {line_of(error)}."
        ) from error
    if size < expected:
        raise UserError(f"{path.name} is cut off: {size:,} of {expected:,} bytes; fetch it again.")
    try:
        with safe_open(path, "pt"):  # looks at every name, type, shape and offset
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path.name} is damaged or not a safetensors file: {str(error)[:200]}."
        ) from error


def _check_disk(needed: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"the download needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on disk."
        )
