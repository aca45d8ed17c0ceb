"""Data sets read with the `datasets` library: from the Hugging Face Hub, or from a folder like it.

Code that comes with a data set is never run: the library no longer can.
"""

import re
from itertools import islice
from pathlib import Path
from typing import Any

from sst_ui.data.dataset_spec import Spec
from sst_ui.data.files import Columnar, Records, Table, class_names
from sst_ui.errors import UserError, unknown

LARGE = 2 << 30  # bytes; what is larger is not downloaded as a whole
EXAMPLE = "'demo/harmful'"

# Asking the Hub takes seconds, and a set is loaded at every change of a form that names it.
_builders: dict[tuple[str, str, str], Any] = {}


def open_split(spec: Spec, split: str | None = None, rows: int | None = None) -> Table:
    """The rows of a split.

    Args:
        split: in place of the spec's, for worked examples.
        rows: only the first so many, without downloading the rest where that is possible.

    Raises:
        UserError: not reachable, unknown id, configuration or split, gated, nothing in it, or more
            than LARGE bytes to download for a split that is not sliced.
    """
    wanted = split or spec.split
    if spec.slice and split is None and "+" not in wanted:
        wanted = f"{wanted}[{spec.slice.strip('[]')}]"
    try:
        return _open(spec, wanted, rows)
    except UserError:
        raise
    except Exception as error:  # whatever the library, the file formats or the network raise
        raise UserError(f"{_reason(spec, error)} {_instead(spec)}") from error


def _open(spec: Spec, wanted: str, rows: int | None) -> Table:
    builder = _builder(spec)
    wanted = _known_split(spec, builder, wanted)
    prepared = Path(builder.cache_dir).exists()
    size = builder.info.download_size or 0
    sliced = re.fullmatch(r"([^\[\]+]+)(?:\[(\d*):(\d*)\])?", wanted)
    if spec.hub and not prepared and sliced and (rows is not None or (size > LARGE and sliced[3])):
        first = int(sliced[2] or 0)
        last = int(sliced[3]) if sliced[3] else None
        if rows is not None:
            last = first + rows if last is None else min(last, first + rows)
        return _streamed(spec, builder, sliced[1], first, last)
    if spec.hub and not prepared and size > LARGE:
        raise UserError(
            f"{spec.title} is a download of {size / 2**30:.1f} GiB; take a part of it, such as"
            f" split={re.split(r'[+[]', wanted)[0]}[:1000]."
        )
    builder.download_and_prepare(verification_mode="no_checks")  # cards are often out of date
    wanted = _known_split(spec, builder, wanted)
    split = (builder.info.splits or {}).get(wanted.partition("[")[0])
    whole = split.num_examples if split is not None and "+" not in wanted else None
    dataset = builder.as_dataset(split=wanted)
    if spec.slice and "+" in wanted:  # of all that is joined, not of the last one
        part = spec.bounds(len(dataset))
        dataset, whole = dataset.select(part), len(dataset)
    if rows is not None:
        dataset = dataset.select(range(min(rows, len(dataset))))
    return Columnar(f"{spec.title} {wanted}", dataset, whole=whole)


def _streamed(spec: Spec, builder: Any, split: str, first: int, last: int | None) -> Table:
    """Rows first..last over the network, without the rest of the data set."""
    stream = builder.as_streaming_dataset(split=split)
    records = list(islice(stream.skip(first), None if last is None else last - first))
    columns = tuple(stream.column_names or dict.fromkeys(k for r in records for k in r))
    splits = builder.info.splits or {}
    return Records(
        f"{spec.title} {split}",
        columns,
        records,
        range(first + 1, first + 1 + len(records)),
        "row",
        whole=splits[split].num_examples if split in splits else None,
        labels=class_names(stream.features),
    )


def _builder(spec: Spec) -> Any:
    """What the library knows about a data set before its rows."""
    if not spec.hub:
        return _load_builder(spec)
    key = (spec.place, spec.config, spec.revision)
    if key not in _builders:
        _reachable(spec)
        _builders[key] = _load_builder(spec)
    return _builders[key]


