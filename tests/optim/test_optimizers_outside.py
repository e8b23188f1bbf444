"""Steps that are skipped, and optimizers that rescale, round or average in ways of their own."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor, nn, optim

from regkit import InputError, Regularizer, Schedule
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD
from regkit.penalties import L1, WeightPenalty

LR, LAM = 0.1, 0.1
Make = Callable[[Any], optim.Optimizer]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Nets this small only make threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Recorder(WeightPenalty):
    """Changes nothing; keeps the steps that it is given."""

    steps: list = field(default_factory=list, compare=False)

    def value(self, rows: Tensor) -> Tensor:
        return rows.sum() * 0

    def prox(self, rows: Tensor, step: Any) -> Tensor:
        self.steps.append(torch.as_tensor(step, dtype=rows.dtype).expand_as(rows).clone())
        return rows


# Each with the steps that are skipped. Torch 2.14's fused SGD leaves its momentum uninitialised
# where the first is; ours must not, and scalers begin so high that it is the common case.
OPTIMIZERS: dict[str, Make] = {
    "ProxSGD, amp": lambda p: ProxSGD(p, lr=LR, momentum=0.9, amp_scaling=True),
    "ProxSGD": lambda p: ProxSGD(p, lr=LR, momentum=0.9),
    "ProxSGD, dampening, amp": lambda p: ProxSGD(p, LR, 0.9, 0.5, amp_scaling=True),
    "ProxAdamW, amp": lambda p: ProxAdamW(p, lr=LR, amp_scaling=True),
    "SGD": lambda p: optim.SGD(p, lr=LR, momentum=0.9),
    "AdamW, fused": lambda p: optim.AdamW(p, lr=LR, weight_decay=0.0, fused=True),
    "SGD, fused": lambda p: optim.SGD(p, lr=LR, momentum=0.9, fused=True),
    "SGD, nesterov, fused": lambda p: optim.SGD(p, LR, 0.9, nesterov=True, fused=True),
}
LATE = [(name, skips) for name in OPTIMIZERS for skips in ((1, 3), (2, 3, 4))]
AT_ONCE = [(name, (0, 1)) for name in list(OPTIMIZERS)[:6]]


def scaled_step(
    scaler: torch.amp.GradScaler, optimizer: optim.Optimizer, loss: Tensor, is_skipped: bool
) -> None:
    optimizer.zero_grad()
    scaler.scale(loss * float("inf") if is_skipped else loss).backward()
    scaler.step(optimizer)
    scaler.update()


def scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=10**6)


@pytest.mark.parametrize(("name", "skips"), [*LATE, *AT_ONCE])
def test_the_momentum_gain_does_not_advance_in_a_skipped_step(name: str, skips: tuple[int, ...]):
    """Oracle: the move of the optimizer itself along a gradient that stays as it is."""
    gradient = torch.tensor([[1e-3, 0.1, 1.0, -20.0]])
    model, recorder, scale = nn.Linear(4, 1, bias=False), Recorder(1.0), scaler()
    optimizer = OPTIMIZERS[name](model.parameters())
    Regularizer(model, recorder).attach(optimizer)
    num_real = 0
    for step in range(8):
        before = model.weight.detach().double()
        scaled_step(scale, optimizer, (model.weight * gradient).sum(), step in skips)
        move = (before - model.weight.detach().double()) / gradient
        if step in skips:
            assert (move == 0).all()
            continue
        num_real += 1
        assert len(recorder.steps) == num_real
        torch.testing.assert_close(recorder.steps[-1], move.flatten().float(), rtol=2e-3, atol=1e-4)


def test_three_real_steps_of_momentum_gain_what_they_should():
    model, recorder, scale = nn.Linear(4, 1, bias=False), Recorder(1.0), scaler()
    optimizer = ProxSGD(model.parameters(), lr=1.0, momentum=0.9, amp_scaling=True)
    Regularizer(model, recorder).attach(optimizer)
    for step in range(5):
        scaled_step(scale, optimizer, model.weight.sum(), step in (1, 3))
    torch.testing.assert_close(recorder.steps[-1], torch.full((4,), 1 + 0.9 + 0.81))


SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {},
    "target": {"target_density": 0.3, "debias": 0.8},
    "layerwise": {"target_density": 0.3, "layerwise": True},
    "ramp": {"ramp": "cubic", "settle": 0.8},
}


@pytest.mark.parametrize("asked", SCHEDULES)
@pytest.mark.parametrize(("name", "skips"), [*LATE[::2], *AT_ONCE])
def test_skipped_steps_are_as_if_they_had_not_been(name: str, skips: tuple[int, ...], asked: str):
    """Powers of two scale exactly, so weights agree to the bit."""
    num_steps, x = 20, torch.randn(32, 20, generator=torch.Generator().manual_seed(0))

    def run(skips: tuple[int, ...]) -> tuple[nn.Module, Regularizer]:
        torch.manual_seed(0)
        model, scale = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20)), scaler()
        optimizer = OPTIMIZERS[name](model.parameters())
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        schedule = Schedule(num_steps=num_steps, **SCHEDULES[asked])
        reg = Regularizer(model, L1(0.01), schedule=schedule).attach(optimizer)
        for step in range(num_steps + len(skips)):
            loss = (model(x) - x.roll(1, 1)).square().mean() * 4
            scaled_step(scale, optimizer, loss, step in skips)
        return model, reg

    plain, one = run(())
    model, other = run((*skips, 18))
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    assert other.current_lams() == one.current_lams()
    assert 0 < int((plain[0].weight == 0).sum()) < 400


def test_rmsprop_with_momentum_and_centring_is_refused():
    model = nn.Linear(4, 2)
    optimizer = optim.RMSprop(model.parameters(), momentum=0.9, centered=True)
    with pytest.raises(InputError, match=r"momentum=0\.9 and centered=True.* Use one of the two"):
        Regularizer(model, L1(0.1)).attach(optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for options in ({"momentum": 0.9}, {"centered": True}):
        Regularizer(model, L1(0.1)).attach(optim.RMSprop(model.parameters(), **options))


def test_rmsprop_is_refused_for_a_group_that_asks_for_both():
    model = nn.Linear(4, 2)
    groups = [{"params": [model.weight], "centered": True}, {"params": [model.bias]}]
    optimizer = optim.RMSprop(groups, momentum=0.9)
    with pytest.raises(InputError, match="centered=True"):
        Regularizer(model, L1(0.1)).attach(optimizer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_coarse_weights_are_warned_of_once_with_the_remedy(dtype: torch.dtype):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).to(dtype)
    optimizer = optim.SGD(model.parameters(), lr=LR)
    with pytest.warns(UserWarning, match="Keep weights in float32") as caught:
        Regularizer(model, L1(0.1)).attach(optimizer)
    assert len(caught) == 1
    assert str(dtype) in str(caught[0].message)


def test_only_coarse_weights_that_are_penalised_are_warned_of():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).to(torch.bfloat16))
    Regularizer(model, L1(0.1, params="0")).attach(optim.SGD(model.parameters(), lr=LR))


class Lion(optim.Optimizer):
    """Chen et al., Symbolic discovery of optimization algorithms (2023), algorithm 2."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.sub_(group["lr"] * kept.lerp(p.grad, 1 - group["betas"][0]).sign())
                kept.lerp_(p.grad, 1 - group["betas"][1])


