"""The step: how long it is, on what it acts, and when it does not."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from regkit import InputError, Regularizer, Schedule
from regkit.optim import batching
from regkit.penalties import L1, L2, WeightDecay, WeightPenalty

Make = Callable[[Any], optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.02, momentum=0.9),
    "nesterov": lambda p: optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "dampening": lambda p: optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.5),
    "adam": lambda p: optim.Adam(p, lr=0.02),
    "adamw": lambda p: optim.AdamW(p, lr=0.02),
    "fused": lambda p: optim.AdamW(p, lr=0.02, fused=True),
    "tensor lr": lambda p: optim.AdamW(p, lr=torch.tensor(0.02)),
    "amsgrad": lambda p: optim.Adam(p, lr=0.02, amsgrad=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.02),
    "radam": lambda p: optim.RAdam(p, lr=0.02),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "centered": lambda p: optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.5, lr_decay=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.02),
}


@dataclass(frozen=True)
class Recorder(WeightPenalty):
    """Changes nothing; keeps the steps that it is given."""

    steps: list = field(default_factory=list, compare=False)

    def value(self, rows: Tensor) -> Tensor:
        return rows.sum() * 0

    def prox(self, rows: Tensor, step: Any) -> Tensor:
        self.steps.append(torch.as_tensor(step, dtype=rows.dtype).expand_as(rows).clone())
        return rows


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_step_is_the_move_along_a_constant_gradient(name: str):
    """Oracle: the optimizer itself, moving along a gradient that stays as it is."""
    gradient = torch.tensor([[1e-3, 0.1, 1.0, -20.0]], dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    optimizer = OPTIMIZERS[name](model.parameters())
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    recorder = Recorder(1.0)
    Regularizer(model, recorder).attach(optimizer)
    for _ in range(12):
        before = model.weight.detach().clone()
        model.weight.grad = gradient.clone()
        optimizer.step()
        move = (before - model.weight.detach()) / gradient
        torch.testing.assert_close(recorder.steps[-1], move.flatten(), rtol=1e-6, atol=1e-9)


def test_rmsprop_with_momentum_steps_so_too_once_it_has_settled():
    model = nn.Linear(1, 1, bias=False).double()
    optimizer = optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9)
    recorder = Recorder(1.0)
    Regularizer(model, recorder).attach(optimizer)
    before = 0.0
    for _ in range(1500):
        before = float(model.weight.detach())
        model.weight.grad = torch.full((1, 1), 0.5, dtype=torch.float64)
        optimizer.step()
    move = (before - float(model.weight.detach())) / 0.5
    assert float(recorder.steps[-1]) == pytest.approx(move, rel=1e-4)


def run(model: nn.Module, optimizer: optim.Optimizer, num_steps: int = 5, seed: int = 1) -> None:
    """Take some steps with gradients that come from the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        for p in model.parameters():
            if p.requires_grad:
                drawn = torch.randn(p.shape, generator=generator)
                p.grad = torch.empty_like(p).copy_(drawn)
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_strength_is_bitwise_no_regkit(name: str):
    plain = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    with_reg = copy.deepcopy(plain)
    one, two = OPTIMIZERS[name](plain.parameters()), OPTIMIZERS[name](with_reg.parameters())
    Regularizer(with_reg, [L1(0.0), L2(0.0), WeightDecay(0.0)]).attach(two)
    run(plain, one)
    run(with_reg, two)
    for a, b in zip(plain.parameters(), with_reg.parameters(), strict=True):
        assert torch.equal(a, b)


