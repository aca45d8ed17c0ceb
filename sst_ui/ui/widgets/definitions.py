"""What every control, choice, metric and column of the page is, in a sentence (definitions.yaml).

The page has them all in its head, in the visitor's language; `assets/studio.js` makes of each a tip
and a description for screen readers.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml

from sst_ui.maths.merge.registry import METHODS
from sst_ui.metrics.registry import METRICS
from sst_ui.paths import PRESETS
from sst_ui.schema import setting
from sst_ui.ui.widgets.html import safe
from sst_ui.ui.widgets.texts import has, say

METRIC_MENUS = ("metric-names", "search-objectives", "metrics-metric", "search-metric")


@cache
def _rows() -> Mapping[str, Mapping[str, str]]:
    return yaml.safe_load((PRESETS / "definitions.yaml").read_text(encoding="utf-8"))


def definition(language: str, name: str) -> str:
    """What something is; empty where that is not said.

    Args:
        name: a control's id, `id=value` for a choice, `metric.NAME` or `column.NAME`.
    """
    name = name.removesuffix("-decades")  # a slider beside a number is the same control
    return _rows().get(name, {}).get(language, "")


def of_metric(language: str, name: str) -> str:
    """What a metric measures, whatever the prompts; empty for metrics of others."""
    return definition(language, f"metric.{name.partition('@')[0]}")


def titled(text: str) -> str:
    """The attributes of a column's head that has a tip, which the keyboard reaches too."""
    return f' title="{safe(text)}" tabindex="0"' if text else ""


@cache
def head(language: str) -> str:
    """All of them for the page's head: control -> what it is, and what its choices are."""
    found: dict[str, dict[str, Any]] = {}
    for name in _rows():
        control, _, value = name.partition("=")
        if "." in control:
            continue
        row = found.setdefault(control, {"choices": {}})
        if value:
            row["choices"][value] = definition(language, name)
        else:
            row["what"] = definition(language, name)
    for control, choices in _menus(language).items():
        found[control]["choices"] |= choices
    return json.dumps(found, ensure_ascii=False).replace("<", "\\u003c")


def _menus(language: str) -> dict[str, dict[str, str]]:
    """The choices of menus, by what they show: the page does not say what stands behind that."""

    def labelled(control: str, prefix: str, values: Iterable[str]) -> dict[str, str]:
        return {
            say(language, f"{prefix}.{v}"): definition(language, f"{control}={v}") for v in values
        }

    known = [row.name for row in METRICS if has(f"metric.{row.name}")]
    metrics = {say(language, f"metric.{name}"): of_metric(language, name) for name in known}
    formats = setting("export.format").choices
    signals = [name.partition("=")[2] for name in _rows() if name.startswith("signal=")]
    return {
        "signal": labelled("signal", "signal", signals),
        "estimator": labelled("estimator", "estimator", setting("directions.estimator").choices),
        "method": {
            m.title: say(language, f"method.{m.name}") for m in METHODS if has(f"method.{m.name}")
        },
        "export-format": {
            say(language, f"format.{f}"): say(language, f"format.{f}.what") for f in formats
        },
        **dict.fromkeys(METRIC_MENUS, metrics),
    }
