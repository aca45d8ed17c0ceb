"""Biases that a family has none of by default, and can be given by its configuration.

Some families of transformers build their modules with or without biases, as config.json says
(`attention_bias`, `mlp_bias`). Whether a setting gives a module one is not looked up in a list of
families: a skeleton without numbers is built with the setting, and has it or not.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from transformers.utils import logging

from sst_ui.model.architecture.discover import Architecture

FLAGS = ("attention_bias", "mlp_bias")


@dataclass(frozen=True)
class Given:
    """What makes a model have some biases.

    Attributes:
        flags: settings of config.json that must be true.
        sizes: parameter -> its length, of every bias that the model has then and lacked before.
    """

    flags: tuple[str, ...] = ()
    sizes: Mapping[str, int] | None = None


def given(architecture: Architecture, modules: Sequence[str]) -> Given | None:
    """The fewest settings by which all of these modules have a bias; None if there are none.

    Args:
        modules: names of linear modules of the model that have no bias.
    """
    if not modules:
        return Given(sizes={})
    decoder = architecture.decoder
    inner = {id(module): name for name, module in decoder.named_modules()}
    first = architecture.writers[0]
    prefix = first.name.removesuffix(inner[id(first.module)])  # of the decoder in the whole model
    before = {name for name, _ in decoder.named_parameters()}
    wanted = {f"{name.removeprefix(prefix)}.bias" for name in modules}
    config = decoder.config
    free = [flag for flag in FLAGS if getattr(config, flag, None) is False]
    for flags in (some for n in range(1, len(free) + 1) for some in combinations(free, n)):
        sizes = _built(architecture, flags)
        new = {name: size for name, size in sizes.items() if name not in before}
        if wanted <= new.keys() and all(name.endswith(".bias") for name in new):
            return Given(flags, {f"{prefix}{name}": size for name, size in new.items()})
    return None


def with_flags(config: Any, flags: Sequence[str]) -> Any:
    """A copy of a model's configuration in which these settings are true."""
    config = copy.deepcopy(config)
    for flag in flags:
        setattr(config.get_text_config(), flag, True)
    return config


def _built(architecture: Architecture, flags: Sequence[str]) -> dict[str, int]:
    """Parameter -> how many numbers, of a decoder without numbers that has these settings."""
    config = with_flags(architecture.decoder.config, flags)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            decoder = type(architecture.decoder)(config)
    except Exception:  # a family may refuse a setting in any way: then it gives no bias
        return {}
    finally:
        logging.set_verbosity(verbosity)
    return {name: parameter.numel() for name, parameter in decoder.named_parameters()}