class Zoo(nn.Module):
    """Weights of every layout that a user may have."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(40, 30)
        self.conv = nn.Conv3d(6, 8, 3).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.point = nn.Conv3d(6, 8, 1)
        self.strided = nn.Linear(3, 4)
        self.strided.weight = nn.Parameter(torch.randn(4, 6)[:, ::2])
        self.transposed = nn.Linear(5, 4)
        self.transposed.weight = nn.Parameter(torch.randn(5, 4).T)
        self.empty = nn.Linear(1, 3)
        self.empty.weight = nn.Parameter(torch.empty(3, 0))
        self.scalar = nn.Parameter(torch.tensor(0.7))
        self.half = nn.Linear(9, 9).to(torch.bfloat16)


ON = ["*", "scalar"]


def naive(model: nn.Module, optimizer: optim.Adam, lam: float) -> None:
    """Soft-threshold in Adam's metric, a parameter at a time, straight from the formula."""
    (group,) = optimizer.param_groups
    biases = {m.bias for m in model.modules() if isinstance(m, nn.Linear | nn.Conv3d)}
    with torch.no_grad():
        for p in model.parameters():
            if p in biases or p.numel() == 0:
                continue
            state = optimizer.state[p]
            v_hat = state["exp_avg_sq"].float() / (1 - group["betas"][1] ** state["step"].item())
            threshold = lam * group["lr"] / (v_hat.sqrt() + group["eps"])
            u = p.float()
            p.copy_(torch.sign(u) * torch.clamp(u.abs() - threshold, min=0))


@pytest.mark.parametrize("entries", [1, 7, 100, 2**24])
@pytest.mark.filterwarnings("ignore:Penalised weights are stored in torch.bfloat16")
def test_batches_equal_the_naive_loop_in_every_layout(
    entries: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(batching.BATCH_ENTRIES, "cpu", entries)
    model = Zoo()
    other = copy.deepcopy(model)
    optimizer = optim.Adam(model.parameters(), lr=0.03)
    reference = optim.Adam(other.parameters(), lr=0.03)
    Regularizer(model, L1(0.5, params=ON), schedule=Schedule(holds_zeros=False)).attach(optimizer)
    for step in range(3):
        run(model, optimizer, num_steps=1, seed=step)
        run(other, reference, num_steps=1, seed=step)
        naive(other, reference, 0.5)
    zeros = 0
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(p == 0, q == 0)
        zeros += int((p == 0).sum())
    assert zeros > 100


def test_memory_format_may_change_after_the_optimizer_was_made():
    model = nn.Conv3d(6, 8, 3)
    other = copy.deepcopy(model)
    optimizer, reference = optim.Adam(model.parameters()), optim.Adam(other.parameters())
    Regularizer(model, L1(0.5)).attach(optimizer)
    Regularizer(other, L1(0.5)).attach(reference)
    run(model, optimizer, 2)
    run(other, reference, 2)
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    run(model, optimizer, 2)
    run(other, reference, 2)
    torch.testing.assert_close(model.weight, other.weight)


def test_only_what_moved_is_shrunk():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.requires_grad_(False)
    before = [layer.weight.detach().clone() for layer in model]
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(100.0)).attach(optimizer)
    model[0].weight.grad = torch.zeros(3, 3)
    optimizer.step()
    assert (model[0].weight == 0).all()
    assert torch.equal(model[1].weight, before[1])
    assert torch.equal(model[2].weight, before[2])


def test_each_group_has_its_own_learning_rate_and_zero_means_rest():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(1.0)
    rates = [0.1, 0.2, 0.0]
    groups = [{"params": m.parameters(), "lr": lr} for m, lr in zip(model, rates, strict=True)]
    optimizer = optim.SGD(groups)
    Regularizer(model, L1(1.0)).attach(optimizer)
    for layer in model:
        layer.weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert [layer.weight[0, 0].item() for layer in model] == pytest.approx([0.9, 0.8, 1.0])


