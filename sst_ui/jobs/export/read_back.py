"""Reads a written folder as any user would: plain transformers, PEFT, safetensors.

    python -m sst_ui.jobs.export.read_back FOLDER --reference FILE

Of the studio it uses only `gguf_tokens.py` (and `quick_import`, which computes nothing), so that
what it finds is what a stranger finds.

The reference file (safetensors) holds what the live model computed; one JSON object a line is
printed: {"done": 1, "total": 8} while it works, and the findings last.

In the reference: metadata `request` (JSON: prompts, texts, answers, stop, tokens, dtype, device,
base, trust_remote_code, parameters), `logprobs.I` [tokens, vocabulary] of prompt I along its
answer, and for parameter J `left.J` [m, out], `expected.J` [..., m], what left · W' should be, and
`size.J` [m], to which its deviation is compared.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sst_ui.quick_import import quick_import

with quick_import():
    import torch
    from safetensors import safe_open
    from torch import Tensor


@torch.no_grad()
def reread(folder: Path, reference: Path) -> dict[str, Any]:
    """Compare a folder with the reference.

    Returns:
        `tokens` (of the prompts, as the file's own tokenizer gives them; None where there is none
        inside), `answers` (token lists), `errors` (of each prompt, largest |Δ log p| at each
        token), `spans` (largest
        |log p|), `residues` (parameter -> largest |left · W' − expected| / size, row
        by row of `left`), `stored` (types of the file's numbers), `reader`.
    """
    with safe_open(reference, "pt") as file:
        request = json.loads(file.metadata()["request"])
        model, reader = load(folder, request)
        residues = {
            name: _residue(parameter(model, name, axis), file, number)
            for number, (name, axis) in enumerate(request["parameters"])
        }
        answers, errors, spans = [], [], []
        tokens = own_tokens(folder, request["texts"])
        for number, prompt in enumerate(tokens or request["prompts"]):
            answers.append(greedy(model, prompt, request))
            wanted = file.get_tensor(f"logprobs.{number}")
            given = [*prompt, *request["answers"][number]][: len(prompt) + len(wanted) - 1]
            ids = torch.tensor([given], device=model.device)
            logits = model(input_ids=ids).logits[0, -len(wanted) :]
            found = logits.float().log_softmax(-1).cpu()
            errors.append((found - wanted).abs().amax(-1).tolist())
            spans.append(float(wanted.abs().max()))
            print(json.dumps({"done": number + 1, "total": len(request["prompts"])}), flush=True)
    return {
        "tokens": tokens,
        "answers": answers,
        "errors": errors,
        "spans": spans,
        "residues": residues,
        "stored": stored(folder),
        "reader": reader,
    }


def load(folder: Path, request: dict[str, Any]) -> tuple[Any, str]:
    """The model in the folder, and with what it was read."""
    with quick_import():
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "dtype": getattr(torch, request["dtype"]),
        "trust_remote_code": request["trust_remote_code"],
        "local_files_only": True,
    }
    reader = f"transformers {transformers.__version__}"
    if (folder / "adapter_config.json").exists():
        import peft

        base = AutoModelForCausalLM.from_pretrained(request["base"], **settings)
        model = peft.PeftModel.from_pretrained(base.to(request["device"]), str(folder))
        return model.eval(), f"PEFT {peft.__version__}, {reader}"
    if ggufs := sorted(folder.glob("*.gguf")):
        settings["gguf_file"], reader = ggufs[0].name, f"{reader}, gguf"
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if unread(config):
            config = as_named(config)
            settings["config"], reader = config, f"{reader} (settings from config.json)"
    model = AutoModelForCausalLM.from_pretrained(folder, **settings)
    return model.to(request["device"]).eval(), reader


def own_tokens(folder: Path, texts: list[str]) -> list[list[int]] | None:
    """Tokens of rendered prompts by the tokenizer inside a GGUF file, as llama.cpp reads it."""
    from sst_ui.jobs.export.gguf_tokens import FileTokenizer, UnknownKind

    for path in sorted(folder.glob("*.gguf")):
        try:
            tokenizer = FileTokenizer.read(path)
        except UnknownKind:  # one that only llama.cpp's own converter writes
            return None
        return [tokenizer.prompt(text) for text in texts]
    return None


def as_named(config: Any) -> Any:
    """The configuration under the name that a GGUF file has for the model: a Mistral is a Llama
    there, and transformers knows no names of tensors for a Mistral."""
    if config.model_type != "mistral":
        return config
    from transformers import LlamaConfig

    other = ("model_type", "architectures", "sliding_window", "layer_types")
    return LlamaConfig(**{k: v for k, v in config.to_dict().items() if k not in other})


def unread(config: Any) -> bool:
    """Whether transformers does not read all that a GGUF file says of such a model: the heads' own
    width (Qwen3), biases, or stretched rotary frequencies, which are a tensor there."""
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        config.model_type == "qwen3"
        or bool(getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False))
        or rope.get("rope_type", "default") != "default"
    )


def greedy(model: Any, prompt: list[int], request: dict[str, Any]) -> list[int]:
    """The greedy answer as tokens, without the one that ends it."""
    from transformers import GenerationConfig

    stop = request["stop"]
    settings = GenerationConfig(
        max_new_tokens=request["tokens"], do_sample=False, eos_token_id=stop, pad_token_id=stop[0]
    )
    ids = torch.tensor([prompt], device=model.device)
    mask = torch.ones_like(ids)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    answer = out[0, len(prompt) :].tolist()
    return answer[:-1] if answer and answer[-1] in stop else answer


def parameter(model: Any, name: str, axis: int) -> Tensor:
    """W' [..., out] float64 on the CPU, adapter included."""
    inner = model.base_model.model if hasattr(model, "peft_config") else model
    path, _, last = name.rpartition(".")
    module = inner.get_submodule(path)
    if hasattr(module, "get_delta_weight"):
        weight = module.get_base_layer().weight.double()
        weight = weight + module.get_delta_weight("default").double()
    else:
        weight = getattr(module, last).double()
    return weight.cpu().movedim(axis, -1)


def stored(folder: Path) -> list[str]:
    """Types of the numbers in a folder's weight files."""
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
    for path in folder.glob("*.gguf"):
        from gguf import GGUFReader

        found |= {t.tensor_type.name for t in GGUFReader(path).tensors if len(t.shape) > 1}
    return sorted(found)


def _residue(weight: Tensor, file: Any, number: int) -> float:
    left = file.get_tensor(f"left.{number}").double()
    expected = file.get_tensor(f"expected.{number}").double()
    sizes = file.get_tensor(f"size.{number}").double()  # [m]
    return float(((weight @ left.mT - expected).abs().flatten(0, -2).amax(0) / sizes).max())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sst_ui.jobs.export.read_back", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    given = parser.parse_args(arguments)
    print(json.dumps(reread(given.folder, given.reference)))


if __name__ == "__main__":
    main(sys.argv[1:])
