"""The documents: they build offline, and the README is short and agrees with the results page."""

import re
import subprocess
import sys

import pytest

from docs import reference
from sst_ui import schema
from tests.unit.test_house import ROOT

OVERVIEW = {  # column of the README's table -> column of the results page
    "base": "base",
    "default, 1": "default, 1",
    "broad, 1": "broad, 1",
    "narrow, 1.5": "narrow, 1.5",
    "default, −1": "default, −1",
    "random, 1": "random direction, 1",
}


def table(text: str, first: str) -> dict[str, dict[str, str]]:
    """The first table whose header starts with `first`: row -> column -> value without interval."""
    lines = text[text.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()
    header, *rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    return {
        re.sub(r" [↑↓]$", "", row[0]): {
            name: re.sub(r" \[.*", "", value) for name, value in zip(header, row, strict=True)
        }
        for row in rows[1:]
    }


@pytest.mark.parametrize(("language", "name"), reference.PAGES.items())
def test_the_recipe_reference_is_what_the_settings_say(language, name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == reference.page(language), "run: python -m docs.reference"
    assert set(reference.ORDER) == set(schema.parts())


def test_the_readme_is_a_page_or_two():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_s_numbers_are_those_of_the_results_page():
    short = table((ROOT / "README.md").read_text(encoding="utf-8"), "metric")
    full = table((ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "metric")
    assert len(short) == 10
    for metric, row in short.items():
        for column, source in OVERVIEW.items():
            assert row[column] == full[metric][source], (metric, column)


def test_the_documents_build_without_a_network_and_every_link_in_them_leads_somewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install -r requirements-dev.txt")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages == {path.stem for path in tmp_path.glob("*.html")} - {"404"}
    outside = re.compile(r"<(?:script|link)[^>]+(?:src|href)=\"https?://")
    assert not outside.search((tmp_path / "index.html").read_text(encoding="utf-8"))
