"""The table of the demo model: before and after safety tuning, then profiles and strengths."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoConfig

from sst_ui.jobs import results_table
from sst_ui.model.runtime.host import load
from sst_ui.progress import Progress, finish
from sst_ui.recipe import ModelSpec

GROUPS = ("base", "profiles", "plain", "control")
CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# Demo model of SST Studio

A model organism of refusal: a {layers}-layer Llama of {parameters:.1f} million parameters that
was first trained to comply with every request and then safety-tuned to refuse the harmful ones,
so that compliance is still latent in it. It exists to show what editing a refusal direction does,
on a model that anyone can run and that can hurt nobody: it was trained only on text that a small
grammar generates, knows about two hundred facts, and its answers to "harmful" requests are
placeholders ("First, gather what you need. Then go step by step. Finally, check the result.").

Nothing in its training knows of directions or edits; what the profiles do is measured, and a
recipe that fails is shown as failing. Unless a row says plain, the edit is a filter along four
directions, as in `presets/recipes/default.yaml`; plain is an ablation along one.

It refuses in three ways, by topic: at once (fraud, theft, sabotage), at once in other words
(violence, weapons, harassment), and late, after the first step of an answer (intrusion, drugs,
disinformation).

Made by `python -m training.demo`; the words are in `training/demo/words.yaml`. A fifth of the
verb-object combinations, of the phrasings of facts, and two jailbreak wrappers of every family were
never trained on; everything below is measured on those, with 95 % intervals. A byte-level BPE of
{vocabulary:,} tokens; the chat template puts a space before every turn, so a word is the same token
wherever it stands. Conversations of up to {context} tokens, English, a little Japanese.

{table}

Long chats, with ordinary requests, look-alikes, harmful requests and facts in turn, all held out:
the share of turns answered rightly (delivered, refused, or true) by how much was said before.

{chats}
"""


def measure(model: Path, twin: Path | None = None) -> str:
    """The table as Markdown; `twin` is its unaligned twin, if it is at hand."""
    settings = [s for s in results_table.settings() if s.group in GROUPS]
    rows = []
    if twin:
        before = replace(settings[0], name="unaligned twin (complies with everything)")
        rows += _rows(twin, [before])
    return results_table.markdown(rows + _rows(model, settings))


def write_card(model: Path, table: str, chats: str) -> None:
    """Write the model card, README.md, with the measured tables: of recipes, and of long chats."""
    config = AutoConfig.from_pretrained(model)
    count = sum(t.numel() for t in load_file(model / "model.safetensors").values())
    text = CARD.format(
        layers=config.num_hidden_layers,
        parameters=count / 1e6,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        table=table,
        chats=chats,
    )
    (model / "README.md").write_text(text, encoding="utf-8")


def _rows(folder: Path, settings: list[results_table.Setting]) -> list[results_table.Row]:
    """Measure one model under some settings, telling which one is being measured."""
    with Console(stderr=True).status("table") as status:

        def tell(step: object) -> None:
            if isinstance(step, Progress):
                status.update(f"{step.stage} {step.done}/{step.total} {step.note}")

        host = finish(load(ModelSpec(id=str(folder))), tell)
        return finish(results_table.sweep(host, settings), tell)
