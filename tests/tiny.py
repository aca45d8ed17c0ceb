"""Tiny random models, one for each architecture the studio is tested with.

Knows configurations small enough to build in milliseconds, and fills every weight, norm and bias
with noise large enough that an edit in the wrong place changes the logits. Does not know
tokenizers: feed `ids(...)`, any numbers in 3..255.
"""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

HIDDEN = 32
VOCAB = 256
LAYERS = 3

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# name: (model_type, settings). The first twelve are the families; the rest vary shape and bias.
_FAMILIES = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 8}),
    "mistral": ("mistral", {}),
    "gemma2": ("gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", {"head_dim": 8, **_MOE}),
}
_VARIANTS = {
    "llama_bias": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama_wide": ("llama", {"head_dim": 16}),  # o_proj [32, 64]
    "llama_narrow": ("llama", {"head_dim": 4, "attention_bias": True}),  # o_proj [32, 16]
    "llama_square": ("llama", {"intermediate_size": HIDDEN}),  # every writer is [32, 32]
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "qwen3_wide_bias": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "gemma2_wide": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma3_wide": ("gemma3_text", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "gpt_neox_serial": ("gpt_neox", {"use_parallel_residual": False}),
    "mixtral_square": (
        "mixtral",
        {"num_local_experts": 4, "intermediate_size": HIDDEN},
    ),
    "qwen2_moe": ("qwen2_moe", {"shared_expert_intermediate_size": 40, **_MOE}),
    "gpt_oss": (
        "gpt_oss",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
}
_UNSUPPORTED = {
    "mamba": ("mamba", {}),
    "bert": ("bert", {"is_decoder": True}),
    "jamba": (
        "jamba",
        {"attn_layer_period": 3, "attn_layer_offset": 1, "num_experts": 1},
    ),
}

# Families with something of their own between a module and the residual stream, or in their shapes.
_ODD = {
    "bloom": ("bloom", {}),
    "bloom_slow": ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}),
    "gpt_neox_japanese": ("gpt_neox_japanese", {"intermediate_multiple_size": 2}),
    "granite": ("granite", {"residual_multiplier": 0.22}),
    "hyperclovax": (
        "hyperclovax",
        {"head_dim": 8, "use_post_norm": True, "residual_multiplier": 0.5},
    ),
    "olmo3": ("olmo3", {}),
    "exaone4": ("exaone4", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 8}),
    "afmoe": ("afmoe", {"head_dim": 8, "num_dense_layers": 1, "num_shared_experts": 1, **_MOE}),
    "gemma4": (
        "gemma4_text",
        {
            "head_dim": 8,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "sliding_window": 8,
        },
    ),
    "axk1": (
        "axk1",
        {
            **_MOE,
            "num_key_value_heads": 4,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
    "minimax": ("minimax", {"head_dim": 8, "num_local_experts": 4}),
    "openai_gpt": ("openai-gpt", {}),
}

ARCHITECTURES = tuple(_FAMILIES)
VARIANTS = tuple(_VARIANTS)
ODD = tuple(_ODD)
UNSUPPORTED = tuple(_UNSUPPORTED)
EXPERTS = ("mixtral", "mixtral_square", "qwen3_moe", "qwen2_moe", "gpt_oss")


def tiny(name: str = "llama", seed: int = 0, **overrides) -> PreTrainedModel:
    """A random float32 causal language model in eval mode.

    Args:
        name: one of ARCHITECTURES, VARIANTS, ODD or UNSUPPORTED.
        seed: of all its weights; the same name, seed and overrides give the same model.
        overrides: settings of its configuration, e.g. `num_hidden_layers=6`.

    Raises:
        KeyError: the name is none of these.
    """
    model_type, settings = (_FAMILIES | _VARIANTS | _ODD | _UNSUPPORTED)[name]
    config = AutoConfig.for_model(model_type, **{**_COMMON, **settings, **overrides})
    with torch.random.fork_rng(devices=[]):  # gpt_oss's sinks stay as they are drawn
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).float().eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=noise)
        if parameter.dim() == 1:  # biases and norms: keep the norms' ones, make the biases non-zero
            parameter.add_(0.1 * values)
        else:
            parameter.copy_(0.2 * values)
    return model


def ids(rows: int = 2, tokens: int = 7, seed: int = 0) -> torch.Tensor:
    """[rows, tokens] random token ids, none of them special."""
    noise = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (rows, tokens), generator=noise)
