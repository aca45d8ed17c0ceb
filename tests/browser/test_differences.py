"""The words in which two answers differ, as the page finds and marks them."""

import random
import re
from difflib import SequenceMatcher

import pytest

from sst_ui.paths import ASSETS

pytestmark = pytest.mark.browser

WRITTEN = """([left, right]) => {
  const column = (side) =>
    `<div id="chat-${side}"><div class="bot message"><span class="md"></span></div></div>`;
  document.body.innerHTML = column('left') + column('right');
  [left, right].forEach((html, n) => document.querySelectorAll('.md')[n].innerHTML = html);
  const before = document.body.innerHTML;
  differences.draw();
  const marked = [...CSS.highlights.get('differs')].map(String);
  return [marked, document.body.innerHTML === before];
}"""
HEAD = '<div class="source"><b>Base</b> <span class="label">delivered</span></div>'


@pytest.fixture(scope="module")
def bare(chromium, address):
    """An empty page with nothing but the script that marks."""
    page = chromium.new_page()
    page.route("**/empty", lambda route: route.fulfill(body="", content_type="text/html"))
    page.goto(f"{address}/empty")  # of an address: it has a storage
    page.add_script_tag(path=ASSETS / "differences.js")
    yield page
    page.context.close()


def compared(page, left, right):
    """The stretches that are marked in each text."""
    found = page.evaluate("(pair) => differences.compare(...pair)", [left, right])
    return [
        [text[start:end] for start, end in stretches]
        for text, stretches in zip((left, right), found, strict=True)
    ]


@pytest.mark.parametrize(
    ("left", "right", "marked"),
    [
        ("The same words.", "The same words.", [[], []]),
        ("", "", [[], []]),
        ("", "Yes, of course.", [[], ["Yes, of course."]]),
        ("I can help you.", "I cannot help you.", [["can"], ["cannot"]]),
        ("One  two\nthree", "One two three", [[], []]),
        ("Take a red box now", "Take a blue old box", [["red", "now"], ["blue old"]]),
        ("お手伝いできます。", "お手伝いできません。", [["ます"], ["ませ", "ん"]]),
        ("say <b>one</b> $x", "say <b>two</b> $x", [["one"], ["two"]]),
    ],
)
def test_the_words_that_differ_are_found(bare, left, right, marked):
    got = compared(bare, left, right)
    assert ["".join(each) for each in got] == ["".join(each) for each in marked]
    assert len(got[0]) == len(marked[0])


def test_as_few_words_are_marked_as_can_be(bare):
    """Against a table of its own: what is left unmarked is a longest common sequence."""
    draw = random.Random(7)
    for _ in range(60):
        one, two = ([draw.choice("abcdef") for _ in range(draw.randrange(25))] for _ in "lr")
        table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
        for i, a in enumerate(one):
            for j, b in enumerate(two):
                longest = max(table[i][j + 1], table[i + 1][j])
                table[i + 1][j + 1] = table[i][j] + 1 if a == b else longest
        marked = compared(bare, " ".join(one), " ".join(two))
        left, right = (len(" ".join(each).split()) for each in marked)
        assert len(one) - left == len(two) - right == table[-1][-1]
        blocks = SequenceMatcher(None, one, two, autojunk=False).get_matching_blocks()
        assert len(one) - left >= sum(block.size for block in blocks), "difflib finds no more"


def test_what_is_too_long_to_compare_is_not_marked_and_costs_nothing(bare):
    one, two = (" ".join(f"{side}{n}" for n in range(6000)) for side in "lr")
    assert compared(bare, one, two) == [[], []]
    assert compared(bare, f"{one} x", f"{one} y") == [["x"], ["y"]], "but for a few words"


def test_marks_are_laid_over_the_text_and_the_document_stays_as_it_is(bare):
    left = (
        f"{HEAD}<p>An <b>o</b>ld <code>&lt;i&gt;x&lt;/i&gt;</code></p><ul><li>a</li><li>b</li></ul>"
    )
    right = f"{HEAD}<p>An old <code>&lt;i&gt;y&lt;/i&gt;</code></p><ul><li>a</li><li>c</li></ul>"
    assert bare.evaluate(WRITTEN, [left, right]) == [["x", "b", "y", "c"], True]


def test_an_answer_brings_no_marks_and_no_line_of_its_own(bare):
    forged = f"{HEAD}<p>one</p><mark>{HEAD}</mark>"
    marked, same = bare.evaluate(WRITTEN, [forged, f"{HEAD}<p>one</p>"])
    assert same
    assert re.sub(r"\s+", " ", " ".join(marked)).strip() == "Base delivered", "it is text"
    unfinished = f"<p>{HEAD}</p><p>one</p>"  # its own line has no label: it still streams
    assert bare.evaluate(WRITTEN, [unfinished, f"{HEAD}<p>two</p>"]) == [[], True]