class OtherLion(Lion):
    """The same, by a name that nobody knows."""


class OtherMuon(optim.Muon):
    """The same; not by torch's own method, whose hooks run by themselves."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return inspect.unwrap(optim.Muon.step)(self, closure)


class OtherAdafactor(optim.Adafactor):
    """The same, likewise."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return inspect.unwrap(optim.Adafactor.step)(self, closure)


NUM_SAMPLES, NUM_INPUTS, NUM_OUTPUTS = 120, 30, 4


def problem() -> tuple[Tensor, Tensor]:
    """Make correlated inputs of unequal scale, a sparse truth for each output, and noise."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(NUM_SAMPLES, NUM_INPUTS)) + 0.5 * rng.normal(size=(NUM_SAMPLES, 1))
    x *= np.exp(rng.uniform(-0.7, 0.7, size=NUM_INPUTS))
    truth = np.zeros((NUM_INPUTS, NUM_OUTPUTS))
    truth[:8] = rng.normal(size=(8, NUM_OUTPUTS))
    y = x @ truth + 0.3 * rng.normal(size=(NUM_SAMPLES, NUM_OUTPUTS))
    return torch.from_numpy(x), torch.from_numpy(y)


def objective(w: Tensor) -> float:
    x, y = problem()
    return float((x @ w.T - y).square().sum() / (2 * NUM_SAMPLES) + LAM * w.abs().sum())


def oracle() -> Tensor:
    x, y = problem()
    lasso = Lasso(LAM, fit_intercept=False, tol=1e-14, max_iter=100_000)
    return torch.from_numpy(lasso.fit(x.numpy(), y.numpy()).coef_)


def lasso_by(make: Make, num_steps: int = 600, holds_zeros: bool = True) -> Tensor:
    """Minimise F on all of the data at once; the rate falls by a factor of 10^4, geometrically."""
    x, y = problem()
    torch.manual_seed(0)
    model = nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=False).double()
    optimizer = make(model.parameters())
    falling = optim.lr_scheduler.LambdaLR(optimizer, lambda t: 10 ** (-4 * t / num_steps))
    schedule = Schedule(holds_zeros=holds_zeros)
    Regularizer(model, L1(LAM), schedule=schedule).attach(optimizer)
    for _ in range(num_steps):
        optimizer.zero_grad()
        ((model(x) - y).square().sum() / (2 * NUM_SAMPLES)).backward()
        optimizer.step()
        falling.step()
    return model.weight.detach()


# How far F ends above its minimum, relative to it: known, with the step of its own (measured
# 2.4e-4, 3e-5, 7e-9), and unknown, with the learning rate as the step (0.10, 0.10, 21).
OUTSIDE: dict[str, tuple[Make, float, Make, float]] = {
    "lion": (lambda p: Lion(p, 0.3), 1e-3, lambda p: OtherLion(p, 0.3), 0.05),
    "muon": (
        lambda p: optim.Muon(p, 0.3, weight_decay=0.0),
        1e-4,
        lambda p: OtherMuon(p, 0.3, weight_decay=0.0),
        0.05,
    ),
    "adafactor": (lambda p: optim.Adafactor(p, 0.3), 1e-5, lambda p: OtherAdafactor(p, 0.3), 5.0),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_known_ones_end_at_the_minimum_of_scikit_learn(name: str):
    known, near, unknown, far = OUTSIDE[name]
    best, w = oracle(), lasso_by(known)
    assert 0 < int((best != 0).sum()) < best.numel()
    assert abs(objective(w) / objective(best) - 1) <= near
    assert torch.equal(w != 0, best != 0)
    with pytest.warns(UserWarning, match="does not know how far"):
        w = lasso_by(unknown, holds_zeros=False)
    assert objective(w) / objective(best) - 1 >= far


@pytest.mark.parametrize("name", OUTSIDE)
def test_the_step_is_the_move_along_a_constant_gradient(name: str):
    """Oracle: the optimizer itself. A step that is too long at first kills what is to live."""
    gradient = torch.tensor([[0.5, 1.0, -2.0, 3.0], [1.0, -0.5, 1.0, 2.0]], dtype=torch.float64)
    model, recorder = nn.Linear(4, 2, bias=False).double(), Recorder(1.0)
    optimizer = OUTSIDE[name][0](model.parameters())
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    Regularizer(model, recorder).attach(optimizer)
    for _ in range(12):
        before = model.weight.detach().clone()
        model.weight.grad = gradient.clone()
        optimizer.step()
        move = ((before - model.weight.detach()) / gradient).abs()
        torch.testing.assert_close(recorder.steps[-1].view(2, 4), move, rtol=0.01, atol=1e-7)


def test_adafactor_with_a_vector():
    """Its second moment then is no product of rows and columns."""
    model = nn.Linear(4, 1, bias=False).double()
    model.weight = nn.Parameter(torch.ones(4, dtype=torch.float64))
    optimizer, recorder = optim.Adafactor([model.weight], lr=1e-3), Recorder(1.0, params="weight")
    Regularizer(model, recorder).attach(optimizer)
    gradient = torch.tensor([0.5, 1.0, -2.0, 3.0], dtype=torch.float64)
    for _ in range(5):
        before = model.weight.detach().clone()
        model.weight.grad = gradient.clone()
        optimizer.step()
        move = (before - model.weight.detach()) / gradient
        torch.testing.assert_close(recorder.steps[-1], move, rtol=0.01, atol=1e-7)


class ScheduleFree(optim.SGD):
    """Evaluates an average of weights, as schedule-free optimizers do."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            kept = self.state[p].setdefault("z", p.detach().clone())
            kept.sub_(self.param_groups[0]["lr"] * p.grad)
            p.lerp_(kept, 0.1)


