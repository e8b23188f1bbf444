"""The step on groups: which rows and steps a group penalty is given, and what becomes of it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from regkit import InputError, Regularizer
from regkit.optim import batching
from regkit.optim.fused_optimizers import FusedStep
from regkit.optim.parts import Part
from regkit.optim.proximal_step import ProximalStep
from regkit.penalties.penalty import GroupPenalty, WeightPenalty
from regkit.structure.groups import GroupSet, Piece, along


@dataclass(frozen=True)
class Pull(GroupPenalty):
    """Moves every entry by its own step and by the sum of its group: nothing may be mixed up."""

    def value(self, rows: Tensor) -> Tensor:
        return self.lam * rows.sum(1).square().sum()

    def prox(self, rows: Tensor, step: Any) -> Tensor:
        return rows - step * self.lam * rows.sum(1, keepdim=True)


def by_hand(weight: Tensor, step: Tensor, lam: float, groups: list[tuple[Any, ...]]) -> Tensor:
    out = weight.clone()
    for index in groups:
        out[index] = weight[index] - step[index] * lam * weight[index].sum()
    return out


LAYOUTS: dict[str, Callable[[Tensor], list[tuple[Any, ...]]]] = {
    "filter": lambda w: [(o,) for o in range(w.shape[0])],
    "in_channel": lambda w: [(slice(None), i) for i in range(w.shape[1])],
    "kernel": lambda w: [(o, i) for o in range(w.shape[0]) for i in range(w.shape[1])],
    "time_tap": lambda w: [(slice(None), slice(None), t) for t in range(w.shape[2])],
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv3d(3, 8, (3, 1, 2))
        self.two = nn.Conv3d(3, 8, (3, 1, 2)).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.three = nn.Conv3d(5, 4, (2, 3, 3))
        self.half = nn.Conv3d(3, 4, (3, 1, 1)).to(torch.bfloat16)


def moved(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("entries", [1, 40, 2**20])
@pytest.mark.filterwarnings("ignore:Penalised weights are stored in torch.bfloat16")
def test_groups_equal_the_naive_loop(layout: str, entries: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(batching.BATCH_ENTRIES, "cpu", entries)
    model = Net()
    twin = copy.deepcopy(model)
    ours, theirs = (optim.Adam(m.parameters(), lr=0.03) for m in (model, twin))
    penalty = Pull(0.02, groups=layout, params=[name for name, _ in model.named_children()])
    Regularizer(model, penalty).attach(ours)
    for seed in range(3):
        for m, optimizer in ((model, ours), (twin, theirs)):
            moved(m, seed)
            optimizer.step()
        for conv in twin.children():
            w, state = conv.weight.detach(), theirs.state[conv.weight]
            v_hat = state["exp_avg_sq"].float() / (1 - 0.999 ** (seed + 1))
            step = 0.03 / (v_hat.sqrt() + 1e-8)
            w.copy_(by_hand(w.float(), step, 0.02, LAYOUTS[layout](w)))
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        tolerance = 2e-2 if a.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance / 10)


def coupled(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> GroupSet:
    count = conv.out_channels
    tensors = {"conv.weight": conv.weight, "norm.weight": norm.weight, "norm.bias": norm.bias}
    return GroupSet(
        "conv", tuple(Piece(n, p, along(p.shape, 0, count)) for n, p in tensors.items())
    )


def pulled(lam: float, model: nn.Sequential) -> Part:
    return Part(Pull(lam), coupled(model[0], model[1]), "pull/conv")


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("entries", [1, 60, 2**20])
def test_a_group_spans_parameters_and_settings(
    make: Any, entries: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(batching.BATCH_ENTRIES, "cpu", entries)
    model = nn.Sequential(nn.Conv3d(2, 5, 3, bias=False), nn.BatchNorm3d(5))
    twin = copy.deepcopy(model)

    def optimizer_of(m: nn.Module) -> optim.Optimizer:
        return make(
            [{"params": m[0].parameters(), "lr": 0.1}, {"params": m[1].parameters()}], lr=1.0
        )

    ours, theirs = optimizer_of(model), optimizer_of(twin)
    ProximalStep(ours, {}, [pulled(0.02, model)])
    for m, optimizer in ((model, ours), (twin, theirs)):
        moved(m)
        optimizer.step()
    tensors = list(twin.parameters())
    rows = torch.cat(
        [t.detach().flatten(1) if t.ndim > 1 else t.detach()[:, None] for t in tensors], 1
    )
    steps = []
    for t, lr in zip(tensors, (0.1, 1.0, 1.0), strict=True):
        state = theirs.state[t]
        square = state["exp_avg_sq"] / (1 - 0.999) if "exp_avg_sq" in state else None
        step = torch.full_like(t, lr) if square is None else lr / (square.sqrt() + 1e-8)
        steps.append(step.flatten(1) if t.ndim > 1 else step[:, None])
    rows = rows - torch.cat(steps, 1) * 0.02 * rows.sum(1, keepdim=True)
    torch.testing.assert_close(coupled(model[0], model[1]).rows(), rows, rtol=1e-5, atol=1e-6)


def test_a_bundle_stands_still_as_long_as_any_of_it_does():
    model = nn.Sequential(nn.Conv3d(2, 5, 3, bias=False), nn.BatchNorm3d(5))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    ProximalStep(optimizer, {}, [pulled(0.1, model)])
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before)


def test_a_bundle_over_two_optimizers_is_refused():
    model = nn.Sequential(nn.Conv3d(2, 5, 3, bias=False), nn.BatchNorm3d(5))
    with pytest.raises(InputError, match=r"holds 'conv.weight' but not 'norm.weight'"):
        ProximalStep(optim.SGD(model[0].parameters(), lr=0.1), {}, [pulled(0.1, model)])


@dataclass(frozen=True)
class Shift(WeightPenalty):
    """A joint penalty that shows the step it is given."""

    every: int = 1
    joint = True
    layout = "filter"

    def value(self, rows: Tensor) -> Tensor:
        return rows.sum() * 0

    def prox(self, rows: Tensor, step: Any) -> Tensor:
        assert not isinstance(step, Tensor) or step.ndim == 0
        return rows - step * self.lam


def test_a_joint_penalty_gets_one_step_and_a_move_that_fits_it():
    """The move is m / rms(d) times the learning rate, and the prox has that very step."""
    model = nn.Linear(4, 3, bias=False).double()
    start = model.weight.detach().clone()
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    Regularizer(model, Shift(2.0)).attach(optimizer)
    gradient = torch.randn(3, 4, dtype=torch.float64)
    model.weight.grad = gradient.clone()
    optimizer.step()
    # After one step m_hat = g and v_hat = g^2.
    scalar = 0.1 / (gradient.abs() + 1e-8).square().mean().sqrt()
    torch.testing.assert_close(model.weight.detach(), start - scalar * gradient - 2 * scalar)


def test_a_joint_penalty_acts_every_kth_step_with_k_steps():
    model = nn.Linear(4, 3, bias=False).double()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, Shift(2.0, every=3)).attach(optimizer)
    seen = []
    for _ in range(7):
        model.weight.grad = torch.zeros_like(model.weight)
        before = model.weight.detach().clone()
        optimizer.step()
        seen.append(float((before - model.weight.detach()).mean()))
    assert seen == pytest.approx([0, 0, 0.6, 0, 0, 0.6, 0])


class Averaging(optim.SGD):
    """Halves the distance to where the prox led: an optimizer that acts after it."""

    proximal_step: FusedStep | None = None

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        result = super().step(closure)
        if self.proximal_step is not None:
            self.proximal_step.finish()
        with torch.no_grad():
            for p, old in zip(params, before, strict=True):
                p.lerp_(old, 0.5)
        return result


def test_a_joint_penalty_under_such_an_optimizer_is_refused():
    model = nn.Linear(4, 3)
    with pytest.raises(InputError, match="Shift needs one step for a whole matrix, and Averaging"):
        Regularizer(model, Shift(1.0)).attach(Averaging(model.parameters(), lr=0.1))


@pytest.mark.filterwarnings("ignore:.*does not know how far.*")
def test_an_optimizer_may_take_the_prox_in_its_midst():
    model = nn.Linear(4, 3, bias=False)
    start = model.weight.detach().clone()
    optimizer = Averaging(model.parameters(), lr=0.1)
    reg = Regularizer(model, Pull(0.5)).attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    expected = start - 0.5 * 0.1 * 0.5 * start.sum(1, keepdim=True)
    torch.testing.assert_close(model.weight.detach(), expected)
    reg.detach()
    before = model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.weight, before)
