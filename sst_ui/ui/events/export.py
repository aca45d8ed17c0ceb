"""Export and push: the applied recipe is written, with progress, cancel and verification.

The panel's look and its folders are in `ui.panels.export`.
"""

import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.jobs.export.export import Export
from sst_ui.jobs.export.push import push as publish
from sst_ui.metrics.result_files import stem
from sst_ui.metrics.results import MetricResult
from sst_ui.progress import Progress
from sst_ui.recipe import Recipe
from sst_ui.ui.events.binding import MANY, PRIVATE, Reads, call, together
from sst_ui.ui.panels import export as export_panel
from sst_ui.ui.panels.export import RANKED, ROUNDED, SETTINGS, SMALL, Done, ExportPanel, Wanted
from sst_ui.ui.panels.session import Session
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import message, told
from sst_ui.ui.services.roles import Actor, Role, asks, current
from sst_ui.ui.state.loaded_model import Loaded
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.run_store import Shelf, shared
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.inputs import HIDDEN, visibility
from sst_ui.ui.widgets.texts import say

JOB: dict[str, Any] = {**PRIVATE, "concurrency_id": "exports", "concurrency_limit": MANY}


def connect(panel: ExportPanel, board: Reads, session: Session, engine: Engine) -> None:
    """Wire the Export panel."""
    settling = call(
        partial(settle, panel), session.language, session.variants, together(panel.settings)
    )
    looks = [panel.hint, panel.rounding, panel.rank, panel.folder, panel.command]
    buttons = [panel.status, panel.cancel, panel.export, panel.push]
    for control in (*panel.settings, panel.what):  # `what` is another recipe
        control.change(**settling, outputs=looks, trigger_mode="always_last", **PRIVATE)
    panel.export.click(
        **call(
            partial(export, panel, engine),
            board, session.loaded, session.runs, panel.done, together(panel.settings),
            check=partial(_wrong, panel), may="export",
        ),
        outputs=[*buttons, panel.done, panel.download],
        **JOB,
    )  # fmt: skip
    panel.push.click(
        **call(
            partial(push, panel, engine),
            session.language, panel.done, panel.repo, panel.private,
            check=partial(_bad_repo, panel.repo), may="export",
        ),
        outputs=buttons,
        **JOB,
    )  # fmt: skip
    panel.cancel.click(
        **call(partial(stop, engine), session.language), outputs=panel.cancel, **PRIVATE
    )


def settle(panel: ExportPanel, language: str, variants: Variants, settings: tuple) -> dict:
    """Settings that the format has, its sentence, and the command."""
    recipe = variants.now.recipe if variants.now else Recipe()
    try:
        wanted = Wanted.of(*settings)
    except UserError:  # said at its control when the button is pressed
        return {panel.command: ""}
    return {
        panel.hint: export_panel.hinted(language, wanted.format),
        panel.rounding: gr.update(visible=wanted.format in ROUNDED),
        panel.rank: gr.update(visible=wanted.format in RANKED),
        panel.folder: gr.update(placeholder=f"{stem(recipe)}-{wanted.format}"),
        panel.command: export_panel.command(recipe, wanted),
    }


def _wrong(
    panel: ExportPanel, board: Board, loaded: Loaded, rows: list, earlier: Done, settings: tuple
) -> dict:
    """What is wrong with which setting."""
    recipe = board.variants.now.recipe if board.variants.now else Recipe()
    controls = dict(zip(SETTINGS, panel.settings, strict=True))
    return {
        controls[name]: message(UserError(text), board.language)
        for name, text in export_panel.problems(settings, recipe).items()
    }


def export(
    panel: ExportPanel,
    engine: Engine,
    board: Board,
    loaded: Loaded,
    rows: list,
    earlier: Done,
    settings: tuple,
    request: gr.Request,
) -> Iterator[dict]:
    """Write the applied recipe, and offer it as one file where it is small."""
    stopped = engine.begin(job_runner.name("export", request))
    lang, wanted = board.language, Wanted.of(*settings)
    if board.variants.now is None:
        yield {panel.status: notice(say(lang, "export.nothing"), "bad")}
        return
    recipe = board.variants.now.recipe
    earlier.remove()
    hidden = gr.update(visible=HIDDEN)
    yield {panel.status: "", panel.done: Done(), panel.download: hidden, **_busy(panel)}
    try:
        out = wanted.place(recipe)
        if shared():
            out = Path(tempfile.mkdtemp(prefix="export-", dir=disk.temporary())) / out.name
        job = engine.export(
            loaded.key, recipe, out, wanted.format, rounding=wanted.rounding, rank=wanted.rank,
            verify=wanted.verify, results=_results(engine, board, rows),
        )  # fmt: skip
        done = yield from _watched(panel, lang, job, stopped)
        small = done.bytes <= SMALL
        packed = export_panel.archive(done.folder, out.name) if small else None
    except Exception as error:
        yield {panel.status: told(error, lang), **_idle(panel)}
        return
    yield {
        panel.status: report(lang, recipe, done),
        panel.done: Done(done.folder, recipe.digest(), shared(), packed),
        panel.download: gr.update(value=str(packed) if packed else None, visible=visibility(small)),
        **_idle(panel),
    }