def test_weight_decay_is_that_of_adamw_to_first_order():
    """torch decays before the update, we after it: they differ by lr lam times the update."""
    model = nn.Linear(20, 20, bias=False)
    start, other = copy.deepcopy(model), copy.deepcopy(model)
    ours = optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    theirs = optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.3)
    Regularizer(model, WeightDecay(0.3)).attach(ours)
    run(model, ours, 10)
    run(other, theirs, 10)
    assert (model.weight - other.weight).abs().max().item() <= 10 * 1e-3 * 0.3 * 1e-3 * 1.1
    undecayed = copy.deepcopy(start)
    run(undecayed, optim.AdamW(undecayed.parameters(), lr=1e-3, weight_decay=0.0), 10)
    assert (model.weight - undecayed.weight).abs().max().item() >= 10 * 1e-3 * 0.3 * 0.1


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_loss_scaler_skips_is_none(fused: bool):
    model = nn.Linear(4, 4, bias=False)
    optimizer = optim.Adam(model.parameters(), lr=0.1, fused=fused)
    Regularizer(model, L1(100.0)).attach(optimizer)
    before = model.weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    loss = model(torch.ones(1, 4)).sum() * float("inf")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(model.weight, before)
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(1, 4)).sum()).backward()
    scaler.step(optimizer)
    assert (model.weight == 0).all()


def test_momentum_continues_from_a_checkpoint():
    def fresh() -> tuple[nn.Linear, optim.SGD, Regularizer]:
        torch.manual_seed(5)
        model = nn.Linear(30, 30)
        optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return model, optimizer, Regularizer(model, L1(0.05))

    whole, optimizer, reg = fresh()
    reg.attach(optimizer)
    run(whole, optimizer, 4, seed=1)
    saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict(), reg.state_dict()))
    run(whole, optimizer, 4, seed=2)
    for order in ("load first", "attach first"):
        model, optimizer, reg = fresh()
        if order == "attach first":
            reg.attach(optimizer)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(copy.deepcopy(saved[1]))
        reg.load_state_dict(saved[2])
        if order == "load first":
            reg.attach(optimizer)
        run(model, optimizer, 4, seed=2)
        assert torch.equal(model.weight, whole.weight), order


def test_momentum_that_is_there_already_counts_as_settled():
    model = nn.Linear(2, 2, bias=False)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    run(model, optimizer, 3)
    recorder = Recorder(1.0)
    Regularizer(model, recorder).attach(optimizer)
    run(model, optimizer, 1)
    assert float(recorder.steps[-1][0]) == pytest.approx(0.2)


def test_attach_refuses_what_cannot_work():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    reg = Regularizer(model, L1(0.1))
    with pytest.raises(InputError, match="SGD that holds none of the penalised"):
        reg.attach(optim.SGD(other.parameters(), lr=0.1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    reg.attach(optimizer)
    with pytest.raises(InputError, match="attached already"):
        Regularizer(model, L1(0.1)).attach(optimizer)
    with pytest.raises(InputError, match="got a Linear; give a torch Optimizer"):
        reg.attach(model)
    reg.detach()
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(model.weight, before)


def test_rmsprop_whose_own_moves_settle_nowhere_is_refused():
    model = nn.Linear(2, 2)
    both = optim.RMSprop(model.parameters(), momentum=0.9, centered=True)
    with pytest.raises(InputError, match=r"RMSprop with momentum=0.9 and centered=True.* no prox"):
        Regularizer(model, L1(0.1)).attach(both)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_too_coarse_for_a_penalty_are_warned_of(dtype: torch.dtype):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(dtype))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(0.1, params="0")).attach(optimizer).detach()
    with pytest.warns(UserWarning, match=f"weights are stored in {dtype}: .* in float32"):
        Regularizer(model, L1(0.1)).attach(optimizer)


def test_parameters_that_join_later_are_penalised_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = optim.SGD(model[0].parameters(), lr=0.1)
    Regularizer(model, L1(100.0)).attach(optimizer)
    optimizer.add_param_group({"params": list(model[1].parameters())})
    run(model, optimizer, 1)
    assert (model[1].weight == 0).all()


def test_autograd_knows_that_weights_changed():
    """A graph made before the step must not be used after it unnoticed."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    Regularizer(model, L1(0.1)).attach(optimizer)
    version = model[0].weight._version
    with torch.no_grad():
        run(model, optimizer, 1)
    assert model[0].weight._version > version + 1
