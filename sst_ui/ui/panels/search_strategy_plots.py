"""Figures of single strategies: layers, stages, parallel settings, importance of settings.

Orange is the search result, grey-blue the base model.
"""

import textwrap

import plotly.graph_objects as go

from sst_ui.jobs.search.candidates import Candidate
from sst_ui.maths import kernel
from sst_ui.metrics.registry import find
from sst_ui.metrics.results import NOTHING
from sst_ui.ui.panels.search_table import name_of, param, settings
from sst_ui.ui.state.search_results import Found
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.messages import say_in
from sst_ui.ui.widgets.numbers import number
from sst_ui.ui.widgets.plots import BASE, EDITED, OTHERS, blank, empty
from sst_ui.ui.widgets.texts import has, say

FINE = 121  # points of a drawn bell


def layers(language: str, found: Found, metric: str) -> go.Figure:
    """By how much each layer alone made a metric better, and the bell that was fitted."""
    drawn = blank(
        say(language, "curve.layer"), say(language, "search.effect", name=name_of(language, metric))
    )
    order = dict(zip(found.aims.objectives, found.aims.lower, strict=True))
    sign = 1 if order.get(metric, find(metric).better == "low") else -1
    rows = [each for each in found.done if "only" in each.params]
    effects = [sign * (e.base.get(metric, NOTHING).value - e.value(metric)) for e in rows]
    drawn.add_bar(
        x=[each.params["only"] for each in rows], y=effects, name=name_of(language, metric),
        marker={"color": BASE}, customdata=[tip(language, each, found) for each in rows],
        hovertemplate="%{customdata}<extra></extra>", showlegend=False,
    )  # fmt: skip
    made = found.bell[0]
    if made is not None and metric == found.aims.objectives[0]:
        weights = made.edits[-1].weights
        bell = kernel.gaussian(FINE, *weights.bell)
        drawn.add_scatter(
            x=kernel.positions(FINE) * (found.layers - 1), y=bell * max(effects), mode="lines",
            hoverinfo="skip", line={"color": EDITED, "width": 2},
            name=f"{say(language, 'search.bell')} · "
            + settings(language, {"peak": weights.peak, "width": weights.width}),
        )  # fmt: skip
    drawn.update_layout(hovermode="closest")
    drawn.update_xaxes(range=[-0.6, found.layers - 0.4], dtick=max(1, found.layers // 12))
    return drawn


def stages(language: str, found: Found) -> go.Figure:
    """Every metric over the strength; those that are no rate or score on an axis of their own."""
    rows = sorted(found.done, key=lambda each: abs(each.params.get("strength", 0.0)))
    drawn = blank(say(language, "weights.strength"), "")
    colours = (EDITED, *OTHERS)
    wide = [n for n in found.aims.metrics if find(n).unit not in ("rate", "score")]
    for name, colour in zip(found.aims.metrics, colours * 3, strict=False):
        drawn.add_scatter(
            x=[each.params.get("strength") for each in rows], y=[e.value(name) for e in rows],
            name=name_of(language, name), mode="lines+markers",
            yaxis="y2" if name in wide else "y",
            line={"color": colour, "width": 2, "dash": "dot" if name in wide else "solid"},
            hovertemplate="%{y:.1%}" if find(name).unit == "rate" else "%{y:.3g}",
        )  # fmt: skip
    if found.best is not None:
        drawn.add_vline(
            found.best.params["strength"], line={"color": EDITED, "width": 1, "dash": "dash"},
            annotation_text=say(language, "search.best"), annotation_font_size=12,
            annotation_position="bottom right",
        )  # fmt: skip
    drawn.update_yaxes(range=[-0.03, 1.05], tickformat=".0%")
    drawn.update_layout(
        margin={"r": 48},
        yaxis2={"overlaying": "y", "side": "right", "showgrid": False, "fixedrange": True,
                "rangemode": "tozero", "visible": bool(wide), "tickformat": "~g"},
    )  # fmt: skip
    return drawn


def parallel(language: str, found: Found) -> go.Figure:
    """Settings and objectives of every candidate side by side, coloured by the first objective."""
    rows = [each for each in found.candidates if each.state == "done"]
    if not rows:
        return sentence(say(language, "search.waiting"))
    axes = []
    for name in rows[0].params:
        values = [each.params.get(name) for each in rows]
        label = param(language, name)
        if any(isinstance(v, bool | str) for v in values):
            words = sorted({str(v) for v in values})
            axes.append({
                "label": label, "values": [words.index(str(v)) for v in values],
                "tickvals": list(range(len(words))),
                "ticktext": [_word(language, word) for word in words],
            })  # fmt: skip
        else:
            axes.append({"label": label, "values": values, "tickformat": ".2~f"})
    for name in dict.fromkeys([*found.aims.objectives, found.aims.decides]):
        rate = find(name).unit == "rate"
        values, form = [each.value(name) for each in rows], ".0%" if rate else "~g"
        axes.append({"label": name_of(language, name), "values": values, "tickformat": form})
    first = found.aims.decides
    drawn = blank("", "")
    drawn.add_parcoords(
        dimensions=axes, labelside="top", labelangle=-28, labelfont={"size": 10},
        tickfont={"size": 9}, rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
        line={"color": [each.value(first) for each in rows],
              "colorscale": [[0, EDITED], [1, BASE]], "reversescale": not found.aims.falls},
    )  # fmt: skip
    drawn.update_layout(margin={"l": 28, "r": 40, "t": 66, "b": 14})
    return drawn


def importance(language: str, found: Found) -> go.Figure:
    """How much each setting matters to each objective."""
    if not any(found.importance):
        few = found.spec.strategy == "tpe"
        return sentence(say(language, f"search.empty.{'importance' if few else 'one'}"))
    order = list(dict.fromkeys(name for scores in found.importance for name in scores))
    names = [param(language, name) for name in order]
    drawn = blank(say(language, "search.share"), "")
    colours = (EDITED, *OTHERS)
    for metric, scores, colour in zip(
        found.aims.objectives, found.importance, colours * 3, strict=False
    ):
        drawn.add_bar(
            y=names, x=[scores.get(name, 0.0) for name in order], name=name_of(language, metric),
            marker={"color": colour}, orientation="h", hovertemplate="%{x:.0%}",
        )  # fmt: skip
    drawn.update_xaxes(tickformat=".0%", rangemode="tozero", showgrid=True)
    drawn.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    drawn.update_layout(hovermode="y unified", margin={"l": 84, "t": 24})
    return drawn


def sentence(text: str) -> go.Figure:
    """A sentence where a figure will be, in lines that fit beside the settings."""
    if any(ord(letter) > 0x3000 for letter in text):  # kana and kanji are wide
        return empty("<br>".join(text[i : i + 26] for i in range(0, len(text), 26)))
    return empty("<br>".join(textwrap.wrap(text, 52)))


def _word(language: str, word: str) -> str:
    marks = {"True": "✓", "False": "✗"}
    for name in ("scope", "way", "estimator"):
        if has(f"{name}.{word}"):
            return say(language, f"{name}.{word}")
    return marks.get(word, word)


def tip(language: str, each: Candidate, found: Found) -> str:
    """What stands beside a point: settings and numbers."""
    lines = [f"#{each.number} · {settings(language, each.params)}"]
    for name in found.aims.metrics:
        if name in each.values:
            told = number(each.values[name], find(name).unit)
            lines.append(f"{name_of(language, name)} {told}")
    lines += [say_in(language, each.note)] if each.note else []
    return "<br>".join(safe(line) for line in lines)
