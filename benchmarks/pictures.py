"""Figures as SVG for docs/, drawn by Plotly in the Chromium of the browser tests."""

from urllib.parse import unquote

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs


def svg(figure: Figure, width: int, height: int) -> str:
    """The figure as an SVG text; needs Playwright and Chromium, as the browser tests do."""
    from playwright.sync_api import sync_playwright

    from tests.browser.chromium import executable

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            page = browser.new_page()
            page.set_content("<div id='figure'></div>")
            page.add_script_tag(content=get_plotlyjs())
            url = page.evaluate(
                "([spec, size]) => Plotly.toImage(spec, {format: 'svg', ...size})",
                [figure.to_plotly_json(), {"width": width, "height": height}],
            )
        finally:
            browser.close()
    return unquote(url.partition(",")[2])
