"""The command line: `python -m sst_ui kernel | measure | run | export | ...`.

Exit codes: 0; 2 for bad input and what the system refuses (one line, no traceback); 130 for Ctrl+C;
143 for SIGTERM; 141 for a pipe that nobody reads; 1 for anything else (an export that does not
verify, a defect). Heavy imports happen inside the commands, so that `--help` and `kernel` answer at
once.
"""

import argparse
import os
import sys
from collections.abc import Callable, Generator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from sst_ui import app
from sst_ui.cli import (
    compare as comparing,
)
from sst_ui.cli import (
    completion,
    live,
    streams,
    tables,
    with_bar,
)
from sst_ui.cli import (
    evaluate as evaluating,
)
from sst_ui.cli import (
    export as exporting,
)
from sst_ui.cli import (
    history as remembering,
)
from sst_ui.cli import (
    merge as merging,
)
from sst_ui.cli import (
    rounds as in_rounds,
)
from sst_ui.cli import (
    search as searching,
)
from sst_ui.cli.option_types import add, whole
from sst_ui.errors import UserError, line_of
from sst_ui.options import ChatOptions
from sst_ui.program import program
from sst_ui.progress import Progress
from sst_ui.recipe import (
    LAYERS,
    SHAPE,
    Ablation,
    DirectionSpec,
    ModelSpec,
    Recipe,
    from_data,
    load,
    to_dict,
)
from sst_ui.schema import build, setting

MEASURED = (
    "estimator", "harmful", "harmless", "concepts", "k", "layer", "winsorize", "position",
    "samples",
)  # fmt: skip
Command = Callable[[argparse.Namespace], int | None]
Options = Callable[[argparse.ArgumentParser], None]


class Parser(argparse.ArgumentParser):
    """Wrong arguments are bad input like any other: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{line_of(message, 400)}. See `{self.prog} --help`.")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""

    def work() -> int | None:
        parser = build_parser()
        completion.answer(parser)
        options = parser.parse_args(arguments)
        return options.command(options)

    streams.warn_here()
    return streams.guarded(work)


def studio() -> int:
    """The command `sst-studio`: the page without a command's name, else as `python -m sst_ui`."""
    first = next(iter(sys.argv[1:]), "--")
    if not completion.asked() and first.startswith("-") and first not in ("-h", "--help"):
        return streams.guarded(lambda: app.open_page(app.settings(prog=program())))
    return main()


def build_parser() -> Parser:
    """Every command with its options."""
    parser = Parser(
        prog=program(),
        description="SST Studio on the command line.",
        epilog="The page, and nothing else: sst-studio [--host HOST] [--port PORT] [--model MODEL]",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(name: str, run: Command, text: str, *options: Options) -> None:
        own = commands.add_parser(name, help=text)
        for each in options:
            each(own)
        own.set_defaults(command=run)

    command("kernel", _kernel, "print a weight kernel, one value per layer", _kernel_options)
    command("measure", _measure, "measure refusal directions and save them",
            _model_options, _measure_options, in_rounds.options)  # fmt: skip
    command("run", _run, "carry out a recipe and write its results", _recipe_file, _run_options)
    command("search", _search, "try many settings and keep the best",
            _recipe_file, searching.options, _other_model)  # fmt: skip
    command("evaluate", _evaluate, "measure a recipe's metrics",
            _recipe_file, evaluating.options, _other_model)  # fmt: skip
    command("export", _export, "write the edited model for other tools",
            _recipe_file, exporting.options)  # fmt: skip
    command("merge", _merge, "merge a safety adapter into a utility adapter",
            _model_options, merging.options)  # fmt: skip
    command("compare", comparing.run, "what turned one model into another, from their files",
            comparing.options)  # fmt: skip
    command("metrics", _metrics, "list what can be measured", _json)
    command("chat", _chat, "chat with the base and the edited model side by side",
            _chat_recipe, _other_model, _chat_options)  # fmt: skip
    command("history", remembering.run, "the recipes applied so far, with their numbers",
            remembering.options)  # fmt: skip
    command("completion", _completion, "a script for bash, zsh or fish", completion.options)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")


def _recipe_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")


def _kernel_options(parser: argparse.ArgumentParser) -> None:
    add(parser, "weights.profile", default=setting("weights.profile").default)
    parser.add_argument("--model", default="demo", help="whose own it is, for --profile model")
    parser.add_argument("--layers", type=whole(1, LAYERS), default=32)
    for name in SHAPE:
        add(parser, f"weights.{name}")
    _json(parser)


def _measure_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="F.safetensors")
    for name in MEASURED:
        add(parser, f"directions.{name}", default=setting(f"directions.{name}").default)
    parser.add_argument("--json", action="store_true", help="per-layer analysis as JSON")
    parser.add_argument(
        "--filter", action="store_true",
        help="also collect what operation filter needs, and print what it is predicted to do",
    )  # fmt: skip


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--force", action="store_true", help="overwrite another recipe's results")
    parser.add_argument("--json", action="store_true", help="print metrics.json on stdout")


