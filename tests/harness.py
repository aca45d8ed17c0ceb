"""lm-evaluation-harness on a model folder, with tasks made of our own items.

Knows the harness's Python interface. Does not know the studio. Nothing is fetched: the data are
lists, and the tasks are objects, so that the harness reads neither its own task files nor the Hub.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

MISSING = (
    "the cross-checks need lm-evaluation-harness; "
    "install it with: pip install -r requirements-dev.txt -c constraints.txt"
)
try:
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ModuleNotFoundError:
    HFLM = None


def language_model(folder: Path, **more: Any):
    """The harness's model of a folder, in float32 on the CPU.

    Args:
        more: further arguments of its HFLM, such as a tokenizer.
    """
    if HFLM is None:
        pytest.fail(MISSING)
    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=16, **more)


def run(
    model, kind: str, docs: Sequence[dict[str, Any]], chat: bool, **fields: Callable
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Evaluate one zero-shot task.

    Args:
        kind: multiple_choice, loglikelihood or loglikelihood_rolling.
        chat: whether the text becomes a user turn under the model's chat template.
        fields: how a doc becomes doc_to_text, doc_to_target, doc_to_choice.

    Returns:
        The task's metrics, and a sample a doc, in order: `arguments` (what was asked), `resps`.
    """
    config = {
        "task": f"local_{kind}",
        "output_type": kind,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(list(docs))},
        "test_split": "test",
        "num_fewshot": 0,
        **fields,
    }
    tasks = TaskManager(include_defaults=False).load([ConfigurableTask(config=config)])
    found = evaluate(model, tasks, bootstrap_iters=0, log_samples=True, apply_chat_template=chat)
    (metrics,), (samples,) = found["results"].values(), found["samples"].values()
    numbers = {name.partition(",")[0]: value for name, value in metrics.items()}
    return numbers, sorted(samples, key=lambda sample: sample["doc_id"])
