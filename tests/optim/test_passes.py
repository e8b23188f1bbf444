"""Passes end where the torch path ends; the kernels are their plain-torch bodies here."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

import regkit.optim.proximal_step as proximal_step
import regkit.optim.step_plan as passes
from regkit import Regularizer
from regkit.ops.kernel_args import GroupAxis, KernelArgs, LaunchTable, Param
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD
from regkit.optim.kernel_params import Source, rule_of
from regkit.optim.metric import FORMS
from regkit.penalties import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Box,
    GroupElasticNet,
    GroupLasso,
    GroupMCP,
    SparseGroupLasso,
    WeightDecay,
)

CLIP = (3, 4, 6, 6)
Make = Callable[[Any], Optimizer]

PENALTIES = {
    "l1": L1(0.05),
    "l2 by layer": L2(0.1, factors={"conv": 2.0}),
    "mcp": MCP(0.03),
    "decay, scad": [WeightDecay(0.1), SCAD(0.03)],
    "three": [WeightDecay(0.1), Box(1.0, low=0.0, high=None), L1(0.02)],
    "l0": L0(1e-4),
    "filter": GroupLasso(0.02),
    "input": GroupLasso(0.02, groups="input"),
    "kernel": SparseGroupLasso(0.02, groups="kernel", on=["conv", "head"]),
    "tap": GroupElasticNet(0.02, groups="tap"),
    "unit": GroupElasticNet(0.02, groups="unit"),
    "channel": GroupLasso(0.02, groups="channel"),
    "reader": GroupLasso(0.02, groups="reader"),
    "both": [L1(0.01), GroupLasso(0.02)],
    "one by torch": [L1(0.01), GroupMCP(0.02)],
}
OPTIMIZERS: dict[str, tuple[Make, Make]] = {
    "adamw": (
        lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.1, fused=True),
        lambda p: ProxAdamW(p, lr=0.02, weight_decay=0.1),
    ),
    "amsgrad": (
        lambda p: optim.AdamW(p, lr=0.02, weight_decay=0.0, amsgrad=True),
        lambda p: ProxAdamW(p, lr=0.02, amsgrad=True),
    ),
    "tensor": (
        lambda p: optim.AdamW(p, lr=torch.tensor(0.02).double(), weight_decay=0.1, foreach=False),
        lambda p: ProxAdamW(p, lr=torch.tensor(0.02).double(), weight_decay=0.1),
    ),
    "sgd": (lambda p: optim.SGD(p, lr=0.1), lambda p: ProxSGD(p, lr=0.1)),
    "nesterov": (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda p: ProxSGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "dampened": (
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.4),
        lambda p: ProxSGD(p, lr=0.1, momentum=0.9, dampening=0.4),
    ),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(8)
        self.rnn = nn.GRU(8, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, clip: Tensor) -> Tensor:
        frames = self.norm(self.conv(clip)).relu().mean((3, 4)).permute(2, 0, 1)
        return self.head(self.rnn(frames)[0].mean(0))


def reference(
    work: KernelArgs, formulas: tuple[str, ...], metric: str, update: str = "none"
) -> LaunchTable | None:
    """Serve everything, by the bodies in plain torch."""
    if work.geometry is None:
        return LaunchTable((), torch.arange(len(work.weights)))
    return LaunchTable((), work.geometry[:, GroupAxis.BUNDLE].unique())


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Turn the kernels on and off."""

    def turn(on: bool) -> None:
        monkeypatch.setattr(passes, "TABULATE", {"cpu": reference} if on else {})
        monkeypatch.setattr(passes, "REFRESH", {"cpu": lambda table, work: table})

    return turn


def train(
    penalties: Any,
    make: Make,
    num_steps: int = 6,
    change: Callable[[Net], Any] = lambda net: None,
    between: Callable[[int, Net, Optimizer], None] = lambda step, net, optimizer: None,
    **strength: Any,
) -> tuple[Net, Regularizer]:
    net = Net().double()
    change(net)
    example = torch.zeros(1, *CLIP, dtype=torch.float64)
    reg = Regularizer(net, penalties, example=example, num_steps=num_steps, **strength)
    optimizer = make(net.parameters())
    reg.attach(optimizer)
    generator = torch.Generator().manual_seed(1)
    for step in range(num_steps):
        optimizer.zero_grad()
        clip = torch.randn(2, *CLIP, generator=generator, dtype=torch.float64)
        net(clip).square().mean().backward()
        between(step, net, optimizer)
        optimizer.step()
    return net, reg


