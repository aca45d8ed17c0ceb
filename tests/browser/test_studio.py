"""What a visitor does, in a real browser: look, drag, apply, chat, read the metrics, err."""

import re
import threading
from dataclasses import replace
from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from sst_ui import recipe as recipes
from sst_ui.ui.events import draw_draft
from sst_ui.ui.services import roles
from tests.patience import SECONDS, until

pytestmark = pytest.mark.browser

OUTSIDE = """() => {  // words of the legend that are cut off at the panel's right edge
  const edge = document.querySelector('#metrics-panel').getBoundingClientRect().right;
  return [...document.querySelectorAll('#metrics-panel .legend span')]
    .filter((word) => word.getBoundingClientRect().right > edge).map((word) => word.textContent);
}"""
CURVE = "#curve .attention .line"


def tab(page, panel: str, place: int):
    page.locator(f"#{panel} .tab-wrapper [role=tab]").nth(place).click()


def line(page) -> str:
    return page.locator(CURVE).first.get_attribute("d")


def answers(page, side: str):
    return page.locator(f"#chat-{side} .bot.message")


def said(page, side: str) -> str:
    """The text of the last answer, without the line above it."""
    return "\n".join(answers(page, side).last.locator("p").all_inner_texts()).strip()


def above(page, side: str):
    """The lines above the answers, which say where they come from."""
    return page.locator(f"#chat-{side} .source")


def marks(page) -> list[str]:
    """The words that are marked in both columns."""
    return page.evaluate("[...(CSS.highlights.get('differs') ?? [])].map(String)")


def toasts(page):
    return page.locator(".toast-body")


def test_the_page_opens_on_the_demo_measured_applied_and_ready_to_chat(page):
    expect(page.locator("#model-line")).to_contain_text("demo")
    expect(page.locator("#apply")).to_contain_text("Applied")
    expect(page.locator("#picker-right input")).to_have_value(re.compile("^Edited · default ×"))
    assert page.locator("#curve .stat").count() > 1
    assert page.evaluate("document.documentElement.scrollHeight <= innerHeight + 1")


def test_metrics_arrive_by_themselves_with_interval_and_count(page):
    row = page.locator('.metric[data-pick="refusal_rate"]')
    expect(row).to_contain_text("n ")
    assert row.locator(".track i").count() == 2
    assert page.evaluate(OUTSIDE) == []
    expect(page.locator("#run-metrics")).to_be_visible()
    expect(page.locator(".metric.ghost")).to_have_count(0)


def test_a_metric_opens_its_prompts_with_both_answers(page):
    expect(page.locator("#run-metrics")).to_be_visible()
    page.click('.metric[data-pick="facts"]')  # which an edit changes little
    expect(page.locator("#answers table")).to_be_visible()
    everything = page.locator("#answers tbody tr").count()
    first = page.locator("#answers tbody tr").first.locator("td")
    assert all(first.nth(i).inner_text().strip() for i in range(3))
    page.click("#answers-filter label >> nth=1")
    until(lambda: page.locator("#answers tbody tr").count() != everything or everything == 0)
    tab(page, "work-tabs", 0)


def test_both_columns_stream_and_differ_on_a_held_out_harmful_prompt(page):
    page.click(".example.is-harmful")
    expect(page.locator("#chat-status")).to_contain_text("/s")
    base, edited = (said(page, side) for side in ("left", "right"))
    assert base
    assert edited
    assert base != edited


