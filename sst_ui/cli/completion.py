"""The command `completion`: a script that teaches bash, zsh or fish this program's words.

Knows argparse's parser, from which every word is read, and the three shells' ways. The scripts
complete `python -m sst_ui` and define `sst_ui`, a short name for the same.
Why own code: shtab knows no fish, argcomplete hooks into every Python start.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Place:
    """Where one may stand: the command words so far, and what may follow.

    Attributes:
        path: `()` for none, `("history", "show")`.
        words: commands that may follow here.
        options: option -> (help, its values; None for a switch, () for a file or free text).
    """

    path: tuple[str, ...]
    words: dict[str, str]
    options: dict[str, tuple[str, tuple[str, ...] | None]]


def options(parser: argparse.ArgumentParser) -> None:
    """Which shell."""
    parser.add_argument("shell", choices=SHELLS)


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script of a shell, to be read by it at its start."""
    places = list(walk(parser))
    return {"bash": bash, "zsh": zsh, "fish": fish}[shell](places)


def walk(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[Place]:
    """Every command and its sub-commands, with their options."""
    words: dict[str, str] = {}
    known: dict[str, tuple[str, tuple[str, ...] | None]] = {}
    below = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words |= {a.dest: a.help or "" for a in action._choices_actions}
            below += [(name, action.choices[name]) for name in action.choices]
        elif action.option_strings:
            values = None if action.nargs == 0 else tuple(map(str, action.choices or ()))
            known |= dict.fromkeys(action.option_strings, (action.help or "", values))
        elif action.choices:
            words |= {str(c): "" for c in action.choices}
    yield Place(path, words, known)
    for name, child in below:
        yield from walk(child, (*path, name))


def bash(places: list[Place]) -> str:
    """For ~/.bashrc: `eval "$(python -m sst_ui completion bash)"`."""
    return f"""# bash completion of SST Studio
sst_ui() {{ {_python()} -m sst_ui "$@"; }}
{_function(places)}
_sst_ui() {{
  COMPREPLY=()
  local first=1 current=${{COMP_WORDS[COMP_CWORD]}}
  if [[ ${{COMP_WORDS[0]##*/}} == python* ]]; then
    [[ ${{COMP_WORDS[1]}} == -m && ${{COMP_WORDS[2]}} == sst_ui && $COMP_CWORD -gt 2 ]] || return
    first=3
  fi
  _sst_ui_words "${{COMP_WORDS[@]:first:COMP_CWORD-first}}"
  COMPREPLY=( $(compgen -W "$_sst_ui_found" -- "$current") )
}}
complete -o bashdefault -o default -F _sst_ui sst_ui python python3 {_python()}
"""


def zsh(places: list[Place]) -> str:
    """For ~/.zshrc, after compinit: `eval "$(python -m sst_ui completion zsh)"`."""
    return f"""# zsh completion of SST Studio
sst_ui() {{ {_python()} -m sst_ui "$@"; }}
{_function(places)}
_sst_ui() {{
  local first=2
  if [[ ${{words[1]:t}} == python* ]]; then
    if [[ $words[2] != -m || $words[3] != sst_ui || $CURRENT -le 3 ]]; then _files; return; fi
    first=4
  fi
  _sst_ui_words "${{(@)words[first,CURRENT-1]}}"
  if [[ -n $_sst_ui_found ]]; then compadd -- ${{=_sst_ui_found}}; else _files; fi
}}
compdef _sst_ui sst_ui python python3 {_python()}
"""


def fish(places: list[Place]) -> str:
    """For ~/.config/fish/config.fish: `python -m sst_ui completion fish | source`."""
    lines = [
        "# fish completion of SST Studio",
        f"function sst_ui; {_python()} -m sst_ui $argv; end",
        "function __sst_ui_at",
        "  set -l words (commandline -opc)",
        "  if string match -q 'python*' -- (basename -- $words[1])",
        '    test "$words[2] $words[3]" = "-m sst_ui"; or return 1',
        "    set -e words[1..3]",
        "  else",
        "    set -e words[1]",
        "  end",
        "  set -l path",
        "  for word in $words",
        '    contains -- "$path $word" ' + " ".join(_quoted(_path(p)) for p in places if p.path),
        '    and set path "$path $word"',
        "  end",
        '  test "$path" = "$argv[1]"',
        "end",
    ]
    for place in places:
        here = f"-n {_quoted('__sst_ui_at ' + _quoted(_path(place)))}"
        for command in ("sst_ui", "python", "python3"):
            for word, text in place.words.items():
                lines.append(f"complete -c {command} -f {here} -a {word} -d {_quoted(text)}")
            for name, (text, values) in place.options.items():
                kind = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                more = "" if values is None else " -r"
                more += f" -f -a {_quoted(' '.join(values))}" if values else ""
                lines.append(f"complete -c {command} {here} {kind}{more} -d {_quoted(text)}")
    return "\n".join(lines) + "\n"


def _function(places: list[Place]) -> str:
    """`_sst_ui_words WORD...`: what may follow the words, in $_sst_ui_found (bash and zsh)."""
    paths = "|".join(_quoted(_path(p)) for p in places if p.path)
    cases, values = [], []
    for place in places:
        found = " ".join([*place.words, *place.options])
        cases.append(f"    {_quoted(_path(place))}) _sst_ui_found={_quoted(found)} ;;")
        for name, (_, choices) in place.options.items():
            if choices is not None:  # files where the values are not known
                found = _quoted(" ".join(choices))
                values.append(
                    f"    {_quoted(f'{_path(place)} {name}')}) _sst_ui_found={found}; return ;;"
                )
    lines = [
        "_sst_ui_words() {",
        "  local word last='' at=''",
        '  for word in "$@"; do',
        "    last=$word",
        f'    case "$at $word" in {paths}) at="$at $word" ;; esac',
        "  done",
        '  case "$at $last" in',
        *values,
        "  esac",
        '  case "$at" in',
        *cases,
        "  esac",
        "}",
    ]
    return "\n".join(lines)


def _path(place: Place) -> str:
    return "".join(f" {word}" for word in place.path)


def _quoted(text: str) -> str:
    return shlex.quote(text)


def _python() -> str:
    """This Python: the program's name for the shells."""
    return shlex.quote(str(Path(sys.executable)))