def assert_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(p == 0, q == 0), name


def num_passes(reg: Regularizer) -> dict[str, int]:
    (step,) = reg._steps
    return {update: len(found.passes) for update, found in step._passes.items()}


CASES = [
    *(("adamw", name) for name in PENALTIES),
    *((kind, name) for kind in OPTIMIZERS if kind != "adamw" for name in ("l1", "both", "input")),
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ends_where_torch_ends(kernels: Callable[[bool], None], kind: str, name: str):
    torchs, ours = OPTIMIZERS[kind]
    kernels(False)
    plain, _ = train(PENALTIES[name], torchs)
    kernels(True)
    hooked, reg = train(PENALTIES[name], torchs)
    assert (num_passes(reg) == {"none": 0}) == (name == "three")
    fused, reg = train(PENALTIES[name], ours)
    assert num_passes(reg)[type(reg._steps[0].optimizer).update] >= 1
    assert_equal(hooked, plain)
    assert_equal(fused, plain)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_parameter_is_updated_by_the_passes(kernels: Callable[[bool], None], kind: str):
    kernels(True)
    net, reg = train([L1(0.01), GroupLasso(0.02, groups="input")], OPTIMIZERS[kind][1])
    (step,) = reg._steps
    planned = step._passes[step.optimizer.update]
    assert planned.updated == set(net.parameters())
    assert not planned.chains
    assert not planned.bundles


def channels_last(net: Net) -> None:
    net.to(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("groups", ["filter", "input", "kernel", "tap", "channel"])
def test_memory_formats(kernels: Callable[[bool], None], groups: str, place: int):
    penalty = GroupLasso(0.02, groups=groups)
    kernels(False)
    plain, _ = train(penalty, OPTIMIZERS["adamw"][0])
    kernels(True)
    last, reg = train(penalty, OPTIMIZERS["adamw"][place], change=channels_last)
    assert not reg._steps[0]._passes[["none", "adamw"][place]].bundles
    assert_equal(last, plain)


def unused_head(step: int, net: Net, optimizer: Optimizer) -> None:
    if step in (2, 5):
        net.head.weight.grad = None


def rate_of(step: int, net: Net, optimizer: Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.0 if step == 3 else 0.02 / (step + 1)


def new_weights(step: int, net: Net, optimizer: Optimizer) -> None:
    if step == 3:
        net.head.weight.data = net.head.weight.data.clone()


def new_states(step: int, net: Net, optimizer: Optimizer) -> None:
    if step == 3:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if step == 4:
        for state in optimizer.state.values():
            state.update({k: v.clone() for k, v in state.items() if isinstance(v, Tensor)})


@pytest.mark.parametrize("between", [unused_head, rate_of, new_weights, new_states])
@pytest.mark.parametrize("kind", ["adamw", "nesterov", "dampened"])
def test_what_happens_between_steps(kernels: Callable[[bool], None], kind: str, between: Any):
    penalty = [L1(0.02), GroupLasso(0.02)]
    kernels(False)
    plain, _ = train(penalty, OPTIMIZERS[kind][0], between=between)
    kernels(True)
    for make in OPTIMIZERS[kind]:
        net, _ = train(penalty, make, between=between)
        assert_equal(net, plain)


@pytest.mark.parametrize(
    "strength",
    [{"ramp": "linear"}, {"target_density": 0.5}, {"freeze_support": 0.5, "ramp": "cubic"}],
)
@pytest.mark.parametrize("kind", ["adamw", "nesterov"])
def test_strength_that_changes(
    kernels: Callable[[bool], None], kind: str, strength: dict[str, Any]
):
    penalty = GroupLasso(0.05, groups="input")
    kernels(False)
    plain, _ = train(penalty, OPTIMIZERS[kind][0], 16, **strength)
    kernels(True)
    for make in OPTIMIZERS[kind]:
        net, _ = train(penalty, make, 16, **strength)
        assert_equal(net, plain)


def test_groups_wait_for_an_update_by_torch(
    kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
):
    """Kernels that serve no weight without a penalty: those are moved first, then their groups."""

    def some(
        work: KernelArgs, formulas: tuple[str, ...], metric: str, update: str = "none"
    ) -> LaunchTable | None:
        apart = update != "none" and work.geometry is not None
        return reference(work, formulas, metric, update) if formulas and not apart else None

    penalty = [L1(0.02, on="conv"), GroupLasso(0.02, groups="input", on="head")]
    for torchs, ours in (OPTIMIZERS["adamw"], OPTIMIZERS["nesterov"]):
        kernels(False)
        plain, _ = train(penalty, torchs)
        kernels(True)
        monkeypatch.setattr(passes, "TABULATE", {"cpu": some})
        net, reg = train(penalty, ours)
        (step,) = reg._steps
        assert step._passes[step.optimizer.update].updated == {net.conv.weight}
        assert_equal(net, plain)


def test_a_plan_is_made_once(kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch):
    kernels(True)
    made = []
    monkeypatch.setattr(passes, "TABULATE", {"cpu": lambda *a: made.append(1) or reference(*a)})
    train([L1(0.02), GroupLasso(0.02)], OPTIMIZERS["adamw"][0], 9)
    assert len(made) == 2


def test_two_hundred_steps(kernels: Callable[[bool], None]):
    penalty = [L1(0.002), GroupLasso(0.002)]
    kernels(False)
    plain, _ = train(penalty, OPTIMIZERS["nesterov"][0], 200)
    assert 0.2 < float((plain.conv.weight == 0).double().mean()) <= 1
    kernels(True)
    for make in OPTIMIZERS["nesterov"]:
        net, _ = train(penalty, make, 200)
        assert_equal(net, plain)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equals_torch_without_penalties(kind: str):
    """Bit for bit, and a run goes on under the other optimizer."""
    torchs, ours = OPTIMIZERS[kind]
    nets = [Net() for _ in range(4)]
    theirs, mine = torchs(nets[0].parameters()), ours(nets[1].parameters())
    if kind != "sgd":
        theirs.param_groups[0]["fused"] = True
    steps(nets[0], theirs)
    steps(nets[1], mine)
    theirs.param_groups[0]["fused"] = None
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    crossed = [torchs(nets[2].parameters()), ours(nets[3].parameters())]
    for net, optimizer, source, old in zip(
        nets[2:], crossed, (nets[1], nets[0]), (mine, theirs), strict=True
    ):
        net.load_state_dict(source.state_dict())
        optimizer.load_state_dict(copy.deepcopy(old.state_dict()))
    # What is loaded next by torch's counts its steps where a fused optimizer does.
    assert crossed[1].param_groups[0]["fused"] is True
    for net, optimizer in zip(nets, [theirs, mine, *crossed], strict=True):
        steps(net, optimizer)
        for p, q in zip(net.parameters(), nets[0].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def steps(net: Net, optimizer: Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        optimizer.zero_grad()
        net(torch.randn(2, *CLIP, generator=generator)).square().mean().backward()
        optimizer.step()


def test_a_search_counts_by_the_way(
    kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
):
    """Where passes act on every entry once their tallies are the density; elsewhere it is read."""
    read = []
    density = proximal_step.density
    monkeypatch.setattr(
        proximal_step, "density", lambda p, t: (t or read.append(1), density(p, t))[1]
    )
    kernels(True)
    for penalty, counted in [
        (L1(0.05), True),
        (GroupLasso(0.05), True),
        (GroupLasso(0.05, groups="input"), True),
        ([L1(0.01), GroupLasso(0.05)], False),
        (GroupMCP(0.05), False),
    ]:
        read.clear()
        train(penalty, OPTIMIZERS["adamw"][0], target_density=0.5)
        assert (read == []) == counted, penalty


@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02)])
def test_steps_that_are_counted_on_the_host(lr: float | Tensor):
    """Rules without a count give the metric that torch has with one."""
    count, second = torch.tensor(3.0), torch.rand(5, dtype=torch.float64)
    group = {"lr": lr, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.0, "amsgrad": False}
    form = FORMS[optim.AdamW](group, 1.0)
    source = Source(group, nn.Parameter(second), (L1(0.1),), 1, count)
    row = rule_of(source, form, 1.0)
    rate = row[Param.RATE] * (1.0 if isinstance(lr, float) else lr)
    expected = 0.02 / (second.sqrt() / (1 - 0.99**3) ** 0.5 + 1e-3)
    torch.testing.assert_close(rate / (second.sqrt() + row[Param.EPS]), expected)
    assert row[Param.LOG_BETA2] == -math.inf
