"""The token view and the map of residuals, as data for the page, which draws them
(assets/tokens.js, assets/map.js).

Both travel as JSON text: Gradio's page would watch every number of a list.
"""

import json
from collections.abc import Iterable

import gradio as gr
import numpy as np

from sst_ui.jobs.directions.residual_map import ResidualMap
from sst_ui.jobs.token_view import TokenView
from sst_ui.ui.widgets.texts import raw, say

VIEWS = ("place", "kl", "lens")
WHO = ("base", "edited", "difference")
LONGEST = 240  # characters of a prompt that a point tells


def create(name: str, start: str) -> gr.HTML:
    """A component that the page draws; its event `click` tells which token was picked."""
    return gr.HTML(
        None,
        html_template="",
        js_on_load=f"{start}.start(element, props, trigger, watch)",
        apply_default_css=False,
        elem_id=name,
    )


def nothing(text: str) -> str:
    """A sentence where a figure will be."""
    return json.dumps({"empty": text})


def tokens(language: str, view: TokenView, variant: str, position: str) -> str:
    """The token view as JSON text.

    Args:
        variant: whose numbers the edited ones are.
        position: where the controls say that the direction is measured.
    """
    reading = view.reading
    last = view.first + len(view.tokens)
    data = {
        "layers": view.place.shape[1],
        "first": view.first,
        "total": len(reading.ids),
        "prompt": reading.prompt,
        "places": [reading.place(token) for token in range(view.first, last)],
        "tokens": view.tokens,
        "place": [_flat(part) for part in view.place],
        "along": [_flat(part) for part in view.along],
        "kl": None if view.kl is None else _flat(view.kl, 5),
        **_lens(view),
        "variant": variant,
        "position": position,
        "texts": {name: raw(language, f"tokens.{name}") for name in ("whose", "waiting", "hint")}
        | {name: say(language, f"tokens.{name}") for name in (*VIEWS, "difference", "view")}
        | {
            "base": say(language, "chat.base"),
            "edited": say(language, "answers.edited"),
            "layer": say(language, "curve.layer"),
            "probe": say(language, "probe.axis"),
            "shown": ""
            if not view.first
            else say(
                language, "tokens.shown", first=view.first + 1, last=last, total=len(reading.ids)
            ),
        },
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _lens(view: TokenView) -> dict:
    """Top tokens as places in a list of words, and their probabilities in thousandths."""
    if view.top is None or view.shares is None or view.words is None:
        return {"words": [], "top": None, "shares": None}
    place = {token: number for number, token in enumerate(view.words)}
    return {
        "words": list(view.words.values()),
        "k": view.top.shape[-1],
        "top": [[place[token] for token in part.reshape(-1).tolist()] for part in view.top],
        "shares": [(1000 * part).round().astype(int).reshape(-1).tolist() for part in view.shares],
    }


def points(language: str, found: ResidualMap, layer: int, control: bool) -> str:
    """The map of residuals as JSON text.

    Args:
        layer: the one to begin with.
        control: the direction is a random one.
    """
    data = {
        "layer": layer,
        "planes": [
            {
                "harmful": _flat(each.harmful),
                "harmless": _flat(each.harmless),
                "means": each.means.round(4).tolist(),
                "shown": round(each.shown, 4),
            }
            for each in found.planes
        ],
        "prompts": {"harmful": _short(found.harmful), "harmless": _short(found.harmless)},
        "texts": {
            name: raw(language, f"map.{name}")
            for name in ("harmful", "harmless", "layer", "shown", "along", "beside", "summary")
        }
        | {"direction": say(language, "map.control" if control else "map.direction")},
    }
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _short(prompts: Iterable[str]) -> list[str]:
    return [text if len(text) <= LONGEST else f"{text[:LONGEST]}…" for text in prompts]


def _flat(values: np.ndarray, digits: int = 3) -> list[float]:
    """Rounded numbers, row by row; JSON has none that is not finite."""
    return np.nan_to_num(values.astype(float)).round(digits).reshape(-1).tolist()
