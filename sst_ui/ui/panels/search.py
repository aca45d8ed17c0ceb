"""The Search panel: what to try, what to go by, how long; the view, the table, what to do with it.

What happens on a click is in `ui.events.search` and `ui.events.search_choices`, what the figures
look like in `search_plots`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gradio as gr

from sst_ui.data import prompt_sets
from sst_ui.errors import UserError
from sst_ui.jobs.search.objectives import Limit, SearchSpec, aims
from sst_ui.metrics.registry import METRICS, find, prompts_named
from sst_ui.recipe import Recipe
from sst_ui.schema import setting
from sst_ui.ui.panels import search_table
from sst_ui.ui.panels.metrics import choices, title
from sst_ui.ui.services.errors import message
from sst_ui.ui.state.merge_form import number, whole
from sst_ui.ui.state.run_store import LIFE, shared
from sst_ui.ui.state.search_results import Found
from sst_ui.ui.widgets import plots
from sst_ui.ui.widgets.html import CLICKS, safe
from sst_ui.ui.widgets.inputs import HIDDEN, Dropdown, Number, Radio
from sst_ui.ui.widgets.texts import say, t

# What a strategy has beside what all have: controls that are hidden for the others.
OWN = {
    "grid": ("constraints", "target"),
    "staged": ("constraints", "start"),
    "sensitivity": (),
    "tpe": ("constraints", "target", "seed", "start", "prune", "patience"),
}
SETTINGS = (
    "strategy", "objectives", "trials", "minutes", "samples", "tokens", "constraints", "target",
    "seed", "patience", "start", "prune", "select", "test",
)  # fmt: skip
PAIRS = ("select", "test")  # two prompt sets, one on a line
VIEWS = ("own", "front", "importance")  # own: the figure that the strategy has for itself
Buttons = tuple[gr.Button, gr.Button, gr.Button, gr.Button]  # run, pause, resume, stop
Variant = Literal["primary", "secondary", "stop"]
KEPT = 3  # candidates that become variants, unless said otherwise


@dataclass(frozen=True)
class SearchPanel:
    """`settings` are the controls by name, in the order of `SETTINGS`."""

    settings: Mapping[str, Any]
    hint: gr.HTML
    run: gr.Button
    pause: gr.Button
    resume: gr.Button
    stop: gr.Button
    status: gr.HTML
    progress: gr.HTML
    view: gr.Radio
    metric: gr.Dropdown
    plot: gr.Plot
    table: gr.HTML
    use: gr.Button
    keep: gr.Button
    count: gr.Number
    check: gr.Button
    cancel: gr.Button
    told: gr.HTML
    found: gr.State = field(repr=False)
    picked: gr.State = field(repr=False)


def create() -> SearchPanel:
    with gr.Row(elem_id="search-row"):
        with gr.Column(elem_id="search-settings", min_width=220):
            settings, hint, (run, pause, resume, stop), status = _settings()
        with gr.Column(elem_id="search-found", min_width=260):
            progress = gr.HTML(elem_id="search-progress")
            with gr.Row(elem_id="search-views"):
                view = Radio(
                    [(t(f"search.view.{name}"), name) for name in VIEWS], value="own",
                    label=t("search.view"), show_label=False, container=False,
                    elem_id="search-view",
                )  # fmt: skip
                metric = Dropdown(
                    [], label=t("search.metric"), show_label=False, container=False,
                    elem_id="search-metric", min_width=120, visible=False,
                    allow_custom_value=True,  # the choices change while a figure is on its way
                )  # fmt: skip
            plot = gr.Plot(
                plots.empty(say("en", "search.empty")), show_label=False, container=False,
                elem_id="search-plot", buttons=[],
            )  # fmt: skip
            with gr.Row(elem_id="search-tools"):
                use = _button("use", "use-candidate", "primary", interactive=False)
                keep = _button("keep", "keep-candidates", interactive=False)
                count = Number(
                    KEPT, label=t("search.count"), show_label=False, container=False,
                    elem_id="keep-count", min_width=44, scale=0,
                )  # fmt: skip
                check = _button("check", "check-candidate", interactive=False)
                cancel = gr.Button(
                    t("cancel"), size="sm", variant="stop", elem_id="cancel-check", visible=HIDDEN,
                    scale=0, min_width=60,
                )  # fmt: skip
            told = gr.HTML(elem_id="search-told")
            table = gr.HTML(
                search_table.render("en", Found(), ""), elem_id="search-table", js_on_load=CLICKS
            )
    found = gr.State(Found(), time_to_live=LIFE if shared() else None)
    return SearchPanel(
        settings, hint, run, pause, resume, stop, status, progress, view, metric, plot, table, use,
        keep, count, check, cancel, told, found, gr.State(""),
    )  # fmt: skip


def _settings() -> tuple[dict[str, Any], gr.HTML, Buttons, gr.HTML]:
    made: dict[str, Any] = {}
    start = SOUND
    made["strategy"] = Radio(
        [(t(f"search.{name}"), name) for name in setting("search.strategy").choices],
        value=start["strategy"],
        label=t("search.strategy"),
        show_label=False,
        elem_id="search-strategy",
    )
    hint = gr.HTML(elem_id="search-hint", elem_classes="hint")
    made["objectives"] = Dropdown(
        choices(METRICS),
        value=start["objectives"],
        multiselect=True,
        label=t("search.objectives"),
        allow_custom_value=True,
        elem_id="search-objectives",
    )
    made["constraints"] = gr.Textbox(
        start["constraints"], label=t("search.constraints"), placeholder="quality >= 0.7",
        lines=2, max_lines=4, elem_id="search-constraints",
    )  # fmt: skip
    with gr.Row(elem_classes="pair"):
        for name in ("target", "trials", "minutes"):
            made[name] = gr.Textbox(  # a number may be left out, which gr.Number makes a 0
                start[name], label=t(f"search.{name}"), placeholder=t(f"search.{name}.hint"),
                max_lines=1, elem_id=f"search-{name}", min_width=50,
            )  # fmt: skip
    with gr.Row(elem_id="search-buttons"):
        run = _button("run", "run-search", "primary")
        resume = _button("resume", "resume-search", "primary", visible=HIDDEN)
        pause = _button("pause", "pause-search", visible=HIDDEN)
        stop = _button("stop", "stop-search", "stop", visible=HIDDEN)
    status = gr.HTML(elem_id="search-status")
    with gr.Accordion(t("search.more"), open=False, elem_id="search-more"):
        with gr.Row(elem_classes="pair"):
            for name in ("samples", "tokens", "seed", "patience"):
                made[name] = Number(
                    start[name], label=t(f"search.{name}"), elem_id=f"search-{name}",
                    min_width=50, visible=_there(name, "grid"),
                )  # fmt: skip
        made["start"] = Radio(
            [(t(f"search.start.{name}"), name) for name in setting("search.start").choices],
            value=start["start"], label=t("search.start"), elem_id="search-start",
            visible=_there("start", "grid"),
        )  # fmt: skip
        made["prune"] = gr.Checkbox(
            start["prune"], label=t("search.prune"), elem_id="search-prune",
            visible=_there("prune", "grid"),
        )  # fmt: skip
        for name in PAIRS:
            made[name] = gr.Textbox(
                start[name], label=t(f"search.{name}"), placeholder=t(f"search.{name}.hint"),
                lines=2, max_lines=2, elem_id=f"search-{name}",
            )  # fmt: skip
    ordered = {name: made[name] for name in SETTINGS}
    return ordered, hint, (run, pause, resume, stop), status


def _button(name: str, ident: str, variant: Variant = "secondary", **more: Any) -> gr.Button:
    return gr.Button(
        t(f"search.{name}"), size="sm", variant=variant, elem_id=ident, min_width=60, **more
    )


def _there(name: str, strategy: str) -> bool:
    """Whether a strategy has a setting."""
    return name in OWN[strategy] or not any(name in own for own in OWN.values())


def shown(panel: SearchPanel, strategy: str) -> dict:
    """Which settings are there for a strategy."""
    return {
        control: gr.update(visible=_there(name, strategy))
        for name, control in panel.settings.items()
        if any(name in own for own in OWN.values())
    }


def spec(*values: Any) -> SearchSpec:
    """The settings as the controls say them; what the strategy does not have stays at its default.

    Raises:
        UserError: a value that cannot be, naming it.
    """
    given = dict(zip(SETTINGS, values, strict=True))
    strategy = given["strategy"]
    given = {n: v if _there(n, strategy) else SOUND[n] for n, v in given.items()}
    return SearchSpec(
        strategy=strategy,
        objectives=tuple(given["objectives"] or ()),
        target=_number("target", given["target"]),
        trials=_whole(given["trials"]),
        minutes=_number("minutes", given["minutes"]),
        samples=whole("search.samples", given["samples"]) or None,
        max_new_tokens=whole("search.tokens", given["tokens"]) or None,
        seed=whole("search.seed", given["seed"]),
        start=given["start"],
        prune=bool(given["prune"]),
        patience=whole("search.patience", given["patience"]),
        constraints=_lines(given["constraints"]),
        select=_lines(given["select"]),
        test=_lines(given["test"]),
    )


def _lines(text: str | None) -> tuple[str, ...]:
    lines = (line.strip() for line in (text or "").splitlines())
    return tuple(line for line in lines if line)


def show(made: SearchSpec) -> dict[str, Any]:
    """The controls' values for a search; the inverse of `spec`."""
    values = {name: getattr(made, name) for name in SETTINGS if name != "tokens"}
    values |= {name: "" for name, value in values.items() if value is None}
    return {
        **{name: values.get(name) for name in SETTINGS},
        "objectives": list(made.objectives),
        "samples": made.samples or 0,
        "tokens": made.max_new_tokens or 0,
        **{name: "\n".join(getattr(made, name)) for name in ("constraints", *PAIRS)},
    }


