"""The secular kernel against bisection in double precision, which shares no code with it."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from regkit.ops.secular import fold_rows, shrink_rows

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
LAYOUTS = ("log-uniform", "one apart", "two clusters")


def by_bisection(z: Tensor, step: Tensor, tau: float) -> Tensor:
    """Solve ||x|| = s, x_i = z_i s / (s + tau step_i), by 200 halvings."""
    low, high = torch.zeros(len(z), 1, dtype=z.dtype), z.norm(dim=1, keepdim=True)
    for _ in range(200):
        s = (low + high) / 2
        shorter = (z / (s + tau * step)).norm(dim=1, keepdim=True) > 1
        low, high = torch.where(shorter, s, low), torch.where(shorter, high, s)
    alive = (z / step).norm(dim=1, keepdim=True) > tau
    return torch.where(alive, z * high / (high + tau * step), 0.0)


def hard_rows(size: int, spread: float, layout: str, groups: int = 200) -> Iterator[Tensor]:
    """Yield (z, step) for tau = 1 over all scales of tau, from almost dying to hardly touched."""
    draw = torch.Generator().manual_seed(size)

    def uniform(*shape: int, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=draw, dtype=torch.float64)

    step = torch.ones(groups, size, dtype=torch.float64)
    if layout == "log-uniform":
        step = spread ** uniform(groups, size, low=-0.5, high=0.5)
    elif layout == "one apart":
        step[:, 0] = spread ** uniform(groups, low=-1, high=1)
    else:
        lifted = torch.rand(groups, size, generator=draw) < 0.5
        step = torch.where(lifted, spread ** uniform(groups, 1, low=-1, high=1), step)
    noise = torch.randn(groups, size, generator=draw, dtype=torch.float64)
    for z in (noise, noise * step, noise * 10 ** uniform(groups, size, low=-4, high=4)):
        alive_by = 1 + 10 ** uniform(groups, 1, low=-7, high=5)
        yield torch.stack([z, step * (z / step).norm(dim=1, keepdim=True) / alive_by])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spread", [1.0, 1e2, 1e4, 1e8])
def test_metric_prox_is_the_root(dtype: torch.dtype, layout: str, spread: float):
    for size in (1, 2, 3, 5, 16, 100, 700):
        for z, step in hard_rows(size, spread, layout):
            z, step = z.to(dtype), step.to(dtype)
            exact = by_bisection(z.double(), step.double(), 1.0)
            error = (shrink_rows(z, step, 1.0).double() - exact).norm(dim=1)
            assert (error <= TOLERANCE[dtype] * z.double().norm(dim=1)).all()


def test_the_longest_rows():
    for layout in LAYOUTS:
        for z, step in hard_rows(14000, 1e8, layout, groups=20):
            z, step = z.float(), step.float()
            exact = by_bisection(z.double(), step.double(), 1.0)
            error = (shrink_rows(z, step, 1.0).double() - exact).norm(dim=1)
            assert (error <= 1e-5 * z.double().norm(dim=1)).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_entries_keep_their_own_digits(dtype: torch.dtype):
    """In rows that are far from dying, every entry is right relative to itself."""
    for layout in LAYOUTS:
        for z, step in hard_rows(16, 1e4, layout):
            step = step.to(dtype) * 0.5 / (z / step).norm(dim=1, keepdim=True)
            step = (step / step.amax(1, keepdim=True) * z.norm(dim=1, keepdim=True)).to(dtype)
            z = z.to(dtype)
            exact = by_bisection(z.double(), step.double(), 0.5)
            found = shrink_rows(z, step, 0.5).double()
            assert ((found - exact).abs() <= 10 * TOLERANCE[dtype] * exact.abs()).all()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [1, 4, 100])
def test_dies_at_the_boundary_and_not_above(dtype: torch.dtype, size: int):
    z = torch.randn(100, size, dtype=dtype)
    step = torch.rand(100, size, dtype=dtype) + 0.1
    taus = (z.double() / step.double()).norm(dim=1, keepdim=True)
    for constant in (step, torch.full((100, 1), 0.5, dtype=dtype)):
        taus = (z.double() / constant.double()).norm(dim=1, keepdim=True).to(dtype)
        assert (shrink_rows(z, constant, taus) == 0).all()
        assert (shrink_rows(z, constant, taus * 1.5) == 0).all()
        above = shrink_rows(z, constant, taus * (1 - 1e-4))
        assert (above.norm(dim=1) > 0).all()


def test_a_constant_step_is_the_ball():
    z = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    for step in (0.5, torch.tensor(0.5), torch.full((2, 1), 0.5), torch.full((2, 2), 0.5)):
        torch.testing.assert_close(shrink_rows(z, step, 2.0), torch.tensor([[2.4, 3.2], [0, 0]]))


def test_every_row_has_its_own_tau():
    z, step = torch.randn(5, 3).double(), torch.rand(5, 3).double() + 0.1
    taus = torch.tensor([[0.0], [0.1], [0.5], [1.0], [100.0]]).double()
    rows = [shrink_rows(z[i : i + 1], step[i : i + 1], float(taus[i])) for i in range(5)]
    torch.testing.assert_close(shrink_rows(z, step, taus), torch.cat(rows))


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e36])
def test_scale_does_not_matter(scale: float):
    z, step = torch.randn(4, 6), torch.rand(4, 6) + 0.1
    for s in (step, 0.3):
        expected = shrink_rows(z, s, 0.7)
        torch.testing.assert_close(shrink_rows(z * scale, s, 0.7 * scale) / scale, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype):
    z, step = torch.randn(70, 6).to(dtype), (torch.rand(70, 6) + 0.1).to(dtype)
    expected = shrink_rows(z.float(), step.float(), 0.7).to(dtype)
    assert torch.equal(shrink_rows(z, step, 0.7), expected)


def test_entries_without_a_step_stay_bit_for_bit_even_where_the_rest_dies():
    z = torch.tensor([[1e-30, 5.0, 2.0], [1.0, 1e-40, 1e30], [0.0, 1.0, 1.0]])
    step = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1e30, 1.0]])
    x = shrink_rows(z, step, 100.0)
    assert torch.equal(x[step == 0], z[step == 0])
    assert x[0, 1:].abs().max() <= 1e-6 * 5
    assert (x[2] == 0).all()


def mcp(length: Tensor, tau: float, gamma: float) -> Tensor:
    cut = length.clamp_max(gamma * tau)
    return tau * cut - cut**2 / (2 * gamma)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_folded_rows_are_global_minimisers_on_a_plane(dtype: torch.dtype):
    """Rows of two entries, metrics within, across and beyond the convex range, on a dense grid."""
    grid = torch.linspace(-0.2, 1.2, 281, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)
    kinds = set()
    for _ in range(300):
        unit = torch.rand(7, generator=draw, dtype=torch.float64)
        gamma, tau = float(1.1 + 5 * unit[0]), float(10 ** (2 * unit[1] - 1))
        step = gamma * 10 ** (3 * unit[2:4] - 1.5)
        z = gamma * tau * 2.5 * unit[4] * torch.nn.functional.normalize(unit[5:7], dim=0)
        z, step = z.to(dtype)[None], step.to(dtype)[None]
        x = fold_rows(z, step, tau, gamma).double()
        z, step = z.double(), step.double()
        a, b = torch.meshgrid(grid * z[0, 0], grid * z[0, 1], indexing="ij")
        fit = (a - z[0, 0]) ** 2 / (2 * step[0, 0]) + (b - z[0, 1]) ** 2 / (2 * step[0, 1])
        best = (fit + mcp((a**2 + b**2).sqrt(), tau, gamma)).min()
        found = ((x - z) ** 2 / (2 * step)).sum() + mcp(x.norm(), tau, gamma)
        assert found <= best * (1 + TOLERANCE[dtype]) + 1e-12
        kinds.add("zero" if not x.any() else "whole" if torch.equal(x, z) else "between")
    assert kinds == {"zero", "whole", "between"}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("spread", [1e2, 1e4, 1e8])
def test_folded_rows_beat_every_ridge(dtype: torch.dtype, spread: float):
    """Every minimiser is z / (1 + mu step): all mu on a fine grid, so all of them."""
    tau, gamma = 1.0, 3.0
    for layout in LAYOUTS:
        for z, step in hard_rows(6, spread, layout, groups=60):
            scale = 10 ** torch.linspace(-1, 1, len(z), dtype=z.dtype)[:, None]
            z = (z / z.norm(dim=1, keepdim=True) * gamma * tau * scale).to(dtype).double()
            step = (step / step.log().mean(1, keepdim=True).exp() * gamma).to(dtype).double()
            x = fold_rows(z.to(dtype), step.to(dtype), tau, gamma).double()
            fit = ((x - z) ** 2 / (2 * step)).sum(1)
            found = fit + mcp(x.norm(dim=1), tau, gamma)
            for mu in 10 ** torch.linspace(-12, 12, 2001, dtype=torch.float64):
                y = z / (1 + mu * step)
                other = (mu**2 * y**2 * step / 2).sum(1) + mcp(y.norm(dim=1), tau, gamma)
                assert (found <= other * (1 + TOLERANCE[dtype])).all()
            assert (found <= mcp(z.norm(dim=1), tau, gamma) * (1 + TOLERANCE[dtype])).all()
            assert (found <= (z**2 / (2 * step)).sum(1) * (1 + TOLERANCE[dtype])).all()


def test_folding_hardly_is_shrinking():
    z, step = torch.randn(9, 5).double(), torch.rand(9, 5).double() + 0.1
    torch.testing.assert_close(
        fold_rows(z, step, 0.7, 1e9), shrink_rows(z, step, 0.7), rtol=1e-6, atol=1e-9
    )
    folded = fold_rows(z, torch.full_like(z, 0.4), 0.7, 2.0)
    torch.testing.assert_close(fold_rows(z, 0.4, 0.7, 2.0), folded)
    assert math.isfinite(float(folded.sum()))
