"""Launches end where the torch path ends; the kernels are their plain-torch bodies here."""

import copy
import gc
import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from regkit import Regularizer, Schedule
from regkit.ops import reference
from regkit.ops.formula import Formula
from regkit.ops.kernel_args import KernelArgs, LaunchTable, Param
from regkit.ops.prox_pass import BACKENDS
from regkit.optim.density_control import Factors
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD
from regkit.optim.kernel_params import ParamRow, kernel_params
from regkit.optim.parts import Scale
from regkit.optim.step_plan import StepPlan
from regkit.optim.step_size import STEP_SIZES, Move
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
    "l2 by layer": L2(0.1, lam_scale={"conv": 2.0}),
    "mcp": MCP(0.03),
    "decay, scad": [WeightDecay(0.1), SCAD(0.03)],
    "three": [WeightDecay(0.1), Box(1.0, low=0.0, high=None), L1(0.02)],
    "l0": L0(1e-4),
    "filter": GroupLasso(0.02),
    "in_channel": GroupLasso(0.02, groups="in_channel"),
    "kernel": SparseGroupLasso(0.02, groups="kernel", params=["conv", "head"]),
    "time_tap": GroupElasticNet(0.02, groups="time_tap"),
    "hidden_unit": GroupElasticNet(0.02, groups="hidden_unit"),
    "channel": GroupLasso(0.02, groups="channel"),
    "channel_inputs": GroupLasso(0.02, groups="channel_inputs"),
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


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Turn the kernels on and off; their bodies in plain torch serve everything."""

    def turn(on: bool) -> None:
        monkeypatch.delitem(BACKENDS, "cpu", raising=False)
        if on:
            monkeypatch.setitem(BACKENDS, "cpu", reference)

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
    schedule = Schedule(num_steps=num_steps, **strength)
    reg = Regularizer(net, penalties, example=example, schedule=schedule)
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


def assert_equal(a: nn.Module, b: nn.Module, atol: float = 1e-9) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        assert torch.equal(p == 0, q == 0), name


def plan_of(reg: Regularizer, update: str = "none") -> StepPlan:
    """Return the plan that served last, of the hook or of a fused update."""
    (step,) = reg._steps
    return [plan for key, (plan, _) in step.plans.kept._kept.items() if key[0] == update][-1]


CASES = [
    *(("adamw", name) for name in PENALTIES),
    *(
        (kind, name)
        for kind in OPTIMIZERS
        if kind != "adamw"
        for name in ("l1", "both", "in_channel")
    ),
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_ends_where_torch_ends(kernels: Callable[[bool], None], kind: str, name: str):
    torchs, ours = OPTIMIZERS[kind]
    kernels(False)
    plain, _ = train(PENALTIES[name], torchs)
    kernels(True)
    hooked, reg = train(PENALTIES[name], torchs)
    assert bool(plan_of(reg).launches) == (name != "three")
    fused, reg = train(PENALTIES[name], ours)
    assert plan_of(reg, type(reg._steps[0].optimizer).update).launches
    assert_equal(hooked, plain)
    assert_equal(fused, plain)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_parameter_is_updated_by_the_passes(kernels: Callable[[bool], None], kind: str):
    kernels(True)
    net, reg = train([L1(0.01), GroupLasso(0.02, groups="in_channel")], OPTIMIZERS[kind][1])
    planned = plan_of(reg, reg._steps[0].optimizer.update)
    assert planned.updated == set(net.parameters())
    assert not planned.chains
    assert not planned.parts.local


def channels_last(net: Net) -> None:
    net.to(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("groups", ["filter", "in_channel", "kernel", "time_tap", "channel"])
def test_memory_formats(kernels: Callable[[bool], None], groups: str, place: int):
    penalty = GroupLasso(0.02, groups=groups)
    kernels(False)
    plain, _ = train(penalty, OPTIMIZERS["adamw"][0])
    kernels(True)
    last, reg = train(penalty, OPTIMIZERS["adamw"][place], change=channels_last)
    assert not plan_of(reg, ["none", "adamw"][place]).parts.local
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
    [{"ramp": "linear"}, {"target_density": 0.5}, {"debias": 0.5, "ramp": "cubic"}],
)
@pytest.mark.parametrize("kind", ["adamw", "nesterov"])
def test_strength_that_changes(
    kernels: Callable[[bool], None], kind: str, strength: dict[str, Any]
):
    # Three groups of 216 among 863 weights leave no half: a search would end where rounding says.
    aimed = "target_density" in strength
    penalty = L1(0.05) if aimed else GroupLasso(0.05, groups="in_channel")
    kernels(False)
    plain, _ = train(penalty, OPTIMIZERS[kind][0], 16, **strength)
    kernels(True)
    for make in OPTIMIZERS[kind]:
        net, _ = train(penalty, make, 16, **strength)
        assert_equal(net, plain, atol=1e-8)


def test_groups_wait_for_an_update_by_torch(
    kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
):
    """Kernels that serve no weight without a penalty: those are moved first, then their groups."""

    class Some:
        refresh, run = staticmethod(reference.refresh), staticmethod(reference.run)

        @staticmethod
        def prepare(
            args: KernelArgs, formulas: Sequence[Formula], metric: str, update: str
        ) -> LaunchTable | None:
            apart = update != "none" and args.geometry is not None
            return LaunchTable(()) if formulas and not apart else None

    penalty = [L1(0.02, params="conv"), GroupLasso(0.02, groups="in_channel", params="head")]
    for torchs, ours in (OPTIMIZERS["adamw"], OPTIMIZERS["nesterov"]):
        kernels(False)
        plain, _ = train(penalty, torchs)
        kernels(True)
        monkeypatch.setitem(BACKENDS, "cpu", Some())
        net, reg = train(penalty, ours)
        assert plan_of(reg, reg._steps[0].optimizer.update).updated == {net.conv.weight}
        assert_equal(net, plain)


def test_a_plan_is_made_once(kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch):
    kernels(True)
    made = []
    monkeypatch.setattr(reference, "prepare", lambda *a: made.append(1) or LaunchTable(()))
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


def test_a_gradient_that_comes_and_goes_is_not_planned_for_each_time():
    """All together; without one; all, but one of them behind in its steps."""

    def every_other(step: int, net: Net, optimizer: Optimizer) -> None:
        if step % 2:
            net.head.weight.grad = None

    _, reg = train(L1(0.02), OPTIMIZERS["adamw"][0], 12, between=every_other)
    assert reg._steps[0].plans.num_built == 3


@pytest.mark.filterwarnings("ignore:target_density=0.5 was asked for")  # 3 inputs of the first
def test_strengths_of_layers_are_numbers_and_no_plans():
    """A schedule that changes the strength of every layer at every step plans nothing anew."""
    for penalty in (L1(0.05), GroupLasso(0.05, groups="in_channel")):
        options = {"target_density": 0.5, "layerwise": True}
        _, reg = train(penalty, OPTIMIZERS["adamw"][0], 40, **options)
        assert len(set(reg.current_layer_lams().values())) > 1
        assert reg._steps[0].plans.num_built <= 2


@pytest.mark.parametrize("lr", [0.02, torch.tensor(0.02)])
def test_steps_that_are_counted_on_the_host(lr: float | Tensor):
    """Numbers without a count give the step that torch has with one."""
    count, second = torch.tensor(3.0), torch.rand(5, dtype=torch.float64)
    group = {"lr": lr, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.0, "amsgrad": False}
    weight = nn.Parameter(second)
    move = Move(weight, group, {"step": count, "exp_avg_sq": second})
    reg = Regularizer(nn.Linear(2, 2), L1(0.1))
    row = ParamRow(weight, tuple(reg.bound["l1"].parts), 1, folds=True)
    numbers = kernel_params(row, STEP_SIZES[optim.AdamW](move), move, Scale(Factors(1.0)))
    rate = numbers[Param.RATE] * (1.0 if isinstance(lr, float) else lr)
    expected = 0.02 / (second.sqrt() / (1 - 0.99**3) ** 0.5 + 1e-3)
    torch.testing.assert_close(rate / (second.sqrt() + numbers[Param.EPS]), expected)
    assert numbers[Param.LOG_BETA2] == -math.inf
    assert numbers[Param.FIRST] == 0.1


def a_step(optimizer: Optimizer, net: nn.Module) -> None:
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("bodies", ["native", "reference"])
def test_no_gradient_outlives_zero_grad(
    kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, bodies: str, kind: str
):
    if bodies == "reference":
        kernels(True)
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    optimizer = OPTIMIZERS[kind][1](net.parameters())
    Regularizer(net, [L1(0.01, params="0"), GroupLasso(0.01, params="1")]).attach(optimizer)
    for _ in range(3):
        a_step(optimizer, net)
        seen = [weakref.ref(p.grad) for p in net.parameters()]
        optimizer.zero_grad()
        gc.collect()
        assert [ref() for ref in seen] == [None] * 4


@pytest.mark.parametrize("bodies", ["native", "reference"])
def test_a_gradient_that_lies_otherwise_leaves_the_pass_to_all(
    kernels: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, bodies: str
):
    """Strides of an axis of size 1, which do not matter, and of others, which are copied."""
    if bodies == "reference":
        kernels(True)
    nets = [nn.Sequential(nn.Conv3d(1, 4, 3), nn.Conv3d(4, 2, 3)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[0].to(memory_format=torch.channels_last_3d)
    advanced = []
    for net in nets:
        optimizer = ProxAdamW(net.parameters(), lr=0.01)
        Regularizer(net, L1(0.1)).attach(optimizer)
        if net is nets[0]:
            advance = optimizer._advance
            monkeypatch.setattr(
                optimizer, "_advance", lambda g, ps, to=advance: (advanced.append(ps), to(g, ps))
            )
        for step in range(4):
            draw = torch.Generator().manual_seed(step)
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=draw)
                if step == 3:
                    p.grad = torch.empty_like(p).copy_(p.grad)
            size_1 = net[0].weight
            last = torch.empty_strided(size_1.shape, (27, 1, 9, 3, 1)).copy_(size_1.grad)
            size_1.grad = last
            optimizer.step()
    assert not advanced
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
        assert torch.equal(p == 0, q == 0)
    assert any((p == 0).any() for p in nets[0].parameters())


class Ops(TorchDispatchMode):
    """Count what torch is asked for, views and what makes no launch left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            self.seen[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def ops_of_a_step(width: int, groups: int, **options: Any) -> Counter[str]:
    net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(width)])
    lr, options = options.pop("lr", 0.01), options
    each = [{"params": [p for p in net[k::groups].parameters()], "lr": lr} for k in range(groups)]
    optimizer = ProxAdamW(each)
    Regularizer(net, L1(0.01), schedule=Schedule(**options)).attach(optimizer)
    for _ in range(12):
        a_step(optimizer, net)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    with Ops() as ops:
        optimizer.step()
    return ops.seen


