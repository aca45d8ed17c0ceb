"""What a merge method is given and what comes of it: one module, its change, the record of it."""

from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import Tensor

from sst_ui.errors import UserError
from sst_ui.lru import Memory
from sst_ui.maths.merge.low_rank import Core, Delta
from sst_ui.maths.merge.subspace import Moments, Spectrum, decompose
from sst_ui.recipe import Fisher as Mode
from sst_ui.recipe import Target

REMEMBERED = 8  # spectra of one core: a few targets, modes and dampings


FLOOR = 0.01  # nats per token: what a data set has at stake at least, so that no weight is 0


@dataclass(frozen=True)
class Stakes:
    """What each data set has at stake in a merge, from held-out prompts.

    Attributes:
        utility, safety: nats per token that the data set's answers lose when the other adapter
            takes the place of its own: L(other adapter) − L(own adapter).
    """

    utility: float
    safety: float

    def price(self, mu: float, adapt: float = 1.0) -> float:
        """μ (w_U / w_S)^a, the price of utility when each data set is weighed by its stake.

        With weights w of the two data sets, J = w_S/2 ‖E − D‖²_{F_S} + μ w_U/2 ‖E‖²_{F_U}, whose
        minimiser is that of equal weights at this price. Equal stakes leave μ as it is.

        Args:
            adapt: a; 0 leaves μ as it is, 1 weighs in proportion to the stakes.
        """
        return mu * (max(self.utility, FLOOR) / max(self.safety, FLOOR)) ** adapt


@dataclass(frozen=True, eq=False)
class Module:
    """One linear module that at least one of the two adapters changes.

    Attributes:
        name: path in the model.
        kind: q, k, v, o, gate, up, down, lm_head, or another.
        layer: None outside the layers.
        core: of both adapters' deltas.
        safety, utility: moments of the two tasks in that core, for methods that need them.
        unaligned: V = W_aligned − W_unaligned [out, in], for methods that need it.
        weight: w, safety weight × kernel × the table's factor for this kind; 0 leaves the module
            as the utility adapter has it, whatever the method.
        percentile: share of the modules that depart more from the alignment, 0 to 1; see
            `registry.placed`. For methods that need `unaligned`.
        stakes: of both data sets, the same for all modules, for methods that need them.
    """

    name: str
    kind: str
    layer: int | None
    core: Core
    safety: Moments | None = None
    utility: Moments | None = None
    unaligned: Tensor | None = None
    weight: float = 1.0
    percentile: float | None = None
    stakes: Stakes | None = None


@dataclass(frozen=True)
class Record:
    """What a merge did to one module; None where a method has no such number.

    Attributes:
        kept: ‖E‖ / ‖D‖ in the norm of the safety data's Fisher matrix, weight included.
        size: ‖E‖_F / ‖D‖_F, the plain norm.
        kl: predicted utility KL of this module's edit, nats per token.
        error: ‖what truncation dropped‖_F.
        rank: of the result.
        note: a word on what a method decided here.
    """

    kept: float | None
    size: float | None
    kl: float | None
    error: float
    rank: int
    note: str = ""


@dataclass(frozen=True, eq=False)
class Merged:
    """The change of one module relative to the base, and how it came about."""

    delta: Delta
    record: Record


@dataclass(frozen=True, eq=False)
class Change:
    """What a method returns: one of an edit E [q, p] in the core, or a total, dense or factored.

    The numbers are `Record`'s; a method that knows its own predicted KL says so.
    """

    edit: Tensor | None = None
    dense: Tensor | None = None
    delta: Delta | None = None
    kept: float | None = None
    size: float | None = None
    kl: float | None = None
    note: str = ""


def spectrum(
    module: Module, target: Target = "additive", mode: Mode = "kfac", damping: float = 1e-3
) -> Spectrum:
    """The module's spectrum, remembered as long as its core lives.

    Raises:
        UserError: no moments, or what `decompose` raises.
    """
    if module.safety is None or module.utility is None:
        raise UserError(f"{module.name} has no moments of both tasks; run the Fisher pass first.")
    known = _spectra.setdefault(module.core, Memory(REMEMBERED))
    key = (module.safety, module.utility, target, mode, damping)
    found = known.get(key)
    if found is None:
        found = decompose(module.core, module.safety, module.utility, target, mode, damping)
        known.put(key, found)
    return found


_spectra: WeakKeyDictionary[Core, Memory[Spectrum]] = WeakKeyDictionary()
