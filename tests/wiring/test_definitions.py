"""Every control, choice, metric and signal says what it is, in both languages."""

import json
import re
import urllib.request

import gradio as gr
import pytest

from sst_ui.metrics.registry import METRICS
from sst_ui.ui.panels.chat import EXAMPLES
from sst_ui.ui.panels.figures import SIGNALS
from sst_ui.ui.widgets import definitions
from sst_ui.ui.widgets.texts import LANGUAGES

CONTROLS = (
    gr.Button, gr.Slider, gr.Radio, gr.Checkbox, gr.Dropdown, gr.Number, gr.Textbox,
    gr.UploadButton, gr.DownloadButton, gr.Code,
)  # fmt: skip
PRESSED_BY_THE_PAGE = {"unsound", "by-hand"}
JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")


def controls(page):
    for block in page.blocks.values():
        example = any(f"is-{name}" in (block.elem_classes or []) for name, *_ in EXAMPLES)
        passed = block.elem_id in PRESSED_BY_THE_PAGE or example  # an example is what it says
        if isinstance(block, CONTROLS) and not passed:
            yield block


def said(kind: str, name: str) -> tuple[bool, str]:
    english, japanese = (definitions.definition(each, name) for each in LANGUAGES)
    return len(english) > 10 and bool(JAPANESE.search(japanese)), f"{kind} {name}"


def test_every_control_and_every_choice_of_a_row_says_what_it_is(page):
    known = list(controls(page))
    assert len(known) > 150
    names = [each.elem_id or str(each.label) for each in known]
    names += [
        f"{each.elem_id}={value}"
        for each in known
        if isinstance(each, gr.Radio)
        for _, value in each.choices
    ]
    assert [why for well, why in (said("control", name) for name in names) if not well] == []


def test_every_metric_and_every_signal_says_what_it_is():
    names = [f"metric.{row.name}" for row in METRICS] + [f"signal={name}" for name in SIGNALS]
    assert [why for well, why in (said("", name) for name in names) if not well] == []


def test_a_definition_belongs_to_something_that_is_there(page):
    ids = {each.elem_id.removesuffix("-decades") for each in controls(page)} | {"hub-login"}
    rows = {name.partition("=")[0] for name in definitions._rows() if "." not in name}
    assert rows - ids == set()


@pytest.mark.parametrize(
    ("asked", "peak", "evidence"), [("en-US,ja", "curve is highest", "evidence"),
                                    ("ja,en", "最大になる位置", "手がかり")],
)  # fmt: skip
def test_the_page_has_them_in_the_visitors_language(address, asked, peak, evidence):
    request = urllib.request.Request(address, headers={"Accept-Language": asked})
    html = urllib.request.urlopen(request, timeout=60).read().decode()
    found = json.loads(re.search(r'<script id="definitions"[^>]*>(.*?)</script>', html)[1])
    assert peak in found["peak"]["what"]
    assert found["signal"]["choices"][evidence]
