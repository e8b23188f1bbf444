"""Values and proxes against numbers worked out by hand from the definitions."""

import math

import numpy as np
import pytest
import torch

from regkit.errors import InputError
from regkit.penalties import L1, L2, ElasticNet, TemporalSmoothness, WeightDecay

W = torch.tensor([[3.0, -4.0], [0.0, 1.0]], dtype=torch.float64)


def test_values_by_hand():
    assert float(L1(0.5).value(W)) == 4.0
    assert float(L2(0.5).value(W)) == 6.5
    assert float(ElasticNet(0.5, l1_ratio=0.25).value(W)) == pytest.approx(0.5 * (2 + 0.375 * 26))
    assert float(WeightDecay(0.5).value(W)) == 6.5


def test_proxes_by_hand():
    v = torch.tensor([3.0, -0.2, 0.5, -2.0], dtype=torch.float64)
    assert L1(0.5).prox(v, 1.0).tolist() == [2.5, 0.0, 0.0, -1.5]
    assert L2(0.5).prox(v, 2.0).tolist() == [1.5, -0.1, 0.25, -1.0]
    assert WeightDecay(0.5).prox(v, 0.5).tolist() == [2.25, -0.15000000000000002, 0.375, -1.5]
    mixed = ElasticNet(1.0, l1_ratio=0.5).prox(v, 1.0)
    torch.testing.assert_close(mixed, torch.tensor([2.5, 0, 0, -1.5], dtype=torch.float64) / 1.5)


def test_l1_zeros_are_exact_at_the_boundary():
    threshold = np.float32(1e-3) * np.float32(0.1)
    v = torch.tensor([threshold, -threshold, np.nextafter(threshold, np.float32(1))])
    out = L1(0.1).prox(v, float(np.float32(1e-3)))
    assert (out[:2] == 0).all()


def test_l1_takes_a_diagonal_step():
    v = torch.tensor([1.0, 1.0, 1.0])
    step = torch.tensor([0.1, 1.0, 10.0])
    torch.testing.assert_close(L1(0.5).prox(v, step), torch.tensor([0.95, 0.5, 0.0]))


def test_elastic_net_ends_are_l1_and_l2():
    v = torch.linspace(-2, 2, 9)
    assert torch.equal(ElasticNet(0.3, l1_ratio=1.0).prox(v, 0.7), L1(0.3).prox(v, 0.7))
    torch.testing.assert_close(ElasticNet(0.3, l1_ratio=0.0).prox(v, 0.7), L2(0.3).prox(v, 0.7))
    with pytest.raises(InputError, match=r"l1_ratio=1.5; l1_ratio is a number in \[0, 1\]"):
        ElasticNet(0.3, l1_ratio=1.5)


@pytest.mark.parametrize("norm", ["squared", "absolute"])
@pytest.mark.parametrize("order", [1, 2])
def test_temporal_by_loops(order: int, norm: str):
    frames = torch.randn(3, 7, 4, dtype=torch.float64)
    total, count = 0.0, 0
    for b in range(3):
        for d in range(4):
            z = frames[b, :, d].tolist()
            for t in range(7 - order):
                change = z[t + 1] - z[t] if order == 1 else z[t + 2] - 2 * z[t + 1] + z[t]
                total += change**2 if norm == "squared" else abs(change)
                count += 1
    value = TemporalSmoothness(2.0, order=order, norm=norm).value(frames)
    assert float(value) == pytest.approx(2 * total / count)


@pytest.mark.parametrize("norm", ["squared", "absolute"])
def test_relative_temporal_knows_neither_scale_nor_offset(norm: str):
    frames = torch.randn(3, 7, 4, dtype=torch.float64)
    relative = TemporalSmoothness(1.0, norm=norm, relative=True)
    torch.testing.assert_close(relative.value(100 * frames + 7), relative.value(frames))
    absolute = TemporalSmoothness(1.0, norm=norm)
    assert float(absolute.value(frames / 100)) < float(absolute.value(frames)) / 9
    assert math.isfinite(float(relative.value(torch.ones(2, 3, 4))))


def test_order_two_lets_uniform_motion_pass():
    ramp = torch.arange(6.0).view(1, 6, 1).expand(2, 6, 3)
    assert float(TemporalSmoothness(1.0, order=2).value(ramp)) == 0.0
    assert float(TemporalSmoothness(1.0, order=1).value(ramp)) == 1.0


def test_temporal_options_are_checked():
    with pytest.raises(InputError, match="order is 1 or 2"):
        TemporalSmoothness(1.0, order=3)
    with pytest.raises(InputError, match="norm is one of squared, absolute"):
        TemporalSmoothness(1.0, norm="huber")
    with pytest.raises(InputError, match="give each of B, T and D once"):
        TemporalSmoothness(1.0, layout="BDD")
    assert TemporalSmoothness(1.0, layout="bct").layout == "BDT"
