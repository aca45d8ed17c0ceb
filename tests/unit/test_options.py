"""Numbers on the command line: a wrong one is one line and exit code 2, whatever it is."""

import argparse

import pytest

from sst_ui.__main__ import build_parser, main

NONSENSE = ("nan", "inf", "1e999", "abc", "", " ", "10**400", "9" * 400, "9" * 5000, "0x10", "1,5")


def numbers(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()):
    """(command words, option) of every option that is a number."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from numbers(child, (*path, name))
        elif action.type is not None and "option_types" in getattr(action.type, "__module__", ""):
            yield path, action.option_strings[-1]


EVERY = sorted(numbers(build_parser()))


def needed(path: tuple[str, ...]) -> list[str]:
    """What a command cannot do without; none of it is ever opened."""
    recipe = ["shipped.yaml"] if path[0] in ("search", "evaluate", "export") else []
    out = ["--out", "never"] if path[0] in ("measure", "export", "merge") else []
    pair = ["--utility", "a", "--safety", "b"] if path[0] == "merge" else []
    return [*recipe, *out, *pair]


def said(capsys) -> str:
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.startswith("error: ")
    assert found.err.count("\n") == 1
    assert len(found.err) < 600
    return found.err


def test_no_number_is_read_by_anything_else():
    plain = [
        action.option_strings
        for parser in [build_parser()]
        for commands in parser._actions
        if isinstance(commands, argparse._SubParsersAction)
        for child in commands.choices.values()
        for action in child._actions
        if action.type in (int, float)
    ]
    assert plain == []
    assert len(EVERY) > 25


@pytest.mark.parametrize(("path", "option"), EVERY, ids=lambda x: "-".join(x).strip("-"))
def test_what_is_not_a_number_is_one_line_and_exit_code_2(path, option, capsys):
    for text in NONSENSE:
        if option in ("--seed", "--limit") and text == "9" * 400:
            continue  # a whole number indeed, and out of range: below
        assert main([*path, *needed(path), f"{option}={text}"]) == 2, text
        assert option in said(capsys)


OUTSIDE = [
    ("kernel", "--layers", "0 -5 1000000000"),
    ("kernel", "--peak", "-5 1.01"),
    ("kernel", "--width", "0 -5 1e300 1e-300"),
    ("kernel", "--threshold", "-5 2"),
    ("measure", "--k", "0 -5 17"),
    ("measure", "--layer", "-5 1e15"),
    ("measure", "--winsorize", "0 1.5"),
    ("measure", "--samples", "0 -5 1"),
    ("search", "--trials", "0 -5"),
    ("search", "--minutes", "0 -5"),
    ("search", "--samples", "0 -5"),
    ("search", "--tokens", "0 -5 5000"),
    ("search", "--seed", "-5 4294967296"),
    ("search", "--round", "0 -5"),
    ("search", "--workers", "0 -5"),
    ("evaluate", "--samples", "0 -5"),
    ("evaluate", "--max-new-tokens", "0 -5 5000"),
    ("export", "--rank", "0 -5"),
    ("export", "--verify", "-5"),
    ("merge", "--budget", "0 -5"),
    ("merge", "--weight", "-5 3"),
    ("merge", "--inputs", "-5 5000"),
    ("merge", "--samples", "0 -5 1"),
    ("merge", "--rank", "0 -5"),
    ("chat", "--max-new-tokens", "0 -5 5000"),
    ("chat", "--temperature", "-5 99"),
    ("history list", "--limit", f"0 -5 {'9' * 400}"),
]


@pytest.mark.parametrize(("command", "option", "values"), OUTSIDE, ids=lambda x: x[:20])
def test_a_number_outside_its_range_is_one_line_and_exit_code_2(
    command, option, values, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped.yaml").write_text("version: 1\nedits: [{}]")
    path = tuple(command.split())
    for text in values.split():
        assert main([*path, *needed(path), f"{option}={text}"]) == 2, text
        said(capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["shipped.yaml"]


def test_both_numbers_of_a_bell_are_held_to_their_ranges(capsys):
    for bell in (["--peak=5", "--width=0.2"], ["--peak=0.5", "--width=0"], ["--peak=0.5"]):
        assert main(["merge", *needed(("merge",)), *bell]) == 2
        said(capsys)


@pytest.mark.parametrize("value", ["mu=nan", "mu=", "=3", "mu=" + "9" * 5000, "mu", "x" * 5000])
def test_a_wrong_parameter_of_a_method_is_one_line(value, capsys):
    assert main(["merge", *needed(("merge",)), "--set", value]) == 2
    said(capsys)


@pytest.mark.parametrize("word", ["--format", "--strategy"])
def test_a_long_wrong_choice_is_cut(word, capsys):
    command = "export" if word == "--format" else "search"
    assert main([command, *needed((command,)), word, "x" * 9999]) == 2
    said(capsys)