SOUND = show(SearchSpec())  # what the controls begin with


def _number(name: str, typed: Any) -> float | None:
    text = str("" if typed is None else typed).strip()
    return None if not text else number(f"search.{name}", text)


def _whole(typed: Any) -> int | None:
    value = _number("trials", typed)
    return None if value is None else whole("search.trials", value)


def problems(language: str, *values: Any) -> dict[str, str]:
    """What is wrong with each setting by itself, files of prompts included."""
    given, found = dict(zip(SETTINGS, values, strict=True)), {}
    for name in SETTINGS:
        alone = {**SOUND, "strategy": given["strategy"], name: given[name]}
        try:
            made = spec(*alone.values())
            limits = (Limit.read(text).metric for text in made.constraints)
            for metric in (*made.objectives, *limits):
                if (named := prompts_named(metric)) is not None:
                    prompt_sets.load(named)
            for names in (made.select, made.test):
                for each in names:
                    prompt_sets.load(each)
        except UserError as error:
            found[name] = message(error, language)
    return found


def hinted(language: str, recipe: Recipe | None, wanted: SearchSpec) -> str:
    """What the strategy does, and what it goes by with these settings."""
    what = say(language, f"search.{wanted.strategy}.what")
    try:
        aim = None if recipe is None else aims(recipe, wanted)
    except UserError:
        aim = None
    if aim is None:
        return safe(what)
    named = (name.partition("@")[0] for name in aim.metrics)  # without their prompts
    names = ", ".join(title(language, name, find(name).title) for name in named)
    more = say(language, "search.aims", names=names)
    if math.isfinite(aim.target) and "target" in OWN[wanted.strategy]:
        target = f"{'≤' if aim.falls else '≥'} {aim.target:g}"
        more = say(language, "search.aims.target", names=names, target=target)
    return f"{safe(what)} <em>{safe(more)}</em>"