def _chat_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, nargs="?", metavar="RECIPE.yaml")


def _chat_options(parser: argparse.ArgumentParser) -> None:
    for name, default in vars(ChatOptions()).items():
        add(parser, f"chat.{name}", default=default)


def _other_model(parser: argparse.ArgumentParser) -> None:
    """A model in place of the recipe's."""
    _model_options(parser, default=None)


def _model_options(parser: argparse.ArgumentParser, default: str | None = "demo") -> None:
    add(parser, "model.id", "--model", default=default)
    for field in fields(ModelSpec)[1:]:
        add(parser, f"model.{field.name}")


def _checked(kind: type, where: str, values: dict[str, Any]) -> Any:
    """A recipe part from options, with the recipe file's own checks and messages."""
    return build(kind, {name: v for name, v in values.items() if v is not None}, where)


def _model_spec(options: argparse.Namespace, base: ModelSpec | None = None) -> ModelSpec:
    values = to_dict(base or ModelSpec())
    given = {name: getattr(options, name) for name in values if name != "id"}
    given["id"] = options.model
    return _checked(ModelSpec, "model", values | {k: v for k, v in given.items() if v is not None})


def _kernel(options: argparse.Namespace) -> None:
    from sst_ui.maths import kernel

    shape = {name: getattr(options, name) for name in ("profile", "peak", "width", "threshold")}
    recipe = {"version": 1, "model": {"id": options.model}, "edits": [{"weights": shape}]}
    weights = from_data(recipe).edits[0].weights  # as a recipe says it, not as we would
    values = kernel.kernel(weights, options.layers)
    if options.json:
        shape = {"peak": weights.peak, "width": weights.width, "threshold": weights.threshold}
        print(streams.to_json({"layers": options.layers, **shape, "weights": values.tolist()}))
        return
    for layer, value in enumerate(values):
        print(f"layer {layer:3d}  {value:6.4f}  {'█' * round(40 * value)}")


def _measure(options: argparse.Namespace) -> None:
    values = {name: getattr(options, name) for name in MEASURED}
    values["scope"] = "per_layer" if options.layer is None else "single"
    spec = _checked(DirectionSpec, "directions", values)
    in_rounds.check(options)
    _writable(options.out)

    from sst_ui.jobs.directions.filtering import tradeoff
    from sst_ui.jobs.directions.measure import measure
    from sst_ui.jobs.export import protected_paths
    from sst_ui.model.runtime.host import load as load_host

    model = _model_spec(options)
    protected_paths.check(options.out, Recipe(model=model, edits=(Ablation(directions=spec),)))
    if options.rounds is not None:
        in_rounds.run(options, model, spec)
        return

    def job() -> Generator[Progress, None, Any]:
        host = yield from load_host(model)
        directions = yield from measure(host, spec)
        edit = Ablation(directions=spec, operation="filter")
        told = (yield from tradeoff(host, edit, directions)) if options.filter else []
        return directions, told

    directions, told = with_bar(job())
    directions.save(options.out)
    stats = {name: values.tolist() for name, values in directions.stats.items()}
    if options.json:
        meta = dict(directions.meta)
        rows = {"filter": [vars(point) for point in told]} if options.filter else {}
        print(
            streams.to_json(
                {"layers": directions.layers, "meta": meta, **stats, **directions.told(), **rows}
            )
        )
        return
    tables.directions(stats, directions.layers)
    tables.reliability(directions.reliability)
    if options.filter:
        tables.tradeoff(told)
    print(f"saved {options.out}")


def _merge(options: argparse.Namespace) -> None:
    merging.run(options, _model_spec(options))


def _search(options: argparse.Namespace) -> None:
    recipe = load(options.recipe)
    searching.run(options, replace(recipe, model=_model_spec(options, recipe.model)))


def _evaluate(options: argparse.Namespace) -> None:
    recipe = load(options.recipe)
    evaluating.run(options, replace(recipe, model=_model_spec(options, recipe.model)))


