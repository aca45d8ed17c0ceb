"""What a PEFT adapter's adapter_config.json says: which kind, which modules, what rank and scale.

Settings that make something else than W + s B A are refused. PEFT's own functions decide what a
pattern matches.
"""

import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from sst_ui.errors import UserError, shown

# Settings under which the adapted module computes something else than (W + s B A) x.
OTHERWISE = {
    "use_dora": "DoRA rescales every weight column, which is not a low-rank change",
    "use_qalora": "QA-LoRA pools the inputs of a module",
    "use_bdlora": "its factors are block-diagonal",
    "modules_to_save": "it brings whole retrained modules beside its low-rank changes",
    "trainable_token_indices": "it brings retrained token embeddings",
    "target_parameters": "it changes parameters other than linear modules' weights",
    "layer_replication": "it copies layers of the base model",
    "alora_invocation_tokens": "it acts only after certain tokens (aLoRA)",
    "arrow_config": "it routes between several adapters (Arrow)",
    "monteclora_config": "its weights are random variables (MonteCLoRA)",
    "kasa_config": "it changes the base weights (KaSA)",
    "megatron_config": "it was split for Megatron",
}
# Initialisations after which the base weights are not the base model's any more.
REBASED = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraSettings:
    """The settings of one LoRA adapter.

    Args:
        data: of adapter_config.json.
        name: of the adapter, for messages.

    Raises:
        UserError: not LoRA, or LoRA that makes more than low-rank weight changes.
    """

    def __init__(self, data: Mapping[str, Any], name: str) -> None:
        from peft import LoraConfig  # a second of imports that only adapters need

        kind = str(data.get("peft_type", "missing"))
        if kind.upper() != "LORA":
            raise UserError(
                f"{name} is a PEFT adapter of type {kind[:80]}; only LoRA adapters are low-rank "
                "weight changes that can be merged. Train a LoRA, or convert it."
            )
        for key, why in OTHERWISE.items():
            if data.get(key):
                which = f" ({', '.join(data[key])[:200]})" if _short_list(data[key]) else ""
                raise UserError(
                    f"{name} sets {key}{which}: {why}. Only plain LoRA can be merged; train it "
                    f"without {key}."
                )
        if (bias := data.get("bias", "none")) != "none":
            raise UserError(
                f"{name} sets bias {shown(bias)}: it changes biases, and only weights can be "
                "merged. Train it with bias 'none'."
            )
        start = str(data.get("init_lora_weights", True)).lower()
        if start.startswith(REBASED):
            raise UserError(
                f"{name} was initialised with {start[:80]}, which changes the base weights as "
                "well; convert it to a plain LoRA (save_pretrained with "
                "path_initial_model_for_weight_conversion)."
            )
        known = {field.name for field in fields(LoraConfig)}
        self.unknown = tuple(sorted(k for k, v in data.items() if v and k not in known))
        _check(data, name)
        plain = {k: v for k, v in data.items() if k in known and k != "peft_type"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.config = LoraConfig(**plain)
        except Exception as error:  # PEFT looks at some settings, and assumes the others
            why = " ".join(str(error).split())[:200]
            raise UserError(f"adapter_config.json of {name} cannot be read: {why}") from error
        self.base = str(data.get("base_model_name_or_path") or "")
        self.fan_in_fan_out = bool(self.config.fan_in_fan_out)
        self.name = name

    def rank(self, path: str) -> int:
        """r of the module with this name in the adapter."""
        rank = self._of("rank_pattern", path, self.config.r)
        if not isinstance(rank, int) or rank < 1:
            raise UserError(
                f"{self.name} gives {path} the rank {shown(rank)}; it must be 1 or more."
            )
        return rank

    def scale(self, path: str) -> float:
        """What B A is multiplied by: alpha / r, with rsLoRA alpha / √r."""
        alpha = self._of("alpha_pattern", path, self.config.lora_alpha)
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise UserError(
                f"{self.name} gives {path} the lora_alpha {shown(alpha)}, which is not a number."
            )
        rank = self.rank(path)
        return alpha / math.sqrt(rank) if self.config.use_rslora else alpha / rank

    def targets(self, paths: Iterable[str], head: str) -> set[str] | None:
        """Which of a model's linear modules the adapter should hold; None if it does not say.

        Args:
            paths: names of linear modules.
            head: name of the language model head, which 'all-linear' leaves out.
        """
        from peft.tuners.tuners_utils import check_target_module_exists

        if not (wanted := self.config.target_modules):
            return None
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            return {path for path in paths if path != head}
        try:
            return {path for path in paths if check_target_module_exists(self.config, path)}
        except re.error as error:
            raise UserError(
                f"a pattern in the settings of {self.name} is wrong: {error}"
            ) from error

    def _of(self, table: str, path: str, default: Any) -> Any:
        from peft.utils.other import get_pattern_key

        pattern = getattr(self.config, table) or {}
        if not isinstance(pattern, Mapping):
            raise UserError(f"{self.name} sets {table} to {shown(pattern)}; it must be a mapping.")
        return pattern.get(get_pattern_key(pattern.keys(), path), default)


def settings_for(
    ranks: Mapping[str, int], base: str, revision: str | None, turned: bool, bias: bool = False
) -> dict:
    """adapter_config.json of an adapter with these ranks and scale 1 (lora_alpha = r).

    Args:
        ranks: by module path.
        base, revision: of the base model.
        turned: whether its weights are stored [in, out] (Conv1D).
        bias: whether B has a bias (`lora_bias`).
    """
    from peft import LoraConfig

    counts = list(ranks.values())
    usual = max(sorted(set(counts)), key=counts.count)
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision,
        inference_mode=True,
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=sorted(ranks),
        fan_in_fan_out=turned,
        lora_bias=bias,
    )
    data = config.to_dict()
    # sets have no order of their own; the same adapter should give the same file
    return {key: sorted(v) if isinstance(v, set) else v for key, v in sorted(data.items())}


