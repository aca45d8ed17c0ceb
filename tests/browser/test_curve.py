"""The curve under the hand, in a real browser: it moves before the server knows of it."""

import json
import re
import threading

import numpy as np
import pytest
from playwright.sync_api import expect

from sst_ui import recipe as recipes
from sst_ui.maths import kernel
from sst_ui.paths import ASSETS
from sst_ui.progress import finish
from sst_ui.recipe import KINDS, ModelSpec, WeightTable
from sst_ui.ui import Engine, build
from sst_ui.ui.events import edit
from sst_ui.ui.widgets import curve
from tests.patience import MILLISECONDS, SECONDS, launched, until
from tests.talk import VOCAB, byte_tokenizer
from tests.tiny import tiny

pytestmark = pytest.mark.browser
MOVED = """() => {  // ms from a slider's movement to the curve that follows it, of the quickest
  const slider = document.querySelector('#peak input[type=range]'), took = [];
  for (let n = 1; n <= 15; n++) {
    const before = document.querySelector('#curve .attention .line').getAttribute('d');
    slider.value = n / 20;
    const begin = performance.now();
    slider.dispatchEvent(new Event('input', { bubbles: true }));
    const after = document.querySelector('#curve .attention .line').getAttribute('d');
    took.push(after === before ? Infinity : performance.now() - begin);
  }
  return Math.min(...took);
}"""
INSTANT = 50  # ms
LINE = "#curve .attention .line"
TABLES = {  # what a profile's name does not say
    "strong": WeightTable(strength=-1.7, modules={"attention": 0.4, "mlp": 2.0}),
    "cut": WeightTable(profile="custom", threshold=0.6),
    "flat": WeightTable(profile="flat"),
    "needle": WeightTable(profile="custom", width=1e-06),
    "pasted": WeightTable(curve=(0.0, 0.05, -0.5, *[1.0] * 9), strength=2.0, threshold=0.1),
    "own bells": WeightTable(peaks={"mlp": 0.2}, widths={"attention": 0.5}),
    "pinned": WeightTable(overrides={"mlp": {0: -0.25, 11: 4.0}, "attention": {3: 0.0}}),
}


def line(page) -> str:
    return page.locator(LINE).get_attribute("d")


def cell(page, kind: str, layer: int):
    return page.locator(f'#curve input[data-kind="{kind}"][data-layer="{layer}"]')


def number(page, name: str) -> float:
    return float(page.locator(f"#{name} input[type=number]").input_value())


def drag(page, what: str, right: float, up: float) -> None:
    """The middle of what is found, by so many pixels, in steps as a hand does it."""
    x, y = page.evaluate(
        """what => {
          const { x, y, width, height } = document.querySelector(`#curve ${what}`)
            .getBoundingClientRect();
          return [x + width / 2, y + height / 2];
        }""",
        what,
    )
    pull(page, x, y, right, up)


def drag_point(page, kind: str, layer: int, up: float) -> None:
    frame = page.locator("#curve .figure").bounding_box()
    ends = page.locator(f"#curve .{kind} .line").get_attribute("d")[1:].split("L")
    x, y = map(float, ends[layer].split())
    pull(page, frame["x"] + x, frame["y"] + y, 0, up)


def pull(page, x: float, y: float, right: float, up: float) -> None:
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right, y - up, steps=5)
    page.mouse.up()


@pytest.fixture
def fresh(page):
    """The module's page, as it was opened."""
    yield page
    page.unroute_all()
    page.click("#profile label:has-text('Default')")
    page.click("#reset-table")
    expect(page.locator("#curve .pinned")).to_have_count(0)
    expect(page.locator("#apply")).to_contain_text("Applied")


@pytest.mark.parametrize("layers", [1, 12, 80])
def test_the_page_computes_the_kernel_of_the_server(chromium, layers):
    tables = {name: kernel.profile(name) for name in kernel.profiles()} | TABLES
    page = chromium.new_page()
    page.add_script_tag(path=ASSETS / "kernel.js")
    for name, weights in tables.items():
        if layers != 12 and name in ("pasted", "pinned"):  # of so many layers
            continue
        given = json.loads(json.dumps(curve._plain(weights)))
        got = page.evaluate(
            "([w, layers, kinds]) => [kernel.bell(w, layers), kernel.table(w, layers, kinds)]",
            [given, layers, KINDS],
        )
        assert got[0] == pytest.approx(kernel.kernel(weights, layers), abs=1e-14), name
        assert np.allclose(got[1], kernel.table(weights, layers), rtol=0, atol=1e-14), name
    page.context.close()