def _export(options: argparse.Namespace) -> int:
    return exporting.run(options, load(options.recipe))


def _completion(options: argparse.Namespace) -> None:
    print(completion.script(options.shell), end="")


def _metrics(options: argparse.Namespace) -> None:
    import sst_ui.metrics  # registers them
    from sst_ui.metrics.registry import METRICS, describe

    rows = [describe(row) for row in METRICS]
    for problem in sst_ui.metrics.plugins.PROBLEMS:
        print(f"warning: {problem}", file=sys.stderr)
    if options.json:
        print(streams.to_json(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "unit", "better", "prompts", "what", box=None)
    for row in rows:
        where = row["prompts"] or f"from {', '.join(row['sources'])}"
        name = row["name"] if row["default"] else f"({row['name']})"
        table.add_row(name, row["unit"], row["better"], where, row["what"])
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print("(in brackets: only when named)   name@prompts measures one on other prompts")


def _run(options: argparse.Namespace) -> None:
    recipe = load(options.recipe)

    from sst_ui.jobs.run_recipe import run

    outcome = with_bar(run(recipe, options.out, force=options.force))
    remembering.remember(recipe, outcome.results)
    if options.json:
        print(streams.to_json([result.to_json() for result in outcome.results]))
        return
    from sst_ui.model.architecture.discover import fold
    from sst_ui.model.hooks.low_rank import RowFilter

    tables.metrics(outcome.results)
    report = outcome.report
    print(f"changes {report.matched} modules: {fold(report.changed) or 'none'}")
    print(f"leaves {len(report.untouched)}: {fold(report.untouched) or 'none'}")
    print(f"largest relative error against the formula: {report.max_error:.1e}")
    for message in report.messages:
        print(f"note: {message}")
    for edit in outcome.edits:
        if isinstance(edit, RowFilter):
            print(edit.summary)
    print(f"recipe {recipe.digest()}: results in {options.out}")


def _chat(options: argparse.Namespace) -> None:
    from rich.console import Console

    from sst_ui.jobs.chat import chat, new_seed
    from sst_ui.jobs.directions.measure import resolve
    from sst_ui.model.runtime.host import load as load_host

    recipe = load(options.recipe) if options.recipe else Recipe(edits=(Ablation(),))
    recipe = replace(recipe, model=_model_spec(options, recipe.model))

    def job() -> Generator[Progress, None, Any]:
        host = yield from load_host(recipe.model)
        return host, (yield from resolve(host, recipe))

    host, edits = with_bar(job())
    console = Console()
    console.print("[dim]One message per line. /clear starts anew, /exit or Ctrl+D leaves.[/dim]")
    names, rows = ("base", "edited"), [(), edits]
    histories: list[list[dict[str, str]]] = [[], []]

    def left_out(counts: list[int]) -> None:
        for name, count in zip(names, counts, strict=True):
            if count:
                turns = "turn" if count == 1 else f"{count} turns"
                print(
                    f"note: {name} does not see the oldest {turns} any more; "
                    f"{host.name} reads {host.context} tokens."
                )

    while True:
        try:
            text = console.input("[bold]you:[/bold] ") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if text.strip() == "/exit":
            return
        if text.strip() == "/clear":
            histories = [[], []]
            continue
        if not text.strip():
            continue
        turns = [[*history, {"role": "user", "content": text}] for history in histories]
        seed = new_seed() if options.seed is None else options.seed
        if options.temperature > 0:
            print(f"seed {seed}")
        limits = (options.max_new_tokens, options.temperature, seed)
        try:
            answers = live(console, names, chat(host, rows, turns, *limits, notify=left_out))
        except UserError as error:  # a message too long must not end the conversation
            print(f"error: {error}", file=sys.stderr)
            continue
        histories = [
            [*turn, {"role": "assistant", "content": answer}]
            for turn, answer in zip(turns, answers, strict=True)
        ]


def _writable(path: Path) -> None:
    """Fail before the long work, not after it, when the result cannot be saved."""
    from sst_ui import disk
    from sst_ui.maths.directions import is_directions

    goal = disk.real(path)
    if goal.is_dir() or not goal.parent.is_dir():
        raise UserError(f"cannot write {path}: give a file name in an existing folder.")
    if os.path.lexists(goal) and not is_directions(goal):
        raise UserError(
            f"{path} exists and holds no directions of this studio; give another file name."
        )
    disk.probe(path)


if __name__ == "__main__":
    sys.exit(main())