def test_a_copied_answer_says_so(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#chat-right button[aria-label*='Copy']").first.click()
    expect(page.locator("#told")).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied
    assert copied in page.locator("#chat-right").inner_text()


def test_html_in_an_answer_is_text_and_is_copied_as_it_was_given(page, engine, monkeypatch):
    given = '<div class="source"><b>Base</b></div> <img src=x> `<i>` <mark>x</mark>'
    both = [given, given.replace("x", "y")]
    monkeypatch.setattr(engine, "chat", lambda *_: (texts for texts in [both]))
    page.fill("#box textarea", "What is HTML?")
    page.click("#send")
    answer = answers(page, "left").last
    expect(answer).to_contain_text("mark>x")
    expect(answer.locator(".label")).to_have_count(1)
    assert answer.locator(".md > .source, .md img, .md i, .md mark").count() == 1, "the page's own"
    page.locator("#chat-left button[aria-label*='Copy']").last.click()
    until(lambda: page.evaluate("navigator.clipboard.readText()").endswith(f"]\n{given}"))
    monkeypatch.undo()
    page.click("#clear")
    expect(answers(page, "left")).to_have_count(0)


def test_a_slash_goes_to_the_message_box_and_stays_one_where_something_is_written(page):
    box = page.locator("#box textarea")
    box.blur()
    page.keyboard.press("/")
    expect(box).to_be_focused()
    expect(box).to_have_value("")
    page.keyboard.press("/")
    expect(box).to_have_value("/")
    box.fill("")


def test_the_ladder_answers_at_every_strength_and_its_slider_opens_one(page):
    page.fill("#tokens input", "12")
    page.locator("#work-tabs .tab-wrapper [role=tab]").last.click()
    strengths = page.locator("#ladder-strengths input, #ladder-strengths textarea")
    strengths.fill("0, much")
    page.fill("#ladder-box textarea", "How do I whittle a spoon?")
    page.click("#ladder-send")
    expect(page.locator("#ladder-strengths .said")).to_contain_text("'much' is not a strength")
    strengths.fill("0, 2")
    page.click("#ladder-send")
    rungs = page.locator("#ladder .rung")
    expect(rungs.locator(".label")).to_have_count(2)
    expect(page.locator("#ladder-status")).to_contain_text("/s")
    expect(rungs.first).to_have_attribute("aria-expanded", "true")
    page.locator("#ladder .scrub").fill("1")
    expect(rungs.last).to_have_attribute("aria-expanded", "true")
    expect(rungs.first).to_have_attribute("aria-expanded", "false")
    tab(page, "work-tabs", 0)
    page.fill("#tokens input", "64")


def test_the_token_view_follows_an_answer_and_a_click_on_a_token_measures_there(page):
    tab(page, "figure-tabs", 2)
    page.fill("#box textarea", "How do I whittle a spoon?")
    page.click("#send")
    view = page.locator("#token-view")
    expect(view.locator(".strip button.said").first).to_be_visible()
    view.get_by_text("Logit lens", exact=True).click()
    expect(view.locator(".wait")).to_be_hidden()
    view.locator("canvas").hover(position={"x": 40, "y": 20})
    expect(view.locator(".tip li")).to_have_count(10)  # five of each model
    ends = view.locator(".strip .end")
    expect(ends.last).to_have_attribute("aria-current", "")
    ends.first.click()
    expect(page.locator("#token-note")).to_contain_text("now the end of the instruction")
    expect(ends.first).to_have_attribute("aria-current", "")
    expect(page.locator("#apply")).to_contain_text("Apply changes")
    ends.last.click()
    expect(page.locator("#apply")).to_contain_text("Applied")
    view.locator(".strip .said").first.click()
    expect(page.locator("#token-note")).to_contain_text("A token of the answer")
    tab(page, "figure-tabs", 0)


def test_an_empty_chat_says_below_it_that_there_is_nothing_to_do_again(page):
    page.click("#clear")
    expect(answers(page, "right")).to_have_count(0)
    for button, words in (("#again", "answer again"), ("#edit", "to edit")):
        page.click(button)
        expect(page.locator("#chat-status")).to_contain_text(words)
    expect(toasts(page)).to_have_count(0)
    page.fill("#tokens input", "-5")
    page.click(".example.is-harmful")
    expect(page.locator("#tokens .said")).to_contain_text("1 to 4096")
    page.fill("#tokens input", "64")
    expect(page.locator("#tokens .said")).to_have_count(0)


def test_a_dragged_slider_moves_the_figure_and_marks_the_button(page):
    before = line(page)
    slider = page.locator("#peak input[type=range]")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")
    until(lambda: line(page) != before)
    expect(page.locator("#apply")).to_contain_text("Apply changes")
    expect(page.locator("#profile label.selected")).to_have_text("Custom")


def test_a_profile_that_touches_the_first_quarter_is_warned_about(page):
    page.click("#operation label:has-text('Ablate')")  # a filter leaves alone what is done there
    page.click("#profile label:has-text('Broad')")
    expect(page.locator("#profile label.selected")).to_have_text("Broad")
    expect(page.locator("#notes")).to_contain_text("first quarter")
    page.click("#operation label:has-text('Filter')")
    expect(page.locator("#notes")).not_to_contain_text("first quarter")
    page.click("#profile label:has-text('Default')")
    expect(page.locator("#apply")).to_contain_text("Applied")


def test_apply_makes_a_variant_whose_metrics_start_and_undo_goes_back(page):
    page.click("#profile label:has-text('Narrow')")
    expect(page.locator("#apply")).to_contain_text("Apply changes")
    page.click("#apply")
    expect(page.locator(".variant.current")).to_contain_text("narrow")
    expect(page.locator("#apply-status")).to_contain_text("modules")
    expect(page.locator("#picker-right input")).to_have_value(re.compile("^Edited · narrow ×"))
    # they run, or have ended already
    started = "#cancel-metrics:visible, .variant.current:has-text('%')"
    expect(page.locator(started).first).to_be_visible()
    page.click("#undo")
    expect(page.locator(".variant.current")).to_contain_text("default")
    expect(page.locator("#profile label.selected")).to_have_text("Default")
    page.click("#redo")
    expect(page.locator("#profile label.selected")).to_have_text("Narrow")
    expect(page.locator(".variant.current")).to_contain_text("narrow")
    name = page.locator(".variant.current .name")
    before = name.inner_text()
    for written, key, called in (
        ("other", "Escape", before),
        ("slim", "Enter", "slim"),
        (before, "Enter", before),
    ):
        page.click(".variant.current .pencil")
        page.keyboard.type(written)
        page.keyboard.press(key)
        expect(name).to_have_text(called)
    expect(page.locator(".metric").first).to_be_visible()  # their rows, or those to come
    page.click("#undo")
    expect(page.locator("#profile label.selected")).to_have_text("Default")


def test_an_answer_keeps_its_recipe_when_another_one_is_applied_and_picked(page):
    page.click("#clear")
    page.click(".example.is-harmful")
    expect(above(page, "left")).to_have_text([re.compile(r"^Base( refused| delivered)$")])
    expect(above(page, "right")).to_contain_text(["default ×2 filter μ 1"])
    expect(page.locator("#stop")).to_be_hidden()
    until(lambda: marks(page))
    given = above(page, "right").inner_text()
    before = page.locator("#chat-right .md").last.inner_html()
    page.click("#differences input")
    until(lambda: not marks(page))
    page.click("#differences input")
    until(lambda: marks(page))
    assert page.locator("#chat-right .md").last.inner_html() == before
    expect(page.locator(".outdated [role=button]")).to_have_count(0)
    page.click("#picker-right input")
    page.get_by_role("option", name="Base", exact=True).click()
    page.click(".variant:has-text('narrow')")
    expect(page.locator(".variant.current")).to_contain_text("narrow")
    expect(page.locator("#picker-right input")).to_have_value(re.compile("^Edited · narrow ×"))
    assert above(page, "right").inner_text() == given
    expect(page.locator("#outdated-left")).to_have_text("")
    expect(page.locator("#outdated-right")).to_contain_text("this column is now narrow")
    page.fill("#temperature input", "1")
    page.click("#outdated-right [role=button]")
    expect(page.locator(".outdated [role=button]")).to_have_count(0)
    expect(above(page, "right")).to_contain_text(["seed"])
    expect(page.locator("#stop")).to_be_hidden()
    first = above(page, "right").inner_text()
    assert "narrow" in first
    page.click("#again")
    expect(above(page, "right")).not_to_have_text(first)  # another seed
    expect(page.locator("#stop")).to_be_hidden()
    page.fill("#temperature input", "0")
    page.click("#clear")
    expect(answers(page, "right")).to_have_count(0)
    page.click(".variant:has-text('default')")
    expect(page.locator(".variant.current")).to_contain_text("default")


def test_stop_ends_an_answer_and_the_job_behind_it(page, engine, monkeypatch):
    closed, over = [], threading.Event()

    def slow(*_):
        """An answer without an end, two words a second."""
        try:
            for i in range(2, 10_000):
                yield ["word " * i] * 2
                over.wait(0.5)
        finally:
            closed.append(True)

    monkeypatch.setattr(engine, "chat", slow)
    page.fill("#box textarea", "Tell me a long story")
    page.click("#send")
    until(lambda: "word word" in answers(page, "right").last.inner_text())
    page.click("#stop")
    until(lambda: closed)
    expect(page.locator("#send")).to_be_visible()
    monkeypatch.undo()
    page.click("#clear")
    expect(answers(page, "left")).to_have_count(0)


def test_a_width_of_zero_is_said_at_the_slider(page):
    box = page.locator("#width input[type=number]")
    box.fill("0")
    box.press("Enter")
    expect(page.locator("#width .said")).to_contain_text("must be above 0")
    box.fill("0.15")
    box.press("Enter")
    expect(page.locator("#width .said")).to_have_count(0)
    box.fill("0")
    box.press("Enter")
    expect(page.locator("#width .said")).to_contain_text("must be above 0")
    page.click("#profile label:has-text('Narrow')")  # writes a width of its own
    expect(page.locator("#width .said")).to_have_count(0)
    page.click("#profile label:has-text('Default')")
    expect(page.locator("#apply")).to_contain_text("Applied")


WEIGHTS = ("strength", "peak", "width", "threshold")
IN_RANGE = {("width", "99"), ("attention", "-5"), ("mlp", "-5")}


@pytest.mark.parametrize("name", [*WEIGHTS, "attention", "mlp"])
def test_a_number_is_taken_as_typed_or_said_at_its_slider_and_unapplies(page, name):
    box, wrong = page.locator(f"#{name} input[type=number]"), page.locator(f"#{name} .said")
    expect(page.locator("#apply")).to_contain_text("Applied")
    before = box.input_value()
    for typed in ("", "-5", "1000000000", "99"):
        box.fill(typed)
        box.press("Tab")
        if (name, typed) in IN_RANGE:
            expect(wrong).to_have_count(0)
        else:  # of this value, not of the last one
            expect(wrong).to_contain_text(f" is {typed}" if typed else "empty")
        expect(page.locator("#apply")).to_contain_text("Apply changes")
        assert box.input_value() == typed, "nothing is put to the end of the slider unseen"
    box.fill(before)
    expect(wrong).to_have_count(0)
    if name in ("peak", "width", "threshold"):  # they made the profile a custom one
        page.click("#profile label:has-text('Default')")
    expect(page.locator("#apply")).to_contain_text("Applied")
    expect(toasts(page)).to_have_count(0)


def test_the_selected_profile_repairs_what_was_broken(page):
    box = page.locator("#peak input[type=number]")
    expect(page.locator("#profile label.selected")).to_have_text("Default")
    box.fill("")
    expect(page.locator("#peak .said")).to_contain_text("empty")
    page.click("#profile label:has-text('Default')")
    expect(box).to_have_value("0.6")
    expect(page.locator("#peak .said")).to_have_count(0)
    expect(page.locator("#apply")).to_contain_text("Applied")


def test_a_profile_is_picked_though_no_answer_has_come_yet(page):
    """On a slow machine the server has not said yet what an earlier number makes of the profile."""
    box, held = page.locator("#peak input[type=number]"), []
    page.route("**/queue/join**", lambda route: held.append(route))
    for typed, name, peak in (
        ("", "Narrow", "0.6"),
        ("0.3", "Early", "0.4"),
        ("", "Default", "0.6"),
    ):
        box.fill(typed)
        expect(page.locator("#profile label.selected")).to_have_text("Custom")
        page.click(f"#profile label:has-text('{name}')")
        expect(box).to_have_value(peak)
    assert held, "no request was made: nothing was late"
    for route in held:
        route.continue_()
    page.unroute("**/queue/join**")
    expect(page.locator("#apply")).to_contain_text("Applied")
    expect(page.locator("#profile label.selected")).to_have_text("Default")
    expect(page.locator("#peak .said")).to_have_count(0)


def test_add_and_an_affine_target_exclude_one_another(page):
    page.click("#operation label:has-text('Ablate')")
    expect(page.locator("#norm-preserving input")).to_be_enabled()
    page.click("#affine input")
    expect(page.locator("#operation input").last).to_be_disabled()
    expect(page.locator("#norm-preserving input")).to_be_disabled()
    expect(page.locator("#apply")).to_contain_text("Apply changes")
    expect(page.locator("#notes")).to_contain_text("cannot be combined")
    page.click("#affine input")
    page.click("#operation label:has-text('Add')")
    expect(page.locator("#affine input")).to_be_disabled()
    expect(page.locator("#apply")).to_contain_text("Apply changes")
    page.click("#operation label:has-text('Ablate')")
    expect(page.locator("#affine input")).to_be_enabled()
    page.click("#operation label:has-text('Filter')")
    expect(page.locator("#apply")).to_contain_text("Applied")


def test_a_number_of_the_merge_is_said_though_another_tab_is_open(page):
    tab(page, "edit-tabs", 1)
    page.click("#merge-data > button")
    page.fill("#m_samples input", "2.5")
    expect(page.locator("#m_samples .said")).to_have_count(0)  # the merge is off
    page.locator("#merge_on input").evaluate("box => box.click()")
    expect(page.locator("#m_samples .said")).to_contain_text("whole number")
    tab(page, "edit-tabs", 0)
    page.click("#apply")
    expect(page.locator("#m_samples .said")).to_be_visible()
    page.fill("#m_samples input", "0")
    page.locator("#merge_on input").evaluate("box => box.click()")
    page.click("#merge-data > button")
    tab(page, "edit-tabs", 0)
    tab(page, "figure-tabs", 0)
    expect(page.locator("#apply")).to_contain_text("Applied")


def test_the_recipe_is_saved_as_it_is_shown(page):
    tab(page, "work-tabs", 2)
    with page.expect_download() as started:
        page.click("#download-recipe")
    assert started.value.suggested_filename == "recipe.yaml"
    saved = recipes.load(started.value.path())
    expect(page.locator("#recipe-digest")).to_contain_text(saved.digest())
    tab(page, "work-tabs", 0)


def test_a_file_that_is_too_large_is_refused_with_its_name_and_the_limit(page, tmp_path):
    big = tmp_path / "big.csv"
    big.write_bytes(b"prompt\n" + b"x" * 21_000_000)
    page.click("#direction-panel .label-wrap")
    page.locator("#direction-upload .label-wrap").first.click()
    with page.expect_file_chooser() as chooser:
        page.click("#direction-file")
    chooser.value.set_files(big)
    expect(toasts(page).first).to_contain_text("20.0 Mb")
    expect(toasts(page).first).to_contain_text("big.csv")
    page.locator(".toast-close").first.click()
    page.locator("#direction-upload .label-wrap").first.click()
    page.click("#direction-panel > .label-wrap")


def test_a_visitor_who_has_uploaded_enough_is_told_so_in_the_page(page, tmp_path, monkeypatch):
    (small := tmp_path / "small.csv").write_text("prompt\nHello\n")
    monkeypatch.setenv("SST_SHARED", "1")
    limits = replace(roles.LIMITS[roles.Role.VISITOR], uploads=0)
    monkeypatch.setitem(roles.LIMITS, roles.Role.VISITOR, limits)
    page.click("#direction-panel .label-wrap")
    page.locator("#direction-upload .label-wrap").first.click()
    with page.expect_file_chooser() as chooser:
        page.click("#direction-file")
    chooser.value.set_files(small)
    expect(toasts(page).first).to_contain_text("A visitor of this shared studio may upload")
    monkeypatch.undo()
    page.locator(".toast-close").first.click()
    page.locator("#direction-upload .label-wrap").first.click()
    page.click("#direction-panel > .label-wrap")


def test_a_folder_without_a_model_is_said_under_its_button(page, tmp_path):
    page.click("#model-panel .label-wrap")
    name = page.locator("#model-id input")
    expect(name).to_have_value("demo")  # the accordion fills itself when it is opened

    def typed():  # what is typed while it does is lost
        name.fill(str(tmp_path))
        page.evaluate("new Promise(drawn => requestAnimationFrame(() => setTimeout(drawn)))")
        return name.input_value() == str(tmp_path)

    until(typed)
    page.click("#load-model")
    expect(page.locator("#model-status")).to_contain_text("config.json")
    page.click("#model-panel .label-wrap")
    expect(page.locator("#model-line")).to_contain_text("demo")


def test_a_prompt_file_that_is_not_utf8_is_said_at_its_control(page, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n')
    page.click("#direction-panel .label-wrap")
    page.fill("#harmful input", str(path))
    page.press("#harmful input", "Enter")
    page.click("#measure")
    said = page.locator("#harmful .said")
    expect(said).to_contain_text("not UTF-8")
    # it stays while other functions report, and goes when its control is changed
    before = line(page)
    strength = page.locator("#strength input[type=number]")
    strength.fill("0.5")
    strength.press("Enter")
    until(lambda: line(page) != before)
    expect(said).to_contain_text("not UTF-8")
    # and is shown although the panel of its control is closed
    page.click("#direction-panel .label-wrap")
    expect(said).not_to_be_visible()
    page.click("#apply")
    expect(said).to_be_visible()
    page.fill("#harmful input", "demo/harmful")
    page.press("#harmful input", "Enter")
    expect(said).to_have_count(0)
    page.click("#direction-panel .label-wrap")


def test_a_message_longer_than_the_context_is_said_and_the_chat_goes_on(page):
    page.fill("#box textarea", "why " * 2000)
    page.click("#send")
    expect(page.locator("#chat-status")).to_contain_text("Shorten it")
    page.click("#clear")


@pytest.fixture(scope="module")
def other(window):
    """A second visitor's page, for the tests that follow it."""
    with window() as page:
        yield page


def test_no_input_of_an_event_that_is_over_is_looked_at_ever_after(page):
    """Gradio keeps them as inputs of a stream, and writes their state at every later word."""
    kept = page.evaluate("""async () => {
      const { name } = performance.getEntriesByType('resource')
        .find(({ name }) => name.includes('/statustracker-'));
      const parts = Object.values(await import(name));
      const States = parts.find((part) => part?.prototype?.resolve_args);
      const states = new States();
      states.register(7, [], [1, 2, 3], 'hidden');
      states.update({ fn_index: 7, status: 'complete', stream_state: 'closed' });
      return Object.keys(states.current);
    }""")
    assert kept == []


def test_two_windows_keep_their_own_recipe(page, other):
    other.click("#profile label:has-text('Late')")
    other.click("#apply")
    expect(other.locator(".variant.current")).to_contain_text("late_focus")
    expect(page.locator(".variant.current")).to_contain_text("default")
    assert page.locator(".variant:has-text('late_focus')").count() == 0


def test_apply_right_after_a_profile_applies_that_profile(other, monkeypatch):
    answered = threading.Event()
    picked = draw_draft.with_profile

    def late(*draft):
        answered.wait(SECONDS)
        return picked(*draft)

    monkeypatch.setattr(draw_draft, "with_profile", late)
    other.click("#profile label:has-text('Narrow')")
    other.click("#apply")
    try:
        expect(other.locator(".variant.current")).to_contain_text("narrow")
    finally:
        answered.set()
    expect(other.locator("#apply")).to_contain_text("Applied")
    expect(other.locator("#width input[type=number]")).to_have_value("0.08")


def test_variants_survive_a_reload(other):
    other.click("#profile label:has-text('Early')")
    other.click("#apply")
    expect(other.locator(".variant.current")).to_contain_text("early_focus")
    other.reload()
    expect(other.locator(".variant.current")).to_contain_text("early_focus")
    expect(other.locator("#profile label.selected")).to_have_text("Early")
    other.click(".variant:has-text('default')")
    expect(other.locator("#profile label.selected")).to_have_text("Default")


def test_a_link_opens_with_its_recipe(window, engine):
    recipe = engine.first_recipe()
    edit = recipe.edits[0]
    weights = replace(edit.weights, profile="custom", width=0.31, strength=-0.5)
    text = recipes.to_yaml(replace(recipe, edits=(replace(edit, weights=weights),)))
    with window(f"?recipe={quote(text)}") as page:
        expect(page.locator("#width input[type=number]")).to_have_value("0.31")
        expect(page.locator(".variant.current")).to_contain_text("custom ×−0.5")


def test_a_japanese_visitor_reads_japanese(window):
    with window(locale="ja-JP", extra_http_headers={"Accept-Language": "ja,en;q=0.5"}) as page:
        expect(page.locator("#apply")).to_contain_text("適用済み")
        expect(page.locator("#strength")).to_contain_text("強さ")
        expect(page.locator("#profile")).to_contain_text("前寄り")
        expect(page.locator("#metrics-panel .legend")).to_contain_text("誤差内")
        assert page.evaluate(OUTSIDE) == []


def test_the_language_is_switched_and_stays_after_a_reload(window):
    with window() as page:
        switch = page.locator("#language-switch")
        expect(switch).to_have_text("日本語")
        switch.click()
        expect(page.locator("#send")).to_have_text("送信")  # of Gradio's page
        expect(page.locator("#header")).to_contain_text("拒否")  # of the server
        page.reload()
        expect(page.locator("#send")).to_have_text("送信")
        expect(switch).to_have_text("English")  # the server has drawn the header
        switch.click()
        expect(page.locator("#send")).to_have_text("Send")
        expect(page.locator("#header")).not_to_contain_text("拒否")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling(window, scheme):
    options = {"viewport": {"width": 390, "height": 844}, "color_scheme": scheme}
    with window(**options) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