def _load_builder(spec: Spec) -> Any:
    from datasets import get_dataset_config_names, load_dataset_builder  # takes a second

    revision = spec.revision or None
    place = located(spec)
    try:
        return load_dataset_builder(place, spec.config or None, revision=revision)
    except ValueError as error:
        if earlier := re.search(
            r"find cache for .*Available configs in the cache: (.*)", said(error)
        ):
            raise UserError(
                f"{_unreachable(spec)} The earlier download here has other configurations:"
                f" {earlier[1]}. {_instead(spec)}"
            ) from error
        if "onfig" not in str(error):
            raise
        names = get_dataset_config_names(place, revision=revision)
        if spec.config:
            raise unknown(f"configuration of {spec.title}", spec.config, names) from error
        raise UserError(
            f"{spec.title} has several configurations; say which, such as ?config={names[0]}."
            f" Known: {', '.join(names)}."
        ) from error


def located(spec: Spec) -> str:
    """What the library is asked for: the id, or the folder."""
    return spec.place if spec.hub else str(Path(spec.place).resolve())


def _known_split(spec: Spec, builder: Any, wanted: str) -> str:
    """The split to read: the one that was asked for, or the only one; checked where known."""
    names = list(builder.info.splits or builder.config.data_files or ())
    if not wanted.partition("[")[0] and names:
        if len(names) > 1:
            raise UserError(
                f"{spec.title} has several splits; say which, such as ?split={names[0]}."
                f" Known: {', '.join(names)}."
            )
        return f"{names[0]}{wanted}"
    for part in wanted.split("+"):
        if names and (name := part.partition("[")[0].strip()) not in (*names, "all"):
            raise unknown(f"split of {spec.title}", name, names)
    return "+".join(part.strip() for part in wanted.split("+"))


def _reachable(spec: Spec) -> None:
    """Ask the Hub once, briefly: the library itself retries for half a minute.

    Raises:
        UserError: the Hub cannot be reached and no earlier download is here.
    """
    from datasets import config
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if Path(located(spec)).is_dir():
        return
    try:
        HfApi().dataset_info(spec.place, revision=spec.revision or None, timeout=10)
    except OfflineModeIsEnabled:
        return  # the library says so itself at once, if it has no earlier download
    except HfHubHTTPError:
        raise
    except Exception as error:
        earlier = Path(config.HF_DATASETS_CACHE) / spec.place.replace("/", "___")
        if not earlier.exists():
            raise UserError(f"{_unreachable(spec)} {_instead(spec)}") from error


def said(error: BaseException) -> str:
    """The message of an error of others, on one line and not too long."""
    return " ".join(str(error).split())[:300]


def _reason(spec: Spec, error: Exception) -> str:
    """One sentence for an error of the library, the Hub or the network."""
    message = said(error)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "gated" in message or "GatedRepoError" in kinds:
        return (
            f"the data set {spec.title} is gated: accept its terms at https://huggingface.co/"
            f"datasets/{spec.place} and log in with `hf auth login` (or set HF_TOKEN)."
        )
    if spec.revision and ("RevisionNotFoundError" in kinds or "Revision" in message):
        return f"the data set {spec.title} has no revision {spec.revision!r}."
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return (
            f"there is no data set {spec.title} on the Hugging Face Hub (or it is private: log in"
            " with `hf auth login`); check the id."
        )
    if kinds & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return f"{spec.title} holds no files that can be read as a data set."
    network = ("httpx", "httpcore", "requests", "urllib3", "aiohttp", "fsspec")
    if (
        kinds & {"ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
        or type(error).__module__.split(".")[0] in network
    ):
        return _unreachable(spec)
    if "scripts are no longer supported" in message:
        return f"{spec.title} comes as a program, and programs of data sets are not run."
    if "corresponds to no data" in message:
        return f"the split {spec.split!r} of {spec.title} selects no rows."
    cause = error.__cause__ if kinds & {"DatasetGenerationError"} and error.__cause__ else error
    return f"cannot read {spec.title}: {said(cause).rstrip('.')}."


def _unreachable(spec: Spec) -> str:
    return (
        f"the data set {spec.title} is not on this machine and the Hugging Face Hub cannot be"
        " reached."
    )


def _instead(spec: Spec) -> str:
    """The way that needs no network."""
    if not spec.hub:
        return "Give a folder as it is on the Hub, or one .jsonl, .csv or .parquet file."
    file = f"{spec.preset}?file=FILE.parquet" if spec.preset else "FILE.parquet?prompt=COLUMN"
    file += "&shots_file=FILE.parquet" if spec.shots else ""
    return (
        f"Instead, fetch it elsewhere and give its file (.jsonl, .csv or .parquet) or folder, such"
        f" as {file}; or use a set that comes with the studio, such as {EXAMPLE}."
    )
