"""Training ends at the minimiser of the stated objective, whatever the optimizer.

Oracle: scikit-learn's coordinate descent, which shares no code with ours.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet as SkElasticNet
from sklearn.linear_model import Lasso as SkLasso
from torch import nn, optim

from regkit import Regularizer
from regkit.penalties import L1, L2, ElasticNet, WeightPenalty

LAM = 0.1
QUICK, SLOW = ("sgd momentum", "adamw"), pytest.mark.slow
NUM_SAMPLES, NUM_INPUTS = 120, 30

Make = Callable[[Any], optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: optim.SGD(p, lr=0.02, momentum=0.9),
    "sgd nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "sgd dampening": lambda p: optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.0),
    "adamw fused": lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.0, fused=True),
    "amsgrad": lambda p: optim.Adam(p, lr=0.02, amsgrad=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.02),
    "radam": lambda p: optim.RAdam(p, lr=0.02),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "rmsprop momentum": lambda p: optim.RMSprop(p, lr=0.002, momentum=0.9),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.5),
    "adamax": lambda p: optim.Adamax(p, lr=0.02),
}


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Make correlated inputs of unequal scale, a sparse truth and noise."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(NUM_SAMPLES, NUM_INPUTS)) + 0.5 * rng.normal(size=(NUM_SAMPLES, 1))
    x *= np.exp(rng.uniform(-0.7, 0.7, size=NUM_INPUTS))
    truth = np.zeros(NUM_INPUTS)
    truth[:8] = rng.normal(size=8)
    y = x @ truth + 0.3 * rng.normal(size=NUM_SAMPLES)
    return torch.from_numpy(x), torch.from_numpy(y)


def train(penalties: Any, make: Make, num_steps: int = 2000) -> nn.Linear:
    x, y = problem()
    torch.manual_seed(0)
    model = nn.Linear(NUM_INPUTS, 1, bias=False).double()
    optimizer = make(model.parameters())
    scheduler = optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 1.0 if t < 2000 else 0.997 ** (t - 2000)
    )
    Regularizer(model, penalties).attach(optimizer)
    for _ in range(num_steps):
        optimizer.zero_grad()
        ((model(x).squeeze(1) - y) ** 2).mean().div(2).backward()
        optimizer.step()
        scheduler.step()
    return model


def gap(w: np.ndarray, best: np.ndarray, penalty: WeightPenalty) -> float:
    """Return how far F(w) lies above F(best), relative to F(best)."""
    x, y = problem()

    def objective(v: np.ndarray) -> float:
        v_ = torch.from_numpy(v)
        return float(((x @ v_ - y) ** 2).mean() / 2 + penalty.value(v_))

    return (objective(w) - objective(best)) / objective(best)


@pytest.mark.parametrize(
    ("name", "penalty"),
    [
        *(pytest.param(n, L1(LAM), marks=[] if n in QUICK else SLOW) for n in OPTIMIZERS),
        *(pytest.param(n, ElasticNet(LAM, l1_ratio=0.7), marks=SLOW) for n in QUICK),
    ],
)
def test_reaches_the_optimum_and_support_of_scikit_learn(name: str, penalty: WeightPenalty):
    x, y = problem()
    if isinstance(penalty, ElasticNet):
        oracle = SkElasticNet(LAM, l1_ratio=0.7, fit_intercept=False, tol=1e-14, max_iter=100_000)
    else:
        oracle = SkLasso(LAM, fit_intercept=False, tol=1e-14, max_iter=100_000)
    best = oracle.fit(x.numpy(), y.numpy()).coef_
    w = train(penalty, OPTIMIZERS[name]).weight.detach().numpy()[0]
    assert 0 < (best != 0).sum() < NUM_INPUTS
    assert abs(gap(w, best, penalty)) <= 1e-6
    assert ((w != 0) == (best != 0)).all()


def test_l1_and_l2_together_are_the_elastic_net():
    together = train([L2(0.3 * LAM), L1(0.7 * LAM)], OPTIMIZERS["adamw"], num_steps=300)
    whole = train(ElasticNet(LAM, l1_ratio=0.7), OPTIMIZERS["adamw"], num_steps=300)
    torch.testing.assert_close(together.weight, whole.weight, rtol=0, atol=1e-12)


def test_an_unknown_optimizer_is_warned_of():
    with pytest.warns(UserWarning, match="does not know how far ASGD moves"):
        train(L1(LAM), lambda p: optim.ASGD(p, lr=0.01), num_steps=2)


def test_a_subclass_that_changes_nothing_keeps_the_step_size():
    class MyAdam(optim.Adam):
        pass

    class Other(optim.Adam):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return super().step(closure)

    train(L1(LAM), lambda p: MyAdam(p, lr=0.01), num_steps=2)
    with pytest.warns(UserWarning, match="does not know how far Other moves"):
        train(L1(LAM), lambda p: Other(p, lr=0.01), num_steps=2)