def _check(data: Mapping[str, Any], name: str) -> None:
    """Refuse settings that are read here and are of another kind than they should be."""
    for key, (kind, fits) in READ.items():
        value = data.get(key)
        try:
            fine = value is None or fits(value)
        except re.error:
            fine = False
        if not fine:
            raise UserError(
                f"adapter_config.json of {name} sets {key} to {shown(value)}; it must be {kind}."
            )


def _number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) < 1e38  # float32's range; NaN is not less either


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 31


def _names(value: Any) -> bool:
    """A pattern, or a list of names."""
    if isinstance(value, str):
        return re.compile(value) is not None
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _table(value: Any, fits: Callable[[Any], bool]) -> bool:
    """Patterns with a value each, as PEFT puts them together."""
    return isinstance(value, dict) and all(
        re.compile(rf"(.*\.)?({pattern})$") is not None and fits(v) for pattern, v in value.items()
    )


# What is read of the settings: what it must be, in words, and whether it is.
READ = {
    "r": ("a whole number", _whole),
    "lora_alpha": ("a number", _number),
    "rank_pattern": ("a table of whole numbers by pattern", lambda v: _table(v, _whole)),
    "alpha_pattern": ("a table of numbers by pattern", lambda v: _table(v, _number)),
    "target_modules": ("a list of names, or a pattern", _names),
    "exclude_modules": ("a list of names, or a pattern", _names),
    "layers_pattern": ("a list of names, or a pattern", _names),
    "layers_to_transform": (
        "a list of whole numbers",
        lambda v: _whole(v) or (isinstance(v, list) and all(map(_whole, v))),
    ),
    "use_rslora": ("true or false", lambda v: isinstance(v, bool)),
    "fan_in_fan_out": ("true or false", lambda v: isinstance(v, bool)),
    "lora_bias": ("true or false", lambda v: isinstance(v, bool)),
    "base_model_name_or_path": ("a name", lambda v: isinstance(v, str)),
}


def _short_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(isinstance(v, str) for v in value)