def _results(engine: Engine, board: Board, rows: list) -> Sequence[MetricResult]:
    """The card's metrics: this window's, else those of an earlier run."""
    if board.now:
        return board.now
    if board.variants.now is None:
        return ()
    digest = board.variants.now.recipe.digest()
    with suppress(UserError):
        for record in Shelf.of(engine.history, rows).list(digest):
            if record.digest == digest and record.metrics:
                return record.results()
    return ()


def push(
    panel: ExportPanel,
    engine: Engine,
    language: str,
    done: Done,
    repo: str,
    private: bool,
    request: gr.Request,
    token: gr.OAuthToken | None,
) -> Iterator[dict]:
    """Send the export to the Hub: with a visitor's own token, else with the user's.

    Where others can come in, the token of this program is its owner's and never used: visitors sign
    in, or cannot push at all.
    """
    if token is None and shared():
        key = "hub.sign_in" if export_panel.access() == "oauth" else "hub.shared"
        yield {panel.status: notice(say(language, key), "bad")}
        return
    stopped = engine.begin(job_runner.name("export", request))
    try:
        if done.folder is None:
            raise UserError(say(language, "hub.nothing"))
        mine = None if token is None else token.token
        # who gives a token of their own has signed in, whatever the page knew before
        who = current() if token is None else Actor(Role.SIGNED_IN)
        job = asks("push", lambda: who)(publish)(
            done.folder, repo.strip(), private=private, token=mine
        )
        sent = yield from _watched(panel, language, job, stopped)
    except Exception as error:
        yield {panel.status: told(error, language), **_idle(panel)}
        return
    text = say(language, "hub.private_done" if sent.private else "hub.public_done", url=sent.url)
    more = [f"{done.digest} · {sent.commit}"]
    yield {panel.status: notice(text, "good", more), **_idle(panel)}


def _bad_repo(box: gr.Textbox, language: str, done: Done, repo: str | None, private: bool) -> dict:
    """What is wrong with the repository's name."""
    try:
        export_panel.check_repo((repo or "").strip())
    except UserError as error:
        return {box: message(error, language)}
    return {}


def stop(engine: Engine, language: str, request: gr.Request) -> dict:
    """Ask the running job to stop; it says the rest when it has ended."""
    engine.stop(job_runner.name("export", request))
    return gr.update(interactive=False)


def _watched(
    panel: ExportPanel,
    language: str,
    job: Generator[Progress, None, Any],
    stopped: Callable[[], bool],
) -> Generator[dict, None, Any]:
    """Drive a job under its bar; the result comes back from `yield from`."""
    return job_runner.watched(
        language, job, lambda shown: {panel.status: shown, **_busy(panel)}, stopped=stopped
    )


def _busy(panel: ExportPanel) -> dict:
    return {
        panel.cancel: gr.update(visible=True, interactive=True),
        panel.export: gr.update(interactive=False),
        panel.push: gr.update(interactive=False),
    }


def _idle(panel: ExportPanel) -> dict:
    return {
        panel.cancel: gr.update(visible=HIDDEN),
        panel.export: gr.update(interactive=True),
        panel.push: gr.update(interactive=True),
    }


def report(language: str, recipe: Recipe, done: Export) -> str:
    """What was written, how large it is and where, in a line; what to know, under it.

    A visitor's folder is the studio's own and nothing to look for: there it is a download.
    """
    text = say(
        language,
        "export.done" if shared() else "export.where",
        digest=recipe.digest(),
        size=f"{done.bytes / 1e6:,.1f} MB",
        seconds=done.seconds,
        folder=done.folder,
    )
    checked, tone = done.verification, "good"
    more = [*done.notes]
    if checked is not None:
        key = "export.verified" if checked.ok else "export.differs"
        key = "export.unverified" if checked.problem else key
        text += " " + say(language, key, same=checked.same_answers, count=checked.prompts)
        tone = "good" if checked.ok else "bad"
        more.insert(len(more) - len(done.notes), checked.summary())
    return notice(text, tone, more)
