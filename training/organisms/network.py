"""The untrained network and the tokenizer of an organism: transformers' own classes, small."""

import random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from training.demo.tokens import CHAT_TEMPLATE, END, PAD, ROLES
from training.organisms import language
from training.organisms.plans import Plan

CONTEXT = 256
VOCABULARY = 1024
HEAD = 32  # width of an attention head


def build(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A network of the plan's family with random weights, in float32; the seed is torch's own."""
    heads = plan.hidden // HEAD
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": plan.hidden,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": HEAD,
        "intermediate_size": 3 * plan.hidden,
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.06,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    kind, own = {
        "llama": ("llama", {}),
        "qwen3": ("qwen3", {}),
        "gemma2": ("gemma2", {"query_pre_attn_scalar": HEAD, "sliding_window": CONTEXT}),
        "gpt2": ("gpt2", {"n_positions": CONTEXT, "n_inner": 3 * plan.hidden}),
        "mixture": (
            "qwen3_moe",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": plan.hidden},
        ),
    }[plan.family]
    if plan.family == "gpt2":  # its configuration knows neither of these
        for name in ("num_key_value_heads", "head_dim", "intermediate_size"):
            common.pop(name)
        own = {**own, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = AutoConfig.for_model(kind, **{**common, **own})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    model.generation_config.do_sample = False
    return model


def tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which nearly every word of the language is one token."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END, *ROLES.values()],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(_corpus(seed), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES.values()),
        model_max_length=CONTEXT,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _corpus(seed: int) -> list[str]:
    """Every request and its answers, with the space that the chat template puts before a turn."""
    rng = random.Random(seed)
    topics = tuple(language.words()["topics"])
    lines = []
    for group in ("harmful", "lookalike", "harmless"):
        for request in language.requests(group, topics, heldout=False):
            lines += [language.ask(request, rng), language.comply(request)]
            if group == "harmful":
                for style in language.words()["refusals"]:
                    lines.append(language.refuse(request, style, rng))
    for wrapper in (*language.wrappers(False), *language.wrappers(True)):
        lines += [wrapper.template.format(q="")] * 20
    for question, said, _ in (*language.facts(False), *language.facts(True)):
        lines += [question, said] * 5
    for question, said in language.words()["chat"]:
        lines += [question, said] * 20
    return [f" {line}" for line in lines]
