"""Rounding to a stored type by chance: between the two neighbours, right on average."""

import pytest
import torch

from sst_ui.maths.rounding import to_dtype

SHORT = [torch.bfloat16, torch.float16]


def values(scale=1.0, count=400):
    noise = torch.Generator().manual_seed(1)
    return scale * torch.randn(count, generator=noise)


def neighbours(x, dtype):
    """The nearest numbers of a type at or below, and at or above."""
    near = x.to(dtype)
    down = torch.where(near.float() > x, torch.nextafter(near, near.new_tensor(-torch.inf)), near)
    up = torch.where(near.float() < x, torch.nextafter(near, near.new_tensor(torch.inf)), near)
    return down.float(), up.float()


@pytest.mark.parametrize("scale", [1.0, 1e-6, 3e3])
@pytest.mark.parametrize("dtype", SHORT)
def test_every_draw_is_a_neighbour_and_the_mean_is_the_number(dtype, scale):
    exact = values(scale)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([to_dtype(exact, dtype, generator).float() for _ in range(2000)])
    down, up = neighbours(exact, dtype)
    assert ((draws == down) | (draws == up)).all()
    # 2,000 draws: a standard error of 0.011 steps at most
    assert ((draws.double().mean(0) - exact).abs() <= 0.06 * (up - down)).all()


@pytest.mark.parametrize("dtype", SHORT)
def test_what_the_type_can_hold_stays_and_so_does_what_is_not_finite(dtype):
    odd = torch.tensor([0.0, -0.0, 1.0, -2.5, torch.inf, -torch.inf, torch.nan])
    rounded = to_dtype(odd, dtype, torch.Generator().manual_seed(0))
    assert torch.equal(rounded.float().nan_to_num(7.0), odd.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [*SHORT, torch.float32])
def test_without_a_generator_it_is_the_nearest(dtype):
    assert torch.equal(to_dtype(values(), dtype, None), values().to(dtype))


def test_float32_needs_no_rounding():
    assert torch.equal(to_dtype(values(), torch.float32, torch.Generator()), values())