def test_all_layers_of_the_demo_are_seen_beside_the_curve(fresh):
    seen = fresh.evaluate("""() => {
      const [table, figure] = ['.cells', '.figure'].map((name) =>
        document.querySelector(`#curve ${name}`).getBoundingClientRect());
      const inside = [...document.querySelectorAll('#curve input')].filter((box) => {
        const { top, bottom } = box.getBoundingClientRect();
        return top >= table.top && bottom <= table.bottom && bottom <= innerHeight;
      });
      return [inside.length, table.left >= figure.right, figure.height > 200];
    }""")
    assert seen == [24, True, True]


def test_a_slider_moves_the_curve_while_the_server_hears_nothing(fresh):
    held = []
    fresh.route("**/queue/join**", lambda route: held.append(route))
    slider = fresh.locator("#peak input[type=range]")
    with fresh.expect_request("**/queue/join**", timeout=MILLISECONDS):
        for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
            before = line(fresh)
            slider.press(key)
            assert line(fresh) != before  # at once, before anything is sent
        assert cell(fresh, "attention", 5).input_value() == shown(fresh, 5)
    assert line(fresh) != before
    for route in held:
        route.continue_()
    fresh.unroute_all()
    expect(fresh.locator("#apply")).to_contain_text("Apply changes")


def shown(page, layer: int) -> str:
    """What the table must say of a layer, by the page's own numbers."""
    names = ("peak", "width", "threshold", "strength")
    weights = WeightTable(profile="custom", **{name: number(page, name) for name in names})
    return f"{kernel.table(weights, 12)[layer, 0]:.3f}".rstrip("0").rstrip(".")


def test_a_late_answer_does_not_undo_a_later_movement(fresh, monkeypatch):
    asked, gates = [], {0.16: threading.Event(), 0.17: threading.Event()}
    drawn = edit.draw

    def late(drawing, engine, draft):
        if (width := draft.form.width) not in gates:
            return drawn(drawing, engine, draft)
        asked.append(width)
        gates[width].wait(SECONDS)
        return drawn(drawing, engine, draft) | {drawing.notes: f"answer of {width}"}

    monkeypatch.setattr(edit, "draw", late)
    slider = fresh.locator("#width input[type=range]")
    slider.press("ArrowRight")
    until(lambda: asked)  # it is on its way
    slider.press("ArrowRight")
    moved = line(fresh)
    for width, gate in gates.items():
        gate.set()
        expect(fresh.locator("#notes")).to_contain_text(f"answer of {width}")
        assert line(fresh) == moved


def test_a_dragged_point_pins_its_cell(fresh):
    before = float(cell(fresh, "attention", 6).input_value())
    drag_point(fresh, "attention", 6, -40)
    expect(fresh.locator("#curve .pinned")).to_have_count(1)
    after = float(cell(fresh, "attention", 6).input_value())
    assert 0 < after < before
    expect(fresh.locator("#apply")).to_contain_text("Apply changes")
    expect(cell(fresh, "attention", 6)).to_have_value(f"{after:g}")
    expect(cell(fresh, "attention", 6)).to_have_attribute("aria-label", re.compile("pinned"))
    cell(fresh, "attention", 6).fill("")
    fresh.keyboard.press("Enter")
    expect(cell(fresh, "attention", 7)).to_be_focused()
    expect(fresh.locator("#curve .pinned")).to_have_count(0)
    expect(cell(fresh, "attention", 6)).to_have_value(f"{before:g}")


