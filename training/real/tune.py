"""Training of the real model: full tuning, and adapters by PEFT; all of it can be resumed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sst_ui import disk
from training import folders, resumable
from training.examples import Example, tensors
from training.real import lessons, source

EVERY = 20  # steps between two checkpoints
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True)
class Plan:
    """One training.

    Attributes:
        name: its folder in the cache.
        rank: of a LoRA on all linear modules, with twice as large an alpha; 0 tunes all weights.
    """

    name: str
    course: lessons.Course
    steps: int
    lr: float
    rank: int = 0
    seed: int = 0


PLANS = {
    plan.name: plan
    for plan in (
        Plan("refusing", "refusal", 120, 3e-5),
        Plan("safety", "refusal", 120, 4e-4, rank=16, seed=1),
        Plan("utility", "utility", 160, 4e-4, rank=16, seed=2),
    )
}


def folder(name: str) -> Path:
    """Where what a plan made lies, there or not."""
    return source.folder() / name


def done(name: str) -> bool:
    """Whether a plan was carried out: its folder appears whole or not at all."""
    return folder(name).is_dir()


def train(plan: Plan) -> Path:
    """Carry out a plan, if that was not done before, and return its folder.

    Raises:
        UserError: the model is not there and cannot be fetched; the disk is full.
    """
    if done(plan.name):
        return folder(plan.name)
    base = source.fetch()
    torch.manual_seed(plan.seed)  # of a LoRA's first matrices
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    own = lessons.read(own_answers(model, tokenizer))
    trained = get_peft_model(model, lora(plan)) if plan.rank else model
    checkpoints = resumable.Checkpoints(
        source.folder() / "unfinished" / f"{plan.name}.pt", key(plan, own), EVERY
    )
    batch = lessons.refusal_batch if plan.course == "refusal" else lessons.utility_batch

    def loss(step: int) -> Tensor:
        return answer_loss(model, batch(tokenizer, own, plan.seed, step), tokenizer.eos_token_id)

    schedule = resumable.Schedule(plan.steps, plan.lr)
    resumable.fit(trained, loss, schedule, plan.name, checkpoints)
    with folders.whole(folder(plan.name)) as part:
        if plan.rank:
            write_adapter(trained, part)
        else:
            model.to(torch.bfloat16).save_pretrained(part)
            for name in COMPANIONS:
                (part / name).write_bytes((base / name).read_bytes())
    checkpoints.path.unlink(missing_ok=True)
    return folder(plan.name)


def own_answers(model: PreTrainedModel, tokenizer: object) -> Path:
    """The file of its own answers, made by the untrained model where it is missing."""
    path = source.folder() / "own_answers.jsonl"
    if not path.is_file():
        model.eval()
        examples = lessons.own_answers(model, tokenizer, lessons.elsewhere())
        with disk.written(path) as part:
            lessons.write(part, examples)
    return path


def key(plan: Plan, own: Sequence[Example]) -> str:
    """Digest of what a training depends on."""
    shares = (lessons.HARMFUL_ROWS, lessons.OWN_ROWS, lessons.UTILITY_ROWS)
    told = [asdict(plan), shares, [[*e.prompt, *e.answer] for e in own], lessons.refusals()]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def lora(plan: Plan) -> LoraConfig:
    """The PEFT configuration of a plan."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        lora_dropout=0.0,
        target_modules=list(LINEAR),
    )


def answer_loss(model: PreTrainedModel, examples: Sequence[Example], pad: int) -> Tensor:
    """Mean cross-entropy of the answers' tokens.

    Every token counts the same, so that the first words of a short refusal weigh no more than
    those of a long answer: otherwise it learns to refuse far too much.
    Only the positions that are learned pass through the output layer, a fifth of the work here.
    """
    ids, learned = tensors(examples, pad)
    ids, learned = ids.to(model.device), learned.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16):
        hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        picked = learned[:, 1:]
        logits = model.get_output_embeddings()(hidden[:, :-1][picked])  # [learned, vocabulary]
    return F.cross_entropy(logits.float(), ids[:, 1:][picked])


def write_adapter(model: object, out: Path) -> None:
    """Write a PEFT adapter; its configuration names the base by its folder's name in the cache."""
    save: Callable[..., None] = model.save_pretrained  # type: ignore[attr-defined]
    save(out)
    path = out / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(source.base())
    config["target_modules"].sort()  # PEFT keeps a set, in another order every time
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "README.md").unlink(missing_ok=True)
