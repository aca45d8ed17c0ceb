"""What axe, the usual checker of accessibility, says of the page; and how small its words are."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.browser.test_studio import answers, tab

pytestmark = pytest.mark.browser
SMALLEST = 12  # px
# Gradio's box for code has colours and a focus of its own, and a figure that is still empty a name
# without a role; a run is a box to tick, with buttons in it.
OURS = {"exclude": [[".cm-editor"], [".empty"], [".run"]]}
SMALL = """(smallest) => {  // words that are seen and smaller than that, each rule once
  const found = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.data.trim();
    if (!/[\\p{L}\\p{N}]/u.test(text) || element.closest('script, style, noscript')) continue;
    if (!element.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    const size = parseFloat(getComputedStyle(element).fontSize);
    if (size && size < smallest) found.set(`${element.tagName}.${element.className}`, [size, text]);
  }
  return [...found];
}"""


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(scope="module")
def seen(window, scheme):
    """A page with an answer in both columns and all metrics measured."""
    with window(color_scheme=scheme) as page:
        page.click(".example.is-harmful")
        expect(page.locator("#chat-status")).to_contain_text("/s")
        expect(answers(page, "right")).to_have_count(1)
        expect(page.locator("#run-metrics")).to_be_visible()
        yield page


@pytest.mark.parametrize("place", range(7))
def test_axe_finds_nothing_serious_in_any_tab(seen, place):
    tab(seen, "work-tabs", place)
    expect(seen.locator("#work-tabs [role=tabpanel]:visible").first).to_be_visible()
    found = Axe().run(seen, context=OURS).response["violations"]
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    told = [
        f"{v['id']}: {n['html'][:200]} {n['failureSummary']}" for v in grave for n in v["nodes"]
    ]
    assert told == []
    assert seen.evaluate(SMALL, SMALLEST) == []
