"""Writes the recipe reference, in English and Japanese, from the settings' own description:
`python -m docs.reference` after a setting was changed. A test says whether the pages are current.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sst_ui import options  # noqa: F401  describes the settings beside a recipe's
from sst_ui.maths.merge.parameters import Parameter
from sst_ui.maths.merge.registry import METHODS
from sst_ui.paths import PRESETS
from sst_ui.schema import KINDS, Setting, parts, settings

PAGES = {"en": "recipe.md", "ja": "recipe-ja.md"}
ORDER = ("recipe", "model", "edit", "filter", "directions", "weights", "merge", "evaluation",
         "search", "rounds", "export", "chat")  # fmt: skip
TEXTS: Mapping[str, Mapping[str, Any]] = {
    "en": {
        "title": "Recipe reference",
        "intro": "Every setting with its values and default, written by `python -m docs.reference`."
        " How recipes are used: [Recipes and the command line](recipes.md). A key that is left out"
        " or left empty has its default.",
        "several": "several: ",
        "head": ("setting", "values", "default", "what it is"),
        "kinds": KINDS,
        "parts": {
            "recipe": "At the top",
            "model": "`model`",
            "edit": "`edits`: an ablation",
            "filter": "`filter` of an ablation with operation `filter`",
            "directions": "`directions` of an ablation",
            "weights": "`weights` of an ablation or a merge",
            "merge": "`edits`: a merge",
            "evaluation": "`evaluation`",
            "search": "Options of `search`",
            "rounds": "Options of `measure --rounds`",
            "export": "Options of `export`",
            "chat": "Options of `chat`",
        },
        "methods": "Parameters of the merge methods",
        "of": "method",
        "required": "must be given",
        "none": "none",
    },
    "ja": {
        "title": "レシピの設定一覧",
        "intro": "すべての設定と、その値・既定値です（`python -m docs.reference` が生成）。使い方は"
        "[レシピとコマンドライン](recipes.md)（英語）をご覧ください。省略したキーや空のキーは既定値になります。",
        "several": "複数：",
        "head": ("設定", "値", "既定値", "説明"),
        "kinds": {bool: "true または false", str: "文字列", int: "整数", float: "数値"},
        "parts": {
            "recipe": "最上位",
            "model": "`model`",
            "edit": "`edits`：除去",
            "filter": "操作 `filter` の除去の `filter`",
            "directions": "除去の `directions`",
            "weights": "除去・マージの `weights`",
            "merge": "`edits`：マージ",
            "evaluation": "`evaluation`",
            "search": "`search` のオプション",
            "rounds": "`measure --rounds` のオプション",
            "export": "`export` のオプション",
            "chat": "`chat` のオプション",
        },
        "methods": "マージ手法のパラメータ",
        "of": "手法",
        "required": "必須",
        "none": "なし",
    },
}


def page(language: str) -> str:
    """The whole page as Markdown."""
    texts = TEXTS[language]
    lines = [f"# {texts['title']}", "", texts["intro"]]
    for name in ORDER:
        rows = settings(parts()[name]).values()
        lines += ["", f"## {texts['parts'][name]}", "", *_head(texts["head"])]
        lines += [_row(row, language) for row in rows]
    lines += ["", f"## {texts['methods']}", "", *_head((texts["of"], *texts["head"]))]
    for method in METHODS:
        for row in method.parameters:
            values = ", ".join(f"`{word}`" for word in row.choices)
            values = values or f"{row.low:g} – {row.high:g}"
            what = _what(row, language)
            cells = (f"`{method.name}`", f"`{row.name}`", values, f"`{row.default}`", what)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _head(titles: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _row(row: Setting, language: str) -> str:
    texts, limits = TEXTS[language], row.limits
    values = ", ".join(f"`{word}`" for word in limits.choices) or texts["kinds"][limits.kind]
    if row.range:
        low = row.range if language == "en" else _range(row)
        values += f", {low}" if language == "en" else f"、{low}"
    values = texts["several"] + values if row.several else values
    default = texts["required"] if row.required else _default(row.default, texts["none"])
    name = row.name.partition(".")[2]
    return f"| `{name}` | {values} | {default} | {row.help(language)} |"


def _what(row: Parameter, language: str) -> str:
    """What a method's parameter is; in other languages as its control on the page is called."""
    if language == "en":
        return row.what
    texts = yaml.safe_load((PRESETS / "texts.yaml").read_text(encoding="utf-8"))
    name = {"target": "merge.target", "mode": "merge.fisher"}.get(row.name, f"dial.{row.name}")
    return texts[name][language]


def _range(row: Setting) -> str:
    limits = row.limits
    high = "" if limits.high is None else f"{limits.high:.12g}"
    if limits.above is not None:
        words = f"{limits.above} より大きい" + (f"（{high} まで）" if high else "")
    else:
        words = f"{limits.low}〜{high}" if high else f"{limits.low} 以上"
    return f"{words} {row.unit}".strip()


def _default(value: Any, none: str) -> str:
    if value is None or value == () or value == {} or value == "":
        return none
    if isinstance(value, Mapping):
        return f"`{{{', '.join(f'{key}: {item:g}' for key, item in value.items())}}}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    for code, file in PAGES.items():
        (Path(__file__).parent / file).write_text(page(code), encoding="utf-8")
