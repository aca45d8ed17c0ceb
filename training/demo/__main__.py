"""`python -m training.demo`: make the demo model and its prompt sets again."""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training.demo import adapter_table, adapters, network, prompts, table, tokens, train

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
        help="only make the adapters, on the shipped model, and its unaligned twin",
    )
    p.add_argument("--table", action="store_true", help="only measure the model, print its table")
    return p


def make(
    out: Path,
    seed: int,
    scale: float = 1.0,
    quick: bool = False,
    stage_1: Path | None = None,
) -> None:
    """Train both stages and write the model directory, and that of stage 1 where one is named."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    factor = 3 / train.STAGE_1[0].steps if quick else scale
    stages = [replace(s, steps=max(2, round(s.steps * factor))) for s in STAGES]
    begin = time.monotonic()
    tokenizer = tokens.train_tokenizer(seed, samples=200 if quick else 20_000)
    generator = torch.Generator().manual_seed(seed)
    net = network.Network(network.config(len(tokenizer)), generator)
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    seen = 0
    for number, stage in enumerate(stages, start=1):
        seen += train.run(net, tokenizer, stage, seed + number, compiled=not quick)
        if stage_1 and number == len(train.STAGE_1):
            train.save(net, tokenizer, stage_1)
    train.save(net, tokenizer, out)
    minutes = (time.monotonic() - begin) / 60
    print(f"{out}: {seen:,} tokens in {minutes:.0f} minutes")


def make_adapters(out: Path, seed: int, quick: bool = False, only_table: bool = False) -> None:
    """Train the adapters and the unaligned model under `out`; measure all, write their cards."""
    folders = adapters.folders(out) if only_table else adapters.make(out, seed, quick)
    size = {"samples": 2, "tokens": 4} if quick else {}
    rows = adapter_table.measure(folders, **size)
    print(adapter_table.markdown(rows))
    if not only_table:
        adapter_table.write_cards(folders, rows)


def main(argv: list[str] | None = None) -> None:
    a = parser().parse_args(argv)
    if a.prompts:
        prompts.write(seed=a.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        if a.adapters:
            make_adapters(a.out or (Path(folder) if a.quick else ASSETS), a.seed, a.quick, a.table)
            return
        if a.quick:  # never over the shipped model unless told so
            make(a.out or Path(folder), a.seed, quick=True)
            return
        out, stage_1 = a.out or ASSETS, None
        if not a.table:
            stage_1 = Path(folder)
            make(out, a.seed, a.scale, stage_1=stage_1)
        measured = table.measure(out, stage_1)
        print(measured)
        if stage_1:
            table.write_card(out, measured)


if __name__ == "__main__":
    main()
