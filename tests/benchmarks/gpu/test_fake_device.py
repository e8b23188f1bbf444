"""Launches, copies and waits of a step, counted on a GPU that computes nothing."""

import pytest
import torch
from torch import Tensor, nn

from regkit import Regularizer
from regkit.benchmarks.gpu.cases import EXAMPLE, OPTIMIZERS, Case, Chain, Shapes, penalties
from regkit.benchmarks.gpu.fake_device import Counts, draw_fake_gradients, fake_gpu, to_fake
from regkit.data.augment import Augment
from regkit.data.made import SyntheticMotion
from regkit.optim.fused_optimizers import ProxAdamW, ProxSGD
from regkit.optim.schedule import Schedule

PENALTIES = dict(penalties())
# What runs, by penalty: behind torch's optimizer, and within one of ours. `prox_tiles` and
# `prox_long` are launches of their own, for they take other numbers of threads.
OURS = {
    "l1": ({"prox_entries": 1}, {"prox_entries": 1}),
    "elastic_net": ({"prox_entries": 1}, {"prox_entries": 1}),
    "group_lasso filter": (
        {"prox_tiles": 1, "prox_long": 1, "prox_groups": 1},
        {"prox_tiles": 1, "prox_long": 1, "prox_groups": 1, "prox_entries": 1},
    ),
    "group_l0 filter": (
        {"prox_tiles": 1, "prox_long": 1, "prox_groups": 1},
        {"prox_tiles": 1, "prox_long": 1, "prox_groups": 1, "prox_entries": 1},
    ),
    "group_lasso channel": ({"prox_groups": 1}, {"prox_groups": 1}),
}


def counted(case: Case, schedule: Schedule | None = None, num_steps: int = 4) -> Counts:
    """Return what the last of some steps asks for, at a learning rate that has just changed."""
    with fake_gpu() as count:
        net = case.net()
        reg = Regularizer(net, case.penalties, schedule=schedule, example=EXAMPLE)
        optimizer = case.make_optimizer(to_fake(net))
        reg.attach(optimizer)
        found = Counts()
        for _ in range(num_steps):
            optimizer.param_groups[0]["lr"] *= 0.9
            draw_fake_gradients(net)
            found = count(optimizer.step)
        return found


def case_of(name: str, optimizer: str, depth: int | None = None) -> Case:
    def net() -> nn.Module:
        return Shapes() if depth is None else Chain(depth)

    return Case(name, (PENALTIES[name],), optimizer, net)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", OURS)
def test_a_step_is_a_few_launches_and_waits_for_nothing(name: str, optimizer: str):
    depth = 3 if name.endswith("channel") else None
    found = counted(case_of(name, optimizer, depth))
    expected = OURS[name][optimizer.startswith("Prox")]
    if optimizer.startswith("Prox"):
        # What no penalty is on, biases and norms, is moved by a launch of its own.
        expected = expected | {"prox_entries": expected.get("prox_entries", 0) + 1}
    assert dict(found.launches) == expected
    assert found.waits == []
    assert set(found.copies) == {"pinned"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", OURS)
def test_depth_costs_no_launches(name: str, optimizer: str):
    shallow, deep = (counted(case_of(name, optimizer, depth)) for depth in (2, 5))
    assert deep.launches == shallow.launches
    assert deep.copies == shallow.copies
    if optimizer != "AdamW(capturable)":
        assert deep.ops == shallow.ops


@pytest.mark.parametrize("optimizer", ["AdamW(fused)", "ProxAdamW", "ProxSGD"])
@pytest.mark.parametrize("name", OURS)
def test_only_plans_wait(name: str, optimizer: str):
    """Steps that look at averages or open gates do not; plans are made early."""
    with fake_gpu() as count:
        net = Chain()
        schedule = Schedule(ramp="cubic", num_steps=60)
        reg = Regularizer(net, PENALTIES[name], schedule=schedule, example=EXAMPLE)
        optimizer_ = OPTIMIZERS[optimizer](to_fake(net).parameters())
        reg.attach(optimizer_)
        waits = {}
        for step in range(60):
            draw_fake_gradients(net)
            found = count(optimizer_.step)
            assert found.copies["blocking"] == len(found.waits)
            waits |= {step: found.waits} if found.waits else {}
        assert set(waits) <= {0, 1, 19, 20}
        assert all("launch_tables.py" in wait for some in waits.values() for wait in some)


def test_training_batches_wait_for_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SyntheticMotion, "num_classes", 6)  # without looking for videos
    augment = Augment(
        zoom=0.5, flip=0.5, no_flip_classes=[0], colour=0.4, erase=1.0, mixup=0.4, cutmix=1.0
    )
    data = SyntheticMotion(augment=augment)
    with fake_gpu() as count:
        waits = []
        for draw in range(4):
            batch = {
                "clip": torch.zeros(4, 3, 8, 32, 32, dtype=torch.uint8, device="meta"),
                "label": torch.zeros(4, dtype=torch.int64, device="meta"),
                "skipped": [],
                "draws": [draw, 2, 3, 4],
                "host_label": [0, 1, 2, 3],
            }
            waits.append(count(lambda b=batch: data.finish(b, training=True)).waits)
    assert waits[1:] == [[], [], []]  # the first copies mean and std


def test_waits_and_copies_are_seen():
    """The counter itself, which could miss all and pass."""
    with fake_gpu() as count:
        p = torch.zeros(8, device="meta")
        assert count(lambda: p.sum().item()).waits == ["_local_scalar_dense in torch"]
        assert count(lambda: p.cpu()).waits == ["copy to the host in torch"]
        assert count(lambda: p.copy_(torch.ones(8))).copies == {"blocking": 1}
        copy = count(lambda: p.copy_(torch.ones(8), non_blocking=True))
        assert (dict(copy.copies), copy.waits) == ({"pageable": 1}, [])
        assert count(lambda: p.copy_(torch.ones(8).pin_memory(), non_blocking=True)).copies == {
            "pinned": 1
        }
        assert count(lambda: p.mul_(2).add_(1)).ops == {"mul_": 1, "add_": 1}
        assert count(lambda: p.view(2, 4).t()).num_kernels == 0


def test_the_fake_leaves_nothing_behind():
    def changed() -> list[object]:
        return [Tensor.data_ptr, Tensor.pin_memory, torch.cuda.is_current_stream_capturing]

    before = changed()
    with fake_gpu():
        assert changed() != before
    assert changed() == before


@pytest.mark.parametrize("optimizer", ["ProxAdamW", "ProxSGD"])
def test_a_loss_scaler_makes_no_step_wait(optimizer: str):
    """Whether it skips the step only the device knows."""
    with fake_gpu() as count:
        net = to_fake(Chain())
        options = {"lr": 0.01, "amp_scaling": True}
        made = {"ProxAdamW": ProxAdamW, "ProxSGD": ProxSGD}[optimizer](net.parameters(), **options)
        Regularizer(net, PENALTIES["l1"]).attach(made)
        found = Counts()
        for _ in range(4):
            draw_fake_gradients(net)
            made.grad_scale, made.found_inf = (torch.ones((), device="meta") for _ in range(2))
            found = count(made.step)
        assert found.waits == []
        assert found.launches == {"prox_entries": 2}
