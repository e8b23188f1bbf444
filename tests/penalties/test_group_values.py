"""Values and proxes of the group penalties against numbers worked out by hand."""

import math

import pytest
import torch

from regkit.errors import InputError
from regkit.penalties import GroupElasticNet, GroupL0, GroupLasso, GroupMCP, SparseGroupLasso

# Lengths 5, 0 and 1 (rows of four: sqrt(n) = 2); ||w||_1 = 8, ||w||^2 = 26.
W = torch.tensor([[3.0, 0, -4, 0], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)


def test_values_by_hand():
    assert float(GroupLasso(0.5).value(W)) == 0.5 * 2 * (5 + 0 + 1)
    assert float(SparseGroupLasso(0.5, l1_ratio=0.25).value(W)) == 0.5 * (0.25 * 8 + 0.75 * 12)
    assert float(GroupElasticNet(0.5, l1_ratio=0.25).value(W)) == 0.5 * (0.25 * 12 + 0.375 * 26)
    assert float(GroupL0(0.5).value(W)) == 0.5 * 4 * 2
    # Slope t = lam sqrt(n) = 1, flat from gamma t = 3 on: 5 costs 3/2, 1 costs 1 - 1/6.
    assert float(GroupMCP(0.5, gamma=3.0).value(W)) == pytest.approx(3 / 2 + 1 - 1 / 6)


def test_proxes_by_hand():
    # step lam sqrt(n) = 1: 5 becomes 4, 1 becomes 0.
    expected = torch.tensor([[2.4, 0, -3.2, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(GroupLasso(0.5).prox(W, 1.0), expected)
    # Ridge first: divided by 1 + 1, then shortened by (1/2) 2 / 2 = 1/2: 2.5 becomes 2, 1/2 dies.
    expected = torch.tensor([[1.2, 0, -1.6, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(GroupElasticNet(2.0, l1_ratio=0.5).prox(W, 1.0), expected * 0.75)
    # Soft by 1: (2, -3), length sqrt(13), shortened by 2.
    expected = torch.zeros_like(W)
    expected[0, 0], expected[0, 2] = 2 * (1 - 2 / math.sqrt(13)), -3 * (1 - 2 / math.sqrt(13))
    torch.testing.assert_close(SparseGroupLasso(2.0).prox(W, 1.0), expected)
    # Flat from gamma t = 3 on; below, (s - step t) / (1 - step / gamma).
    x = GroupMCP(0.5, gamma=3.0).prox(torch.stack([W[0], W[0] / 2, W[0] / 10]), 1.0)
    assert torch.equal(x[0], W[0])
    torch.testing.assert_close(x[1], W[0] / 5 * (2.5 - 1) / (1 - 1 / 3))
    assert (x[2] == 0).all()


def test_group_l0_keeps_what_is_dear_to_lose():
    # ||w||^2 / 2 against lam n = 4 lam: 12.5 and 0.5.
    assert torch.equal(GroupL0(3.12).prox(W, 1.0)[0], W[0])
    assert (GroupL0(3.13).prox(W, 1.0) == 0).all()
    # A small step makes a weight dear: 1 / (2 * 0.01) = 50 against 40.
    step = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 0.01, 1, 1]], dtype=torch.float64)
    x = GroupL0(10.0).prox(W, step)
    assert (x[0] == 0).all()
    assert torch.equal(x[2], W[2])


def test_groups_of_all_sizes_die_at_the_same_root_mean_square():
    for size in (1, 4, 9, 100):
        below, above = torch.full((1, size), 0.09), torch.full((1, size), 0.11)
        for penalty in (GroupLasso(0.1), GroupMCP(0.1), GroupL0(0.005)):
            assert (penalty.prox(below, 1.0) == 0).all()
            assert (penalty.prox(above, 1.0) != 0).all()


def test_ends_of_the_mixes():
    v, step = torch.randn(5, 6), torch.rand(5, 6) + 0.1
    lasso = GroupLasso(0.3).prox(v, step)
    torch.testing.assert_close(SparseGroupLasso(0.3, l1_ratio=0.0).prox(v, step), lasso)
    torch.testing.assert_close(GroupElasticNet(0.3, l1_ratio=1.0).prox(v, step), lasso)
    soft = v.sign() * (v.abs() - 0.3 * step).clamp_min(0)
    torch.testing.assert_close(SparseGroupLasso(0.3, l1_ratio=1.0).prox(v, step), soft)
    ridge = v / (1 + 0.3 * step)
    torch.testing.assert_close(GroupElasticNet(0.3, l1_ratio=0.0).prox(v, step), ridge)


def test_options_are_checked():
    for kind in (SparseGroupLasso, GroupElasticNet):
        with pytest.raises(InputError, match=r"l1_ratio=1.5; l1_ratio is a number in \[0, 1\]"):
            kind(0.3, l1_ratio=1.5)
    with pytest.raises(InputError, match=r"gamma=0\.0; gamma is a number >="):
        GroupMCP(0.3, gamma=0.0)
    with pytest.raises(InputError, match="groups is one of filter"):
        GroupLasso(0.3, groups="fliter")