def test_a_frozen_support_costs_a_few_launches_whatever_the_number_of_tensors():
    few, many = (ops_of_a_step(n, 1, num_steps=14, settle=0.5) for n in (2, 20))
    assert few == many


def test_rates_as_tensors_are_written_at_once(kernels: Callable[[bool], None]):
    kernels(True)
    few, many = (
        ops_of_a_step(20, groups, lr=torch.tensor(0.01))["index_copy_.default"] for groups in (1, 9)
    )
    assert few == many == 2  # launches of penalised weights, and of others
    nets = [nn.Linear(3, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net, lr in zip(nets, (0.05, torch.tensor(0.05)), strict=True):
        each = [{"params": [net.weight], "lr": lr}, {"params": [net.bias], "lr": 2 * lr}]
        optimizer = ProxAdamW(each)
        Regularizer(net, L1(0.3)).attach(optimizer)
        for step in range(4):
            torch.manual_seed(step)
            for group in optimizer.param_groups if step == 2 else ():
                group["lr"] = group["lr"] / 2
            a_step(optimizer, net)
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("serve", [True, False])
def test_paces_of_parameters_that_have_moved_apart(serve: bool, monkeypatch: pytest.MonkeyPatch):
    """Momentum of a parameter whose gradient came late goes on by itself, as torch has it."""
    found = []
    if not serve:
        monkeypatch.setenv("REGKIT_NATIVE", "0")
    for make in (optim.SGD, ProxSGD):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double()
        optimizer = make(net.parameters(), lr=0.02, momentum=0.9, nesterov=True)
        reg = Regularizer(net, L1(0.02)).attach(optimizer)
        for step in range(9):
            torch.manual_seed(step)
            for p in net.parameters():
                p.grad = torch.randn_like(p)
            if step in (0, 1, 4):
                net[1].weight.grad = None
            optimizer.step()
        found.append((net, reg.state_dict()["steps"][0]["moves"]))
    (plain, saved), (fused, other) = found
    assert saved["counts"] == {"0.weight": 9, "1.weight": 6}
    assert saved["counts"].items() <= other["counts"].items()
    assert saved["gains"].items() <= other["gains"].items()
    assert saved["gains"]["0.weight"] > saved["gains"]["1.weight"] > 4
    for p, q in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert torch.equal(p == 0, q == 0)