class AdamW8bit(optim.AdamW):
    """Keeps its state in a form of its own."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return inspect.unwrap(optim.AdamW.step)(self, closure)


UNKNOWN: dict[str, Make] = {
    "ASGD": lambda p: optim.ASGD(p, lr=LR, lambd=0.0),
    "Rprop": lambda p: optim.Rprop(p, lr=LR),
    "Adadelta": lambda p: optim.Adadelta(p, lr=LR),
    "LBFGS": lambda p: optim.LBFGS(p, lr=LR),
    "schedule-free": lambda p: ScheduleFree(p, lr=LR),
    "8 bits": lambda p: AdamW8bit(p, lr=LR),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_ones_are_warned_of_once_and_work(name: str):
    """A step of the learning rate, after whatever they do: here, with no gradient, nothing."""
    model = nn.Linear(4, 2).double()
    optimizer = UNKNOWN[name](model.parameters())
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Regularizer(model, L1(LAM)).attach(optimizer)
    (warning,) = caught
    assert type(optimizer).__name__ in str(warning.message)
    assert "zeros" in str(warning.message)
    assert "Lion" in str(warning.message)
    before = model.weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0 * model.weight.sum() + 0 * model.bias.sum()
        loss.backward()
        return loss

    closure()
    optimizer.step(closure)
    shrunk = before.sign() * (before.abs() - LR * LAM).clamp_min(0.0)
    torch.testing.assert_close(model.weight.detach(), shrunk)


def test_a_lion_that_keeps_something_else_is_unknown():
    """The 8-bit one of bitsandbytes has the name, and its average in another form."""

    def step(self: Any, closure: Any = None) -> None:
        for p in self.param_groups[0]["params"]:
            kept = self.state[p].setdefault("state1", torch.zeros_like(p, dtype=torch.uint8))
            kept.add_(1)
            p.data.sub_(1e-3 * p.grad.sign())

    lion8bit = type("Lion", (optim.Optimizer,), {"step": step})
    model = nn.Linear(4, 2)
    optimizer = lion8bit(model.parameters(), {"lr": 1e-3})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Regularizer(model, L1(LAM)).attach(optimizer)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert len(caught) == 1
    assert "does not know" in str(caught[0].message)


@pytest.mark.parametrize("other_first", [False, True])
def test_a_step_that_calls_the_one_it_overrides_is_one_step(other_first: bool):
    """Torch runs its hooks in both where somebody has made an optimizer of the parent."""

    class Parent(optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return inspect.unwrap(optim.SGD.step)(self, closure)

    class Child(Parent):
        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return super().step(closure)

    model = nn.Linear(4, 2, bias=False).double()
    before = model.weight.detach().clone()
    if other_first:
        Parent(nn.Linear(1, 1).parameters(), lr=LR)
    optimizer = Child(model.parameters(), lr=LR)
    with pytest.warns(UserWarning, match="does not know how far Child"):
        Regularizer(model, L1(LAM)).attach(optimizer)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    shrunk = before.sign() * (before.abs() - LR * LAM).clamp_min(0.0)
    torch.testing.assert_close(model.weight.detach(), shrunk)
