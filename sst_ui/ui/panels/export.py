"""The Export panel: what the applied recipe becomes, where it goes, and the same as a command.

What happens on a click is in `ui.events.export`.
"""

import os
import shlex
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
from huggingface_hub import get_token
from huggingface_hub.utils import validate_repo_id

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.metrics.result_files import stem
from sst_ui.model.weights.staged_folder import MANIFEST
from sst_ui.options import VERIFIED, ExportOptions
from sst_ui.paths import output_dir
from sst_ui.program import program
from sst_ui.recipe import Recipe
from sst_ui.schema import setting
from sst_ui.ui.state.merge_form import whole
from sst_ui.ui.state.run_store import LIFE, shared
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.inputs import HIDDEN, Dropdown, Number, Radio
from sst_ui.ui.widgets.names import shown_name
from sst_ui.ui.widgets.texts import say, t

SETTINGS = ("format", "rounding", "rank", "verify", "folder")  # in the panel's order
SOUND = {**vars(ExportOptions()), "rank": 0, "folder": ""}
SMALL = 256_000_000  # bytes of an export that is offered as one download
ROUNDED, RANKED = ("model", "gguf"), ("adapter", "mergekit")  # formats with that setting


@dataclass(frozen=True)
class Done:
    """A finished export of a window; `temporary` folders are the studio's to remove."""

    folder: Path | None = None
    digest: str = ""
    temporary: bool = False
    archive: Path | None = None

    def remove(self) -> None:
        """Remove what is the studio's own; the user's folders stay."""
        for path in (self.archive, self.folder if self.temporary else None):
            if path is not None:
                shutil.rmtree(path.parent, ignore_errors=True)


@dataclass(frozen=True)
class ExportPanel:
    what: gr.HTML
    format: gr.Dropdown
    hint: gr.HTML
    rounding: gr.Radio
    rank: gr.Number
    verify: gr.Number
    folder: gr.Textbox
    export: gr.Button
    cancel: gr.Button
    status: gr.HTML
    download: gr.DownloadButton
    command: gr.Textbox
    hub: gr.Column
    repo: gr.Textbox
    private: gr.Checkbox
    push: gr.Button
    done: gr.State = field(repr=False)

    @property
    def settings(self) -> list:
        """Inputs of every handler that needs to know what was asked for (see `Wanted`)."""
        return [self.format, self.rounding, self.rank, self.verify, self.folder]


@dataclass(frozen=True)
class Wanted(ExportOptions):
    """The settings as the controls say them, checked; an empty folder is named after the recipe."""

    folder: str = ""

    @classmethod
    def of(cls, format: Any, rounding: Any, rank: Any, verify: Any, folder: Any) -> "Wanted":
        """From the values of `ExportPanel.settings`.

        Raises:
            UserError: a number that cannot be, an unknown format or rounding.
        """
        setting("export.format").check(format)
        setting("export.rounding").check(rounding)
        rank = whole("export.rank", rank) or None if format in RANKED else None
        rounding = rounding if format in ROUNDED else cls.rounding
        return cls(format, rounding, rank, whole("export.verify", verify), (folder or "").strip())

    def place(self, recipe: Recipe) -> Path:
        """The folder, below the outputs.

        Raises:
            UserError: a name that leads elsewhere.
        """
        root = output_dir().absolute()
        name = Path(self.folder or f"{stem(recipe)}-{self.format}")
        path = (root / name).resolve()
        if name.is_absolute() or path == root.resolve() or root.resolve() not in path.parents:
            raise UserError(
                f"the folder {str(name)!r} is not below {root}; give a name such as "
                f"{stem(recipe)}-{self.format}."
            )
        if any(part.startswith(".") for part in name.parts):
            raise UserError(f"the folder {str(name)!r} is hidden; give a name without a dot first.")
        return path


def access() -> str:
    """How this program may push: `oauth` for visitors of a Space, the user's `token`, or ''.

    A Space's own token is its owner's, and never a visitor's to use.
    """
    if shared():
        return "oauth" if os.environ.get("OAUTH_CLIENT_ID") and _can_sign_in() else ""
    return "token" if get_token() else ""


def _can_sign_in() -> bool:
    """Whether what `gradio[oauth]` brings is there, as it is on a Space with `hf_oauth: true`."""
    return all(find_spec(name) is not None for name in ("authlib", "itsdangerous"))


