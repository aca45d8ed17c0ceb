"""Export and push: the applied recipe is written, with progress, cancel and verification.

The panel's look and its folders are in `ui.panels.export`.
"""

import tempfile
from contextlib import suppress
from pathlib import Path

import gradio as gr

from sst_ui import disk
from sst_ui.errors import UserError
from sst_ui.jobs.export.push import push as publish
from sst_ui.metrics.result_files import stem
from sst_ui.recipe import Recipe
from sst_ui.ui.panels import export as export_panel
from sst_ui.ui.panels.export import RANKED, ROUNDED, SETTINGS, SMALL, Done, Wanted
from sst_ui.ui.services import job_runner
from sst_ui.ui.services.engine import Engine
from sst_ui.ui.services.errors import guarded, message, told
from sst_ui.ui.state.results_board import Board
from sst_ui.ui.state.run_store import Shelf, shared
from sst_ui.ui.state.window import Variants
from sst_ui.ui.widgets.html import notice
from sst_ui.ui.widgets.texts import say

PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
JOB = {**PRIVATE, "concurrency_id": "exports", "concurrency_limit": 2}


def connect(studio, engine: Engine) -> None:
    """Wire the Export panel."""
    session, panel = studio.session, studio.export
    busy = {
        panel.cancel: gr.update(visible=True, interactive=True),
        panel.export: gr.update(interactive=False),
        panel.push: gr.update(interactive=False),
    }
    idle = {
        panel.cancel: gr.update(visible=False),
        panel.export: gr.update(interactive=True),
        panel.push: gr.update(interactive=True),
    }

    def watched(lang, job, stopped):
        """Drive a job under its bar; the result comes back from `yield from`."""
        return job_runner.watched(
            lang, job, lambda shown: {panel.status: shown, **busy}, stopped=stopped
        )

    @guarded
    def settle(lang, variants: Variants, *settings):
        """Settings that the format has, its sentence, and the command."""
        recipe = variants.now.recipe if variants.now else Recipe()
        try:
            wanted = Wanted.of(*settings)
        except UserError:  # said at its control when the button is pressed
            return {panel.command: ""}
        return {
            panel.hint: export_panel.hinted(lang, wanted.format),
            panel.rounding: gr.update(visible=wanted.format in ROUNDED),
            panel.rank: gr.update(visible=wanted.format in RANKED),
            panel.folder: gr.update(placeholder=f"{stem(recipe)}-{wanted.format}"),
            panel.command: export_panel.command(recipe, wanted),
        }

    def check(lang, variants: Variants, *values):
        """A validator: a message appears at the setting that is wrong."""
        settings = values[-len(panel.settings) :]
        recipe = variants.now.recipe if variants.now else Recipe()
        wrong = export_panel.problems(settings, recipe)
        before = [gr.validate(True, "")] * (2 + len(values) - len(settings))
        return [
            *before,
            *(
                gr.validate(n not in wrong, message(UserError(wrong.get(n, "")), lang))
                for n in SETTINGS
            ),
        ]

    def results(board: Board, recipe: Recipe, rows) -> tuple:
        """The card's metrics: this window's, else those of an earlier run."""
        if board.now:
            return board.now
        with suppress(UserError):
            for record in Shelf.of(engine.history, rows).list(recipe.digest()):
                if record.digest == recipe.digest() and record.metrics:
                    return record.results()
        return ()

    @guarded
    def export(lang, request: gr.Request, variants: Variants, *values):
        stopped = engine.begin(job_runner.name("export", request))
        cut = len(studio.board) - 2
        board = Board.of(lang, variants, *values[:cut])
        loaded, rows, earlier, *settings = values[cut:]
        wanted: Wanted = Wanted.of(*settings)
        if variants.now is None:
            yield {panel.status: notice(say(lang, "export.nothing"), "bad")}
            return
        recipe = variants.now.recipe
        earlier.remove()
        yield {
            panel.status: "",
            panel.done: Done(),
            panel.download: gr.update(visible=False),
            **busy,
        }
        try:
            out = wanted.place(recipe)
            if shared():
                out = Path(tempfile.mkdtemp(prefix="export-", dir=disk.temporary())) / out.name
            done = yield from watched(
                lang,
                engine.export(
                    loaded.key, recipe, out, wanted.format, rounding=wanted.rounding,
                    rank=wanted.rank, verify=wanted.verify, results=results(board, recipe, rows),
                ),
                stopped,
            )  # fmt: skip
            small = done.bytes <= SMALL
            packed = export_panel.archive(done.folder, out.name) if small else None
        except Exception as error:
            yield {panel.status: told(error, lang), **idle}
            return
        yield {
            panel.status: report(lang, recipe, done),
            panel.done: Done(done.folder, recipe.digest(), shared(), packed),
            panel.download: gr.update(value=str(packed) if packed else None, visible=small),
            **idle,
        }

    def send(lang, request, done: Done, repo, private, token):
        stopped = engine.begin(job_runner.name("export", request))
        try:
            if done.folder is None:
                raise UserError(say(lang, "hub.nothing"))
            sent = yield from watched(
                lang, publish(done.folder, repo.strip(), private=private, token=token), stopped
            )
        except Exception as error:
            yield {panel.status: told(error, lang), **idle}
            return
        text = say(lang, "hub.private_done" if sent.private else "hub.public_done", url=sent.url)
        yield {panel.status: notice(text, "good", [f"{done.digest} · {sent.commit}"]), **idle}

    if export_panel.access() == "oauth":

        @guarded
        def push(lang, request: gr.Request, done, repo, private, token: gr.OAuthToken | None):
            """With the visitor's own token; the Space's is never used in its place."""
            if token is None:
                yield {panel.status: notice(say(lang, "hub.sign_in"), "bad")}
                return
            yield from send(lang, request, done, repo, private, token.token)
    else:

        @guarded
        def push(lang, request: gr.Request, done, repo, private):
            """With the user's own token; where others can come in it would be the owner's."""
            if shared():
                yield {panel.status: notice(say(lang, "hub.shared"), "bad")}
                return
            yield from send(lang, request, done, repo, private, None)

    def check_push(lang, done, repo, private):
        try:
            export_panel.check_repo((repo or "").strip())
        except UserError as error:
            return [gr.validate(i != 2, message(error, lang)) for i in range(4)]
        return [gr.validate(True, "")] * 4

    def stop(lang, request: gr.Request):
        engine.stop(job_runner.name("export", request))
        return gr.update(interactive=False)  # the job says the rest when it has ended

    looks = [panel.hint, panel.rounding, panel.rank, panel.folder, panel.command]
    buttons = [panel.status, panel.cancel, panel.export, panel.push]
    seen = [session.language, session.variants, *panel.settings]
    for control in panel.settings:
        control.change(settle, seen, looks, trigger_mode="always_last", **PRIVATE)
    panel.what.change(settle, seen, looks, trigger_mode="always_last", **PRIVATE)  # another recipe
    panel.export.click(
        export,
        [*studio.board, session.loaded, session.runs, panel.done, *panel.settings],
        [*buttons, panel.done, panel.download],
        validator=check,
        **JOB,
    )
    panel.push.click(
        push,
        [session.language, panel.done, panel.repo, panel.private],
        buttons,
        validator=check_push,
        **JOB,
    )
    panel.cancel.click(stop, session.language, panel.cancel, **PRIVATE)


def report(language: str, recipe: Recipe, done) -> str:
    """What was written, in a line; where, and what to know, under it."""
    size = f"{done.bytes / 1e6:,.1f} MB"
    text = say(language, "export.done", digest=recipe.digest(), size=size, seconds=done.seconds)
    checked, tone = done.verification, "good"
    more = [*done.notes] if shared() else [str(done.folder), *done.notes]
    if checked is not None:
        key = "export.verified" if checked.ok else "export.differs"
        key = "export.unverified" if checked.problem else key
        text += " " + say(language, key, same=checked.same_answers, count=checked.prompts)
        tone = "good" if checked.ok else "bad"
        more.insert(len(more) - len(done.notes), checked.summary())
    return notice(text, tone, more)
