"""Weight kernels: how strongly each decoder layer is edited.

The article that introduced these profiles prints a table of example weights (layer 0: .007,
layer 10: .449, ...) that contradicts its own formula. The formula is the definition here; for
peak .6, width .15 and 32 layers it gives L0 .0003, L5 .0139, L10 .1808, L15 .7410, L19 .9963,
L20 .9557, L25 .3878, L30 .0495, L31 .0286.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sst_ui import profiles as named
from sst_ui.errors import UserError, unknown
from sst_ui.recipe import FUSED, GROUPS, KINDS, WeightTable

EARLY = 0.25  # the first quarter of the layers carries grammar; editing it costs coherence


def positions(layers: int) -> np.ndarray:
    """[layers] positions l / (L - 1); a single layer sits at 0."""
    return np.arange(layers) / max(layers - 1, 1)


def gaussian(layers: int, peak: float, width: float) -> np.ndarray:
    """Gaussian over normalised layer positions.

    Args:
        layers: number of decoder layers, >= 1.
        peak: position of the maximum, 0 (first layer) to 1 (last).
        width: standard deviation in the same unit, > 0.

    Returns:
        [layers] float64 weights in [0, 1].

    Raises:
        UserError: layers < 1 or width <= 0.
    """
    if layers < 1:
        raise UserError(f"layers is {layers}; a model has at least 1.")
    if not width > 0:
        raise UserError(f"width is {width}; it must be above 0, for example 0.15.")
    with np.errstate(over="ignore"):  # the square of a huge or a tiny width is no float any more
        return np.exp(-(((positions(layers) - peak) / width) ** 2) / 2)


def kernel(weights: WeightTable, layers: int, kind: str = "") -> np.ndarray:
    """[layers] kernel values after the threshold: the Gaussian, or the table's own curve.

    Args:
        kind: of module, whose own bell counts where it has one; '' for what all others have.

    Raises:
        UserError: the table's curve has another number of values than the model has layers.
    """
    known, (peak, width) = names(kind), weights.bell
    peaks = [weights.peaks[n] for n in known if n in weights.peaks]
    widths = [weights.widths[n] for n in known if n in weights.widths]
    if weights.curve is None or peaks or widths:
        curve = gaussian(layers, (*peaks, peak)[0], (*widths, width)[0])
    elif len(weights.curve) == layers:
        curve = np.asarray(weights.curve, dtype=float)
    else:
        raise UserError(
            f"the per-layer curve has {len(weights.curve)} values, but the model has {layers} "
            "layers; give one number per layer."
        )
    return np.where(np.abs(curve) >= weights.threshold, curve, 0.0)


def table(weights: WeightTable, layers: int, kinds: Sequence[str] = KINDS) -> np.ndarray:
    """[layers, kinds] alpha of every cell: strength x kernel x module factor, then overrides.

    A kind of linear module (q, up, ...) without a factor of its own has that of the fused matrix
    it may be a part of (qkv, gate_up), else that of its role (attention, mlp), so that one table
    shapes ablations and merges; so it is with peaks, widths and overrides.

    Raises:
        UserError: an override names a layer or a kind that the model does not have.
    """
    given, known = weights.modules, [names(kind) for kind in kinds]
    factors = [next((given[n] for n in each if n in given), 1.0) for each in known]  # [kinds]
    bells = np.stack([kernel(weights, layers, kind) for kind in kinds], axis=1)
    alpha = weights.strength * bells * np.array(factors)
    # roles before fused matrices before single kinds, so that the more particular number counts
    order = sorted(weights.overrides, key=lambda kind: (kind not in KINDS, kind not in FUSED))
    for kind in order:
        columns = [i for i, each in enumerate(known) if kind in each]
        if not columns:
            raise unknown("module kind", kind, kinds)
        for layer, value in weights.overrides[kind].items():
            if not 0 <= layer < layers:
                raise UserError(
                    f"the override for layer {layer} ({kind}) is outside the model's layers "
                    f"0 to {layers - 1}."
                )
            alpha[layer, columns] = value
    return alpha


def names(kind: str) -> tuple[str, ...]:
    """Under which names a table may speak of a kind of module, the most particular first."""
    fused = [whole for whole, parts in FUSED.items() if kind in parts]
    return (kind, *fused, *([GROUPS[kind]] if kind in GROUPS else []))


def warnings(
    weights: WeightTable, layers: int, filtered: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """What a user should know about a table, as (message key, values) for the screen to phrase.

    Keys: `early` (first quarter touched; values: layers), `empty` (no cell is edited),
    `reflects` (some |alpha| above 1 reflects more than it removes; values: largest).

    Args:
        filtered: the table is a filter's, which leaves alone what the first quarter does with
            harmless inputs, and removes so little at weight 1 that 2 need not reflect anything.
    """
    alpha = table(weights, layers)
    touched = np.flatnonzero(np.any(alpha != 0, axis=1))
    found: list[tuple[str, dict[str, Any]]] = []
    if not len(touched):
        found.append(("empty", {}))
    early = [int(layer) for layer in touched if positions(layers)[layer] < EARLY]
    if early and not filtered:
        found.append(("early", {"first": early[0], "last": early[-1]}))
    if len(touched) and np.abs(alpha).max() > 1.5 and not filtered:
        found.append(("reflects", {"largest": float(np.abs(alpha).max())}))
    return found


def suggest(signal: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Peak and width of the Gaussian that best matches a measured per-layer signal.

    Least squares over a grid, with a free non-negative scale (the strength sets the height, not the
    fit). NaN counts as no signal. It is never narrower than the default profile: where the signal
    is sharp, a bell that fits it reaches a layer or two, and those behind write the refusal again.

    Args:
        signal: [layers] non-negative evidence of refusal per layer, in any unit.

    Returns:
        (peak, width), both on a grid of .01, width within .15 .. .30.

    Raises:
        UserError: the signal is nowhere above 0.
    """
    target = np.clip(np.nan_to_num(np.asarray(signal, dtype=float)), 0, None)
    if not target.size or target.max() <= 0:
        raise UserError("the signal is zero in every layer: measure directions first.")
    place = positions(len(target))
    best = (math.inf, 0.6, 0.15)
    for peak in np.arange(0, 1.005, 0.01):
        for width in np.arange(0.15, 0.305, 0.01):
            bell = np.exp(-((place - peak) ** 2) / (2 * width**2))
            scale = max(0.0, float(bell @ target) / float(bell @ bell)) if bell.any() else 0.0
            error = float(np.sum((target - scale * bell) ** 2))
            if error < best[0] - 1e-12:
                best = (error, round(float(peak), 2), round(float(width), 2))
    return best[1], best[2]


def profiles() -> dict[str, dict[str, float]]:
    """The named kernels of `presets/profiles.yaml`: name -> peak, width, threshold."""
    return {name: dict(named.named()[name]) for name in named.presets()["profiles"]}


def profile(name: str) -> WeightTable:
    """The weight table of a named profile, strength 1.

    Raises:
        UserError: no such profile; the message suggests the nearest name.
    """
    if name not in profiles():
        raise unknown("profile", name, profiles())
    return WeightTable(profile=name)


def recommended(model_id: str, parameters: int) -> tuple[str, float, float]:
    """The model's own measured kernel, else the one for its size: (source, peak, width)."""
    return named.of_model(model_id) or named.of_size(parameters)


def grid() -> list[tuple[float, float]]:
    """The 25 (peak, width) points of the automatic search."""
    data = named.presets()["grid"]
    return [(peak, width) for peak in data["peak"] for width in data["width"]]
