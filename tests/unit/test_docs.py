"""The documents: they build offline, name what there is, and say when their tables were made."""

import hashlib
import re
import subprocess
import sys

import pytest

from docs import reference
from sst_ui import schema
from sst_ui.maths.merge.registry import METHODS
from sst_ui.metrics.registry import METRICS, Metric
from sst_ui.paths import DEMO
from tests.unit.test_house import ROOT

OVERVIEW = {  # column of the README's table -> column of the results page
    "base": "base",
    "default, 2": "default, 2",
    "narrow, 2": "narrow, 2",
    "plain, 1.5": "plain, 1.5",
    "added, −1": "added, −1",
    "random, 2": "random directions, 2",
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


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["results.md", "benchmarks.md"])
def test_every_section_with_a_table_of_measurements_says_when_it_was_measured(name):
    sections = re.split(r"^## ", page(name), flags=re.MULTILINE)[1:]
    measured = [section for section in sections if "\n|---|" in section]
    assert len(measured) > 3
    for section in measured:
        assert re.search(r"`[^`]*python\s+-m\s+(benchmarks|training)\.", section), section[:60]
        assert re.search(r"[Mm]easured\s+20\d\d-\d\d-\d\d", section), section[:60]


def test_the_tables_of_results_were_measured_on_the_demo_that_is_shipped():
    text = page("results.md").replace("\n", " ")
    for name, pattern in (("weights", "*.safetensors"), ("adapters", "adapters/*/*.safetensors")):
        digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(DEMO.glob(pattern))))
        assert f"demo {name} `{digest.hexdigest()[:12]}`" in text, (
            "the demo has changed: measure the tables again, and write its digest into the page"
        )


def test_the_documents_name_every_metric_and_every_merge_method():
    for row in METRICS:
        made = row.score if isinstance(row, Metric) else row.combine
        if made.__module__.startswith("sst_ui."):  # not a user's own, or another test's
            assert f"`{row.name}`" in page("metrics.md"), row.name
    listed = page("merging.md").partition("`--method` takes")[2].split(";")[0]
    assert re.findall(r"`(\w+)`", listed) == METHODS.names()


def test_every_file_that_the_walks_name_is_there():
    named = set(re.findall(r"`([\w/]+/\w+\.py|recipe\.py)`", page("architecture.md")))
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "sst_ui" / name).is_file()] == []


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
