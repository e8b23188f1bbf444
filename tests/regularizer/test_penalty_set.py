"""Which penalties may meet. That those which may are exact is a law (tests/penalties)."""

from typing import Any

import pytest
import torch
from torch import nn, optim

from regkit import InputError, Regularizer
from regkit.penalties import (
    L1,
    L2,
    MCP,
    Box,
    ElasticNet,
    GroupLasso,
    GroupMCP,
    NMSparsity,
    Nuclear,
    TemporalKernel,
    WeightDecay,
)

FREE = Box(1.0, low=-0.5, high=0.5)
POSITIVE = Box(1.0, low=0.0, high=None)


def chain(*penalties: Any) -> tuple[list[str], list[str]]:
    """Return the names of what acts on the weight of a 3-D convolution, in order."""
    reg = Regularizer(nn.Conv3d(3, 4, 3), list(penalties))
    chains = reg._weights.elementwise.values()
    entries = [type(part.penalty).__name__ for chain in chains for part in chain]
    return entries, [type(part.penalty).__name__ for part in reg._weights.grouped]


@pytest.mark.parametrize(
    ("penalties", "entries", "rows"),
    [
        ([L2(1.0), L1(1.0)], ["L1", "L2"], []),
        ([GroupLasso(1.0), L1(1.0), WeightDecay(1.0)], ["WeightDecay", "L1"], ["GroupLasso"]),
        ([GroupMCP(1.0), POSITIVE], ["Box"], ["GroupMCP"]),
        ([FREE, L2(1.0), L1(1.0)], ["L1", "L2", "Box"], []),
        ([MCP(1.0), L1(1.0)], ["L1", "MCP"], []),
        ([NMSparsity(1.0), L1(1.0)], ["L1"], ["NMSparsity"]),
        ([Nuclear(1.0), WeightDecay(1.0)], ["WeightDecay"], ["Nuclear"]),
        ([GroupLasso(1.0), GroupLasso(0.0, groups="in_channel")], [], ["GroupLasso"]),
    ],
)
def test_what_composes_is_put_in_order(penalties: Any, entries: list[str], rows: list[str]):
    assert chain(*penalties) == (entries, rows)


@pytest.mark.parametrize(
    "penalties",
    [
        [L2(1.0), ElasticNet(1.0)],
        [GroupLasso(1.0), GroupLasso(1.0, groups="in_channel")],
        [GroupLasso(1.0), L2(1.0)],
        [Nuclear(1.0), L1(1.0)],
        [TemporalKernel(1.0), L1(1.0)],
        [FREE, GroupLasso(1.0)],
        [FREE, MCP(1.0)],
        [FREE, Box(1.0, low=-1.0, high=0.1)],
    ],
    ids=lambda ps: "+".join(type(p).__name__ for p in ps),
)
def test_what_does_not_compose_is_refused_with_a_remedy(penalties: Any):
    with pytest.raises(InputError, match=r"meet on 'weight', and no order .* give them different"):
        chain(*penalties)


def test_different_parameters_never_meet():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    reg = Regularizer(model, [GroupLasso(1.0, params="0"), Nuclear(1.0, params="1")])
    assert len(reg.penalised()) == 2


def test_factors_multiply_the_strength_by_layer():
    """With no gradient, SGD moves each weight by lr * lam * factor."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1)).double()
    for layer in model:
        layer.weight.data.fill_(1.0)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    reg = Regularizer(model, L1(0.5, lam_scale={"1": 0.0, "2.weight": 3.0})).attach(optimizer)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [float(layer.weight.detach().mean()) for layer in model] == pytest.approx(
        [0.95, 1, 0.85]
    )
    assert float(reg.value()) == pytest.approx(0.5 * (6 * 0.95 + 3 * 2 * 0.85))
    assert id(model[1].weight) not in map(id, reg.penalised())


def test_a_factor_that_matches_nothing_is_refused():
    with pytest.raises(InputError, match="params='layer9' matches no weight"):
        Regularizer(nn.Linear(2, 2), L1(0.1, lam_scale={"layer9": 2.0}))
    with pytest.raises(InputError, match=r"L1 got lam_scale with 'weight': -1"):
        L1(0.1, lam_scale={"weight": -1.0})
