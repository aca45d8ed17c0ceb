"""`python -m training.demo`: make the demo again, from nothing: the model, its twin, its adapters.

Without options all of it is trained, measured and written, with cards, in one go.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training.demo import (
    adapter_table,
    adapters,
    long_chats,
    network,
    prompts,
    table,
    tokens,
    train,
)

STAGES = (*train.STAGE_1, train.STAGE_2)
ASSETS = Path(__file__).resolve().parents[2] / "assets" / "demo"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m training.demo", description=__doc__)
    p.add_argument("--out", type=Path, help="model directory to write (default: assets/demo)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--scale", type=float, default=1.0, help="all stages longer or shorter")
    p.add_argument("--quick", action="store_true", help="a smoke test: a useless model in seconds")
    p.add_argument("--prompts", action="store_true", help="only write the prompt sets")
    p.add_argument(
        "--adapters",
        action="store_true",
        help="only make the adapters, of a model that is there",
    )
    p.add_argument("--table", action="store_true", help="only measure the model, print its table")
    return p


def make(out: Path, seed: int, scale: float = 1.0, quick: bool = False) -> None:
    """Train all stages; write the model, and under it what it was before its safety tuning."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    factor = 3 / train.STAGE_1[0].steps if quick else scale
    stages = [replace(s, steps=max(2, round(s.steps * factor))) for s in STAGES]
    if quick:
        stages = [replace(s, rows=max(1, s.rows // 8)) for s in stages]
    begin = time.monotonic()
    tokenizer = tokens.train_tokenizer(seed, samples=200 if quick else 20_000)
    generator = torch.Generator().manual_seed(seed)
    net = network.Network(network.config(len(tokenizer)), generator)
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    seen = 0
    for number, stage in enumerate(stages, start=1):
        seen += train.run(net, tokenizer, stage, seed + number, compiled=not quick)
        if number == len(train.STAGE_1):
            train.save(net, tokenizer, out / adapters.UNALIGNED)
    train.save(net, tokenizer, out)
    minutes = (time.monotonic() - begin) / 60
    print(f"{out}: {seen:,} tokens in {minutes:.0f} minutes")


def make_adapters(out: Path, seed: int, quick: bool = False, only_table: bool = False) -> None:
    """Train the adapters of the model in `out`; measure them and its twin, write their cards."""
    folders = adapters.folders(out) if only_table else adapters.make(out, seed, quick)
    size = {"samples": 2, "tokens": 4} if quick else {}
    rows = adapter_table.measure(folders, base=out, **size)
    print(adapter_table.markdown(rows))
    if not only_table:
        adapter_table.write_cards(folders, rows)


def make_all(out: Path | None, seed: int, scale: float, quick: bool) -> None:
    """Make and measure the model, its twin and its adapters, then put them where they belong.

    They go there together: of a run that stops half-way nothing is left among the shipped files.

    Args:
        out: the model directory to write over; None to write nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        make(made, seed, scale, quick)
        if not quick:
            measured = table.measure(made, made / adapters.UNALIGNED)
            chats = long_chats.markdown(long_chats.measure(made))
            print(f"{measured}\n\n{chats}")
            table.write_card(made, measured, chats)
        make_adapters(made, seed, quick)
        if out:
            shutil.copytree(made, out, dirs_exist_ok=True)


def main(argv: list[str] | None = None) -> None:
    a = parser().parse_args(argv)
    if a.prompts:
        prompts.write(seed=a.seed)
        return
    if a.adapters:
        make_adapters(a.out or ASSETS, a.seed, a.quick, a.table)
    elif a.table:
        out = a.out or ASSETS
        print(table.measure(out, out / adapters.UNALIGNED))
        print(long_chats.markdown(long_chats.measure(out)))
    else:
        make_all(a.out or (None if a.quick else ASSETS), a.seed, a.scale, a.quick)


if __name__ == "__main__":
    main()
