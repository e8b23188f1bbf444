"""The KKT residual against the shortest subgradient written out by hand, and at known optima."""

from typing import Any

import pytest
import torch
from sklearn.linear_model import Lasso as SkLasso
from torch import nn, optim

from regkit import Regularizer, Schedule
from regkit.penalties import L1, L2, GroupLasso, WeightDecay

LAM, NUM_INPUTS = 0.1, 12


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(80, NUM_INPUTS, dtype=torch.float64)
    truth = torch.zeros(NUM_INPUTS, dtype=torch.float64)
    truth[:4] = torch.tensor([1.0, -2.0, 0.5, 3.0])
    return x, x @ truth + 0.3 * torch.randn(80, dtype=torch.float64)


def with_gradient(weight: torch.Tensor, gradient: torch.Tensor) -> nn.Linear:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
    model.weight.data.copy_(weight)
    model.weight.grad = gradient.clone()
    return model


def test_l1_by_hand():
    """Beside zero the slope is g + lam sign(w), at zero what of g exceeds lam."""
    weight = torch.tensor([[0.5, -0.3, 0.0, 0.0]], dtype=torch.float64)
    gradient = torch.tensor([[0.2, 0.7, 0.9, -0.4]], dtype=torch.float64)
    model = with_gradient(weight, gradient)
    expected = torch.tensor([0.2 + 0.5, 0.7 - 0.5, 0.9 - 0.5, 0.0]).norm()
    assert float(Regularizer(model, L1(0.5)).kkt_residual()) == pytest.approx(float(expected))
    plain = Regularizer(model, WeightDecay(0.5)).kkt_residual()
    assert float(plain) == pytest.approx(float(gradient.norm()))


def test_groups_and_l1_by_hand():
    """Row 0 lives, row 1 is zero: what remains of its gradient after both balls."""
    weight = torch.tensor([[0.3, -0.4], [0.0, 0.0]], dtype=torch.float64)
    gradient = torch.tensor([[0.1, 0.0], [1.0, -0.15]], dtype=torch.float64)
    model = with_gradient(weight, gradient)
    lam, group = 0.2, 0.3
    live = gradient[0] + lam * weight[0].sign() + group * 2**0.5 * weight[0] / weight[0].norm()
    left = torch.tensor([1.0 - lam, 0.0]).norm() - group * 2**0.5
    expected = (live.square().sum() + max(float(left), 0.0) ** 2).sqrt()
    reg = Regularizer(model, [L1(lam), GroupLasso(group)])
    assert float(reg.kkt_residual()) == pytest.approx(float(expected), rel=1e-6)


def test_it_vanishes_at_the_optimum_of_scikit_learn_and_nowhere_near():
    x, y = problem()
    best = SkLasso(LAM, fit_intercept=False, tol=1e-14, max_iter=100_000).fit(x.numpy(), y.numpy())
    model = nn.Linear(NUM_INPUTS, 1, bias=False).double()
    model.weight.data.copy_(torch.from_numpy(best.coef_)[None])

    def residual() -> float:
        model.zero_grad()
        ((model(x).squeeze(1) - y) ** 2).mean().div(2).backward()
        return float(Regularizer(model, L1(LAM)).kkt_residual())

    assert residual() < 1e-6
    live = int(model.weight.detach()[0].abs().argmax())
    model.weight.data[0, live] += 1e-3
    assert residual() > 1e-4


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_it_counts_parameters_without_a_penalty_and_falls_while_training(make: Any):
    x, y = problem()
    model = nn.Sequential(nn.Linear(NUM_INPUTS, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    optimizer = make(model.parameters(), lr=0.01)
    reg = Regularizer(model, L2(0.01, params="0")).attach(optimizer)
    seen = []
    for _ in range(800):
        optimizer.zero_grad()
        ((model(x).squeeze(1) - y) ** 2).mean().backward()
        total = 0.0
        for p in model.parameters():
            assert p.grad is not None
            ridge = 0.01 * p.detach() if p is model[0].weight else torch.zeros_like(p)
            total += float((p.grad + ridge).square().sum())
        seen.append(float(reg.kkt_residual()))
        assert seen[-1] == pytest.approx(total**0.5, rel=1e-5)
        optimizer.step()
    assert seen[-1] < seen[0] / 10


def test_frozen_zeros_do_not_count():
    double = {"dtype": torch.float64}
    model = with_gradient(torch.tensor([[0.5, 0.0]], **double), torch.ones(1, 2, **double))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    schedule = Schedule(debias=0.5, num_steps=10)
    reg = Regularizer(model, L1(0.2), schedule=schedule).attach(optimizer)
    for _ in range(6):
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    model.weight.grad = torch.tensor([[0.3, 9.0]], **double)
    assert reg.current_lams() == {"l1": 0.0}
    assert float(reg.kkt_residual()) == pytest.approx(0.3, rel=1e-6)
