"""Where a model's files are, and whether they are ones we load: a folder, the Hub, or the demo.

Knows file names, sizes and headers. Does not know tensors or architectures. Everything that can be
refused without fetching the weights is refused here.
"""

import json
import os
import shutil
import struct
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants

from sst_ui.errors import UserError, line_of
from sst_ui.model import hub
from sst_ui.paths import DEMO
from sst_ui.progress import Progress
from sst_ui.recipe import ModelSpec

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SETTINGS = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "chat_template*")
LFS = b"version https://git-lfs"  # what a clone without Git LFS holds instead of the weights
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


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
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{name} of {self.name} cannot be read: {line_of(error)}") from error
        if not isinstance(data, dict):
            raise UserError(f"{name} of {self.name} is not a JSON object.")
        return data

    def weights(self) -> list[str]:
        """Names of the safetensors files that hold the weights."""
        if INDEX in self.files:
            return sorted(set(self.read(INDEX).get("weight_map", {}).values()))
        return [SINGLE]

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
        or os.path.exists(model)  # False for what cannot be a path; Path.exists would raise
    )


def _folder(spec: ModelSpec, kind: str) -> Source:
    folder = DEMO if spec.id == "demo" else Path(os.path.expanduser(spec.id)).resolve()
    if not os.path.exists(folder):
        raise UserError(f"the folder {spec.id} does not exist; give a folder, a Hub id, or 'demo'.")
    if not folder.is_dir():
        raise UserError(f"{spec.id} is a file; give the folder that holds {kind}.")
    return Source(spec, "demo" if folder == DEMO else folder.name, folder, _sizes(folder))


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
    has_weights = SINGLE in files or INDEX in files
    if "adapter_config.json" in files and not ("config.json" in files and has_weights):
        base = source.read("adapter_config.json").get("base_model_name_or_path") or "its base model"
        raise UserError(
            f"{name} is an adapter, not a model; load {base} and add this one as an adapter."
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
        raise UserError(f"{name} has no weights: neither {SINGLE} nor {INDEX} is there.")
    missing = [shard for shard in source.weights() if shard not in files]
    if missing:
        raise UserError(
            f"{name} lacks {len(missing)} of its weight files ({missing[0]}); fetch it again."
        )


def check_safetensors(path: Path) -> None:
    """Compare a file's length with what its header says: a cut-off download is found at once.

    Raises:
        UserError: the file is cut off, or no safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS:
                raise UserError(
                    f"{path.name} is a Git LFS pointer, not the weights; run `git lfs pull` there."
                )
            file.seek(0)
            (length,) = struct.unpack("<Q", file.read(8))
            if not 0 < length <= size - 8:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        ends = [entry["data_offsets"][1] for k, entry in header.items() if k != "__metadata__"]
    except UserError:
        raise
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError,
            RecursionError) as error:  # fmt: skip
        raise UserError(f"{path.name} is damaged or no safetensors file: {error}.") from error
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise UserError(f"{path.name} is cut off: {size:,} of {expected:,} bytes; fetch it again.")


def _check_disk(needed: int) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"the download needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free on disk."
        )