def create() -> ExportPanel:
    with gr.Column(elem_id="export", min_width=220):
        gr.HTML(t("export.title"), elem_classes="title")
        what = gr.HTML(elem_id="export-what")
        usual = ExportOptions()
        format = Dropdown(
            [(t(f"format.{name}"), name) for name in setting("export.format").choices],
            value=usual.format,
            label=t("export.format"),
            elem_id="export-format",
        )
        hint = gr.HTML(hinted("en", usual.format), elem_id="export-hint", elem_classes="hint")
        with gr.Row(elem_classes="pair"):
            rounding = Radio(
                [(t(f"rounding.{name}"), name) for name in setting("export.rounding").choices],
                value=usual.rounding,
                label=t("export.rounding"),
                elem_id="export-rounding",
                visible=False,
            )
            rank = Number(0, label=t("export.rank"), elem_id="export-rank", min_width=90)
            verify = Number(
                VERIFIED, label=t("export.verify"), elem_id="export-verify", min_width=90
            )
        folder = gr.Textbox(
            "", label=t("export.folder"), max_lines=1, elem_id="export-folder",
            visible=not shared(),
        )  # fmt: skip
        with gr.Row(elem_id="export-buttons"):
            export = gr.Button(
                t("export.run"), size="sm", variant="primary", elem_id="run-export", min_width=90
            )
            cancel = gr.Button(
                t("cancel"), size="sm", variant="stop", elem_id="cancel-export", visible=HIDDEN,
                min_width=70,
            )  # fmt: skip
            download = gr.DownloadButton(
                t("export.download"), size="sm", elem_id="download-export", visible=HIDDEN,
                min_width=90,
            )  # fmt: skip
        status = gr.HTML(elem_id="export-status")
        command = gr.Textbox(
            "", label=t("export.command"), interactive=False, buttons=["copy"], lines=2,
            elem_id="export-command",
        )  # fmt: skip
        hub, repo, private, push = _hub()
        done = gr.State(
            Done(), time_to_live=LIFE if shared() else None, delete_callback=Done.remove
        )
    return ExportPanel(
        what, format, hint, rounding, rank, verify, folder, export, cancel, status, download,
        command, hub, repo, private, push, done,
    )  # fmt: skip


def _hub() -> tuple[gr.Column, gr.Textbox, gr.Checkbox, gr.Button]:
    """What is needed to push; hidden without a token."""
    with gr.Column(visible=bool(access()), elem_id="hub") as hub:
        if access() == "oauth":
            gr.LoginButton(size="sm", elem_id="hub-login")
        repo = gr.Textbox(
            "", label=t("hub.repo"), placeholder=t("hub.name"), max_lines=1, elem_id="hub-repo"
        )
        with gr.Row(elem_id="hub-buttons"):
            private = gr.Checkbox(True, label=t("hub.private"), elem_id="hub-private")
            push = gr.Button(t("hub.push"), size="sm", elem_id="push", min_width=90)
    return hub, repo, private, push


def hinted(language: str, format: str) -> str:
    """What a format is and what it needs, in a sentence."""
    return safe(say(language, f"format.{format}.what"))


def told(language: str, applied: Recipe | None, draft: Recipe) -> str:
    """Which recipe would be exported: the applied one, whatever the controls say since."""
    if applied is None:
        return safe(say(language, "export.nothing"))
    name = safe(shown_name(language, applied.name) or applied.digest())
    text = f"<b>{name}</b> <code>{applied.digest()}</code>"
    if applied.digest() != draft.digest():
        text += f"<br>{safe(say(language, 'export.dirty'))}"
    return text


def command(recipe: Recipe, wanted: Wanted) -> str:
    """The exact command that does the same without a screen, `recipe.yaml` being downloaded."""
    try:
        path = wanted.place(recipe)
    except UserError:
        return ""
    if shared():
        path = Path("outputs") / path.name
    elif path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    words = ["export", "recipe.yaml", "--format", wanted.format, "--out", str(path)]
    for name in ("rounding", "rank", "verify"):
        value = getattr(wanted, name)
        words += [f"--{name}", str(value)] if value != getattr(ExportOptions, name) else []
    return f"{program()} {shlex.join(words)}"


def problems(settings: Sequence, recipe: Recipe) -> dict[str, str]:
    """Control -> what is wrong with it.

    Args:
        settings: the values of `ExportPanel.settings`.
    """
    given, sound = dict(zip(SETTINGS, settings, strict=True)), dict(SOUND)
    found = {}
    for name, value in given.items():
        try:
            Wanted.of(**{**sound, name: value})
            sound[name] = value
        except UserError as error:
            found[name] = str(error)
    try:
        path = Wanted.of(**sound).place(recipe)
        if not shared() and path.exists() and (path.is_file() or any(path.iterdir())):
            raise UserError(f"{path.name} is there already; give another name.")
    except (UserError, OSError) as error:
        found["folder"] = str(error)
    return found


def check_repo(name: str) -> None:
    """Raises UserError for what the Hub would not take as a repository's name."""
    try:
        validate_repo_id(name)
    except ValueError as error:
        raise UserError(f"{name!r} is not a valid repository name: write USER/NAME.") from error


def archive(folder: Path, name: str) -> Path:
    """The folder as one zip file, in a temporary place of its own."""
    path = Path(tempfile.mkdtemp(prefix="export-", dir=disk.temporary())) / f"{name}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:  # weights do not get smaller
        for item in sorted(folder.rglob("*")):
            if item.is_file() and item.name != MANIFEST:  # that is about this place
                file.write(item, f"{name}/{item.relative_to(folder).as_posix()}")
    return path
