"""Top k and rank in training: each layer by itself, along the ramp, and to the end."""

from typing import Any

import pytest
import torch
from torch import nn

from regkit import InputError, Regularizer, Schedule
from regkit.optim.dual_averaging import RAMDA
from regkit.optim.fused_optimizers import ProxAdamW
from regkit.penalties import GroupLasso, MaxRank, TopK, WeightPenalty

STEPS = 40
X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
Y = (X[:, :3] @ torch.tensor([1.0, -2.0, 0.5]))[:, None]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = [nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(12, 1))


def live(model: nn.Module) -> list[int]:
    return [int((model[place].weight != 0).any(1).sum()) for place in (0, 2)]


def ranks(model: nn.Module) -> list[int]:
    return [int(torch.linalg.matrix_rank(model[p].weight.double(), rtol=1e-5)) for p in (0, 2)]


def trained(
    penalty: WeightPenalty,
    make: Any,
    seen: Any = None,
    model: nn.Module | None = None,
    **options: Any,
) -> nn.Module:
    model = net() if model is None else model
    optimizer = make(model.parameters())
    schedule = Schedule(num_steps=STEPS, **options)
    Regularizer(model, penalty, schedule=schedule).attach(optimizer)
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X), Y).backward()
        optimizer.step()
        if seen is not None:
            seen(model)
    return model


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: ProxAdamW(p, lr=0.01),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("options", [{}, {"ramp": "cubic"}, {"ramp": "cubic", "debias": 0.8}])
def test_each_layer_ends_with_its_budget(name: str, options: dict[str, Any]):
    assert live(trained(TopK(1e-4, keep=0.25), MAKERS[name], **options)) == [3, 3]
    low = MaxRank(1e-4, rank=2, params=("0", "2"))
    assert ranks(trained(low, MAKERS[name], **options)) == [2, 2]


def test_layers_of_unlike_sizes_are_not_ranked_against_each_other():
    model = net()
    with torch.no_grad():
        model[0].weight.mul_(100.0)
    assert live(trained(TopK(1e-4, keep=0.5), MAKERS["sgd"], model=model)) == [6, 6]


def test_the_budget_follows_a_cubic_ramp():
    """After n steps, with what the ramp says of (n - 1) / 40 by 20: 1 - (1 - (n - 1) / 20)^3."""
    found: list[list[int]] = []
    trained(TopK(1e-4, keep=0.25), MAKERS["sgd"], lambda m: found.append(live(m)), ramp="cubic")
    for done, counts in enumerate(found):
        risen = 1 - (1 - min(done / 20, 1.0)) ** 3
        assert counts == [int(12 * (1 - 0.75 * risen) + 1e-9)] * 2
    assert found[0] == [12, 12]


def test_it_is_a_constraint_and_not_a_price():
    """Its strength does not matter, and it meets no other penalty on groups."""
    weak, strong = (trained(TopK(lam, keep=0.5), MAKERS["adamw"]) for lam in (1e-6, 1.0))
    for p, q in zip(weak.parameters(), strong.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(InputError, match="no order of their proxes is exact"):
        Regularizer(net(), [TopK(1.0), GroupLasso(1.0)])
    with pytest.raises(InputError, match="no penalty here makes more zeros"):
        Regularizer(net(), TopK(1.0), schedule=Schedule(target_density=0.5, num_steps=STEPS))


def test_a_rank_needs_one_step_for_a_matrix():
    reg = Regularizer(net(), MaxRank(1.0, rank=2))
    with pytest.raises(InputError, match="MaxRank needs one step for a whole matrix"):
        reg.attach(RAMDA(reg.model.parameters(), lr=0.1))
