"""What goes with a model beside its weights: tokenizer, chat template, settings, licence.

These files are copied byte for byte and not read.
"""

import shutil
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from sst_ui.model.load.chat_template import read_template
from sst_ui.model.load.source import ADAPTER, SETTINGS, open_source
from sst_ui.progress import finish
from sst_ui.recipe import ModelSpec

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
NOT = ("*.index.json", ADAPTER, "README*", "requirements*.txt")
CONFIG, TEMPLATE = "config.json", "chat_template.jinja"


def carry(spec: ModelSpec, out: Path, config: bool = True) -> tuple[str, ...]:
    """Copy what goes with a model into a folder. What is there already stays as it is.

    Args:
        spec: the model; a chat template of the user's own is written as the folder's.
        config: config.json and custom code too, which an adapter must not have.

    Returns:
        Names of the files copied now.

    Raises:
        UserError: the model cannot be found.
    """
    source = open_source(spec)
    folder = source.folder or finish(source.download())
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    copied = []
    if spec.chat_template is not None and not (out / TEMPLATE).exists():
        text = read_template(spec.chat_template)
        (out / TEMPLATE).write_text(text, encoding="utf-8", newline="")
        copied.append(TEMPLATE)
    for name in names(folder, config):
        if not (out / name).exists():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out / name)
            copied.append(name)
    return tuple(copied)


def names(folder: Path, config: bool = True) -> Iterator[str]:
    """Names of the files in a model's folder that go with it."""
    patterns = (*SETTINGS, *LICENCES, *(("*.py",) if config else ()))
    for path in sorted([*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja")]):
        name = path.relative_to(folder).as_posix()
        wanted = any(fnmatch(path.name, pattern) for pattern in patterns)
        if not path.is_file() or not wanted or any(fnmatch(path.name, p) for p in NOT):
            continue
        if config or path.name != CONFIG:
            yield name
