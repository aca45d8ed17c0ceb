"""The demo network for training: Llama's mathematics with fused, stacked weights.

On a small processor this is three times as fast as the general class, because `torch.compile` fuses
everything between the matrix products. `to_llama` copies the weights into transformers' own
LlamaForCausalLM, which computes the same function (a test compares them).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from .tokens import CONTEXT


def config(vocabulary: int, layers: int = 12, pad: int = 0, end: int = 1) -> LlamaConfig:
    """A small Llama: 12 layers, width 128, 2.8 million parameters."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
    )


class Network(nn.Module):
    """The decoder. Weights of all layers are stacked: qkv is [layers, 3 * hidden, hidden]."""

    def __init__(self, c: LlamaConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.c = c
        n, h, f = c.num_hidden_layers, c.hidden_size, c.intermediate_size

        def matrix(*shape: int, std: float) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator) * std)

        out = h**-0.5 / (2 * n) ** 0.5  # residual writers start small, as in GPT-2
        self.embed = matrix(c.vocab_size, h, std=0.05)
        self.qkv = matrix(n, 3 * h, h, std=h**-0.5)
        self.o = matrix(n, h, h, std=out)
        self.gate_up = matrix(n, 2 * f, h, std=h**-0.5)
        self.down = matrix(n, h, f, std=out)
        self.norms = nn.Parameter(torch.ones(2 * n + 1, h))
        theta = c.rope_parameters["rope_theta"]
        rates = theta ** -(torch.arange(0, c.head_dim, 2).float() / c.head_dim)
        angles = torch.outer(torch.arange(CONTEXT).float(), rates).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)  # [context, head_dim]
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(
        self,
        ids: Tensor,
        documents: Tensor,
        positions: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Weighted cross-entropy of a packed batch; all arguments are [batch, tokens].

        `documents` numbers the samples packed into a row: tokens attend within their own only.
        """
        c, low = self.c, torch.bfloat16
        b, t = ids.shape
        heads, d = c.num_attention_heads, c.head_dim
        causal = torch.ones(t, t, dtype=torch.bool, device=ids.device).tril()
        same = documents[:, None, :, None] == documents[:, None, None, :]
        bias = torch.where(same & causal, 0.0, -1e9)  # [batch, 1, tokens, tokens]
        cos = self.cos[positions].unsqueeze(2).to(low)  # [batch, tokens, 1, d]
        sin = self.sin[positions].unsqueeze(2).to(low)

        def norm(x: Tensor, i: int) -> Tensor:
            scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + c.rms_norm_eps)
            return (x * scale * self.norms[i]).to(low)

        def rotate(x: Tensor) -> Tensor:  # [batch, tokens, heads, d]
            left, right = x.chunk(2, -1)
            return (x * cos + torch.cat([-right, left], -1) * sin).transpose(1, 2)

        x = F.embedding(ids, self.embed)  # the residual stream stays in float32
        for i in range(c.num_hidden_layers):
            z = F.linear(norm(x, 2 * i), self.qkv[i].to(low)).view(b, t, 3, heads, d)
            q, k, v = rotate(z[:, :, 0]), rotate(z[:, :, 1]), z[:, :, 2].transpose(1, 2)
            scores = (q @ k.transpose(-1, -2)).float() * d**-0.5 + bias
            y = (scores.softmax(-1).to(low) @ v).transpose(1, 2).reshape(b, t, heads * d)
            x = x + F.linear(y, self.o[i].to(low))
            gate, up = F.linear(norm(x, 2 * i + 1), self.gate_up[i].to(low)).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, self.down[i].to(low))
        logits = F.linear(norm(x, -1), self.embed.to(low)).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (loss * weights.flatten()).sum() / weights.sum()


def names(i: int) -> dict[str, str]:
    """Our stacked tensors -> the Llama parameters of layer i they hold, comma-separated."""
    p = f"model.layers.{i}"
    return {
        "qkv": f"{p}.self_attn.q_proj,{p}.self_attn.k_proj,{p}.self_attn.v_proj",
        "o": f"{p}.self_attn.o_proj",
        "gate_up": f"{p}.mlp.gate_proj,{p}.mlp.up_proj",
        "down": f"{p}.mlp.down_proj",
    }


@torch.no_grad()
def to_llama(net: Network) -> LlamaForCausalLM:
    """The same function as a transformers model, in float32 on the CPU."""
    n = net.c.num_hidden_layers
    state = {"model.embed_tokens.weight": net.embed, "lm_head.weight": net.embed}
    for i in range(n):
        for ours, theirs in names(i).items():
            parts = theirs.split(",")
            for name, part in zip(parts, getattr(net, ours)[i].chunk(len(parts)), strict=True):
                state[f"{name}.weight"] = part
        state[f"model.layers.{i}.input_layernorm.weight"] = net.norms[2 * i]
        state[f"model.layers.{i}.post_attention_layernorm.weight"] = net.norms[2 * i + 1]
    state["model.norm.weight"] = net.norms[-1]
    model = LlamaForCausalLM(net.c)
    model.load_state_dict({k: v.detach().float().cpu() for k, v in state.items()})
    return model.eval()