def test_the_bell_is_dragged_and_apply_takes_what_it_shows(fresh):
    peak, width = number(fresh, "peak"), number(fresh, "width")
    drag(fresh, ".grip[data-drag=peak] .reach", -60, 0)
    assert number(fresh, "peak") < peak
    drag(fresh, ".grip[data-drag=width] ~ .grip[data-drag=width] .reach", 30, 0)
    assert number(fresh, "width") > width
    expect(fresh.locator("#profile label.selected")).to_have_text("Custom")
    peak, width = number(fresh, "peak"), number(fresh, "width")
    drag_point(fresh, "attention", 11, 30)
    pinned = float(cell(fresh, "attention", 11).input_value())
    fresh.click("#apply")  # at once: the cell is still on its way
    expect(fresh.locator(".variant.current")).to_contain_text("custom")
    expect(fresh.locator("#apply")).to_contain_text("Applied")
    with fresh.expect_download() as started:
        fresh.locator("#work-tabs .tab-wrapper [role=tab]").nth(2).click()
        fresh.click("#download-recipe")
    weights = recipes.load(started.value.path()).edits[0].weights
    fresh.locator("#work-tabs .tab-wrapper [role=tab]").nth(0).click()
    assert (weights.peak, weights.width) == (peak, width)
    assert weights.overrides == {"attention": {11: pinned}}
    fresh.click(".variant:has-text('default')")
    expect(fresh.locator(".variant.current")).to_contain_text("default")


def test_a_word_in_a_cell_is_said_and_its_number_is_back(fresh):
    box = cell(fresh, "mlp", 1)
    before = box.input_value()
    box.fill("abc")
    fresh.keyboard.press("Enter")
    expect(fresh.locator("#table-note")).to_contain_text("'abc' is not a number")
    expect(box).to_have_value(before)
    box.fill("0.7")
    fresh.click("#model-line")  # left without a key
    expect(fresh.locator("#curve .pinned input")).to_have_value("0.7")
    expect(fresh.locator("#table-note")).to_have_text("")


def test_the_per_module_table_is_a_profile(fresh):
    before = [cell(fresh, "mlp", layer).input_value() for layer in range(12)]
    fresh.click("#profile label:has-text('Per-module table')")
    expect(fresh.locator("#curve .pinned")).to_have_count(24)
    assert [cell(fresh, "mlp", layer).input_value() for layer in range(12)] == before
    assert fresh.locator("#peak").evaluate("block => block.inert")
    expect(fresh.locator("#curve .grip")).to_have_count(0)
    box = cell(fresh, "mlp", 0)
    box.fill("0.3")
    box.press("Enter")
    expect(box).to_have_value("0.3")
    expect(fresh.locator("#profile label.selected")).to_have_text("Per-module table")
    fresh.click("#profile label:has-text('Narrow')")
    expect(fresh.locator("#curve .pinned")).to_have_count(0)
    assert not fresh.locator("#peak").evaluate("block => block.inert")


def test_a_slider_moves_the_curve_at_once(fresh):
    assert fresh.evaluate(MOVED) < INSTANT


@pytest.fixture
def deep(chromium, folders):
    """A page on a random model of 80 layers, of which nothing is measured."""
    path = folders / "deep"
    sizes = {"num_hidden_layers": 80, "vocab_size": VOCAB, "max_position_embeddings": 2048}
    tiny("llama", **sizes).save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    engine = Engine(ModelSpec(id=str(path)))
    finish(engine.load(engine.spec))
    engine._arrived.set()
    engine._opened.set()
    built = build(engine)
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(MILLISECONDS)
    page.goto(launched(built))
    page.wait_for_selector(LINE, state="attached")
    yield page
    page.context.close()
    built.close()


def test_eighty_layers_scroll_and_move_at_once(deep):
    rows = deep.locator("#curve tbody tr:not([aria-hidden])")
    assert rows.count() < 40  # only those that are seen
    assert cell(deep, "mlp", 79).count() == 0
    deep.locator("#curve .cells").hover()
    deep.mouse.wheel(0, 5000)
    box = cell(deep, "mlp", 79)
    expect(box).to_be_visible()
    assert rows.count() < 40
    assert deep.locator("#curve thead").is_visible()
    box.fill("0.5")
    box.press("Enter")
    expect(deep.locator("#curve .pinned")).to_have_count(1)
    cell(deep, "mlp", 70).focus()  # the keys go on where no row was
    for _ in range(30):
        deep.keyboard.press("ArrowUp")
    expect(cell(deep, "mlp", 40)).to_be_focused()
    assert deep.evaluate(MOVED) < INSTANT
