"""The gain of a norm between a writer and the residual stream, measured and not read by name.

Families store it in different ways (Gemma's weight w means 1 + w), so the norm is asked: a vector
of ±1 comes out as ± the gain, whatever the norm divides by. A common factor of the gain does not
matter to an edit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sst_ui.errors import UserError


@torch.no_grad()
def measured_gain(
    norm: nn.Module, name: str, width: int, numbers: Mapping[str, Tensor] | None = None
) -> Tensor:
    """What a norm multiplies each feature by, up to a common factor.

    Args:
        norm: a module whose output is c(x) · g ∘ x, such as an RMS norm.
        name: of it in the model, for messages.
        width: d, how many features it gets.
        numbers: its parameters where it has none of its own (a model without its numbers).

    Returns:
        [d] float32 on the CPU; on the meta device for a norm without numbers.

    Raises:
        UserError: it does something else, such as taking the mean away.
    """
    draw = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (width,), generator=draw).float() * 2 - 1
    noise = torch.randn(width, generator=draw)
    out = _run(norm, name, torch.stack([signs, noise]), numbers)  # [2, d]
    if out.is_meta:
        return out[0]
    gain = out[0] * signs
    wanted = gain * noise
    scale = (out[1] @ wanted) / (wanted @ wanted)
    # loose enough for a norm that computes in half precision; what takes the mean away is far off
    if not (out[1] - scale * wanted).norm() <= 0.02 * out[1].norm() or not scale > 0:
        raise _odd(norm, name)
    return gain


def _run(norm: nn.Module, name: str, x: Tensor, numbers: Mapping[str, Tensor] | None) -> Tensor:
    own = next(norm.parameters(), x)
    device = own.device
    if numbers is not None:
        device = torch.device("cpu")
    elif device.type == "meta":  # offloaded: accelerate's hook says where it computes
        device = getattr(getattr(norm, "_hf_hook", None), "execution_device", device)
    # In float32 the gain comes out exactly; a norm that insists on its own type gets that.
    for dtype in (torch.float32, own.dtype):
        try:
            given = x.to(device, dtype)[None]
            if numbers is None:
                out = norm(given)
            else:
                out = torch.func.functional_call(norm, dict(numbers), (given,))
            return out[0].float() if out.is_meta else out[0].float().cpu()
        except (RuntimeError, TypeError, AttributeError, IndexError):
            continue
    raise _odd(norm, name)


def _odd(norm: nn.Module, name: str) -> UserError:
    return UserError(
        f"{name} ({type(norm).__name__}) stands between a module and the residual stream and does "
        "more than multiply each feature by a number, so that no edit of that module is exact."
    )
