"""Schedules and penalties in every way in which people train: the matrix, and odd clients.

What a penalty did is read off idle weights: their input is always zero, so SGD moves them by
lr * strength at each step of their optimizer and by nothing else.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F  # noqa: N812: everybody's name for it
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, TensorDataset

from regkit import Regularizer, RegularizerCallback, Schedule
from regkit.penalties import L1, GroupLasso, TemporalSmoothness

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers.*",
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*Please add the following callbacks",
)

NUM_EPOCHS, NUM_BATCHES, EVERY = 5, 16, 4
TOTAL = NUM_EPOCHS * NUM_BATCHES
LR, LAM, IDLE = 0.1, 0.02, 5.0


def drawn() -> TensorDataset:
    """Make inputs, of which the first is always zero, and the outputs of a sparse teacher."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_BATCHES * 4, 20, generator=generator)
    x[:, 0] = 0.0
    teacher = torch.randn(20, 20, generator=generator) * (
        torch.rand(20, 20, generator=generator) < 0.2
    )
    return TensorDataset(x, x @ teacher + 0.3 * torch.randn(len(x), 20, generator=generator))


def loader() -> DataLoader:
    return DataLoader(drawn(), batch_size=4)


def error(net: nn.Module, batch: Sequence[Tensor]) -> Tensor:
    return F.mse_loss(net(batch[0]), batch[1]) * 4


def body() -> nn.Sequential:
    """Return two layers of at least 400 weights."""
    net = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 20))
    idle_weights(net[0])
    return net


def idle_weights(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[:, 0] = IDLE


class LowRank(nn.Module):
    """A frozen layer and what LoRA trains beside it."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.down = nn.Linear(num_inputs, 20, bias=False)
        self.up = nn.Linear(20, num_outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Client(pl.LightningModule):
    """A user's module under automatic optimization; it knows nothing of regkit."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.backbone = nn.Sequential(nn.Linear(20, 24), nn.ReLU())
        self.head = nn.Linear(24, 20)
        idle_weights(self.backbone[0])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        return error(self, batch)

    def configure_optimizers(self) -> Any:
        return optim.SGD([p for p in self.parameters() if p.requires_grad], lr=LR)

    def trained(self) -> list[list[nn.Parameter]]:
        """Return the weights that each optimizer trains; idle ones stand in the first."""
        return [[self.backbone[0].weight, self.head.weight]]


class LoRA(Client):
    """Low-rank updates of a frozen net; the optimizer holds them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(LowRank(20, 24), nn.ReLU())
        self.head = LowRank(24, 20)
        idle_weights(self.backbone[0].down)

    def trained(self) -> list[list[nn.Parameter]]:
        layers = (self.backbone[0], self.head)
        return [[p for layer in layers for p in (layer.down.weight, layer.up.weight)]]


class ByHand(Client):
    """Manual optimization with a step at every 4th batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(error(self, batch) / EVERY)
        if (batch_idx + 1) % EVERY == 0:
            optimizer.step()
            optimizer.zero_grad()


class Pair(pl.LightningModule):
    """Two nets with an optimizer each, as a GAN has them; one steps at every 4th batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two = body(), body()
        self.automatic_optimization = False

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        often, seldom = self.optimizers()
        self.toggle_optimizer(often)
        often.zero_grad()
        self.manual_backward(error(self.one, batch))
        often.step()
        self.untoggle_optimizer(often)
        self.toggle_optimizer(seldom)
        self.manual_backward(error(self.two, batch) / EVERY)
        if (batch_idx + 1) % EVERY == 0:
            seldom.step()
            seldom.zero_grad()
        self.untoggle_optimizer(seldom)

    def configure_optimizers(self) -> Any:
        return [optim.SGD(net.parameters(), lr=LR) for net in (self.one, self.two)]

    def trained(self) -> list[list[nn.Parameter]]:
        return [[net[0].weight, net[2].weight] for net in (self.one, self.two)]


@dataclass
class Course:
    """What a training did: after each batch the weights of each optimizer, and the strength.

    length: number of batches of the (first) training.
    """

    length: int
    weights: list[list[list[Tensor]]] = field(default_factory=list)
    lams: list[float] = field(default_factory=list)
    results: Sequence[Any] = ()
    warned: list[str] = field(default_factory=list)

    def look(self, module: Any, reg: Regularizer) -> None:
        self.weights.append([[p.detach().clone() for p in held] for held in module.trained()])
        self.lams.append(reg.current_lams()["l1"])

    def last_before(self, share: float) -> int:
        """Return the last batch whose end does not lie beyond this share of training."""
        return max(i for i in range(len(self.lams)) if (i + 1) / self.length <= share)

    def densities(self) -> list[float]:
        return [density_of(held) for held in self.weights[-1]]

    def strengths(self, which: int) -> list[tuple[int, float]]:
        """Return the batches at which an optimizer stepped, and how strong its penalty was."""
        idle = [held[which][0][:, 0] for held in self.weights]
        others = [held[which][0][:, 1:] for held in self.weights]
        return [
            (i, float((idle[i - 1] - idle[i]).mean()) / LR)
            for i in range(1, len(idle))
            if not torch.equal(others[i], others[i - 1])
        ]


def density_of(held: Sequence[Tensor]) -> float:
    return sum(int((p != 0).sum()) for p in held) / sum(p.numel() for p in held)


class Look(pl.Callback):
    """Keeps the course; stands behind the callback that it looks at."""

    def __init__(self, course: Course, regularize: RegularizerCallback) -> None:
        self.course, self.regularize = course, regularize

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        assert self.regularize.regularizer is not None
        self.course.look(pl_module, self.regularize.regularizer)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": list(callbacks),
    }
    return pl.Trainer(**{**defaults, **options})


def said(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """Return our own warnings; Lightning has some, too."""
    texts = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    return [t for t in texts if "target_density" in t or "Training ended" in t or "regkit" in t]


def lightning(
    schedule: Schedule,
    *others: pl.Callback,
    module: type[Any] = Client,
    length: int = TOTAL,
    **options: Any,
) -> Course:
    """Fit a module and return its course."""
    course = Course(length)
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    options = {"max_epochs": NUM_EPOCHS} | options
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(regularize, Look(course, regularize), *others, **options).fit(module(), loader())
    course.results, course.warned = regularize.target_results, said(caught)
    return course


def plain(schedule: Schedule, told: bool) -> Course:
    """Train by a plain loop, and return its course.

    told: the loop says how far it is; else the regularizer counts steps.
    """
    module, course = Client(), Course(TOTAL)
    optimizer = module.configure_optimizers()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reg = Regularizer(module, L1(LAM), schedule=schedule)
        if told:
            reg.set_progress(0.0)
        reg.attach(optimizer)
        for i in range(TOTAL):
            if i % NUM_BATCHES == 0:
                batches = iter(loader())
            if told:
                reg.set_progress((i + 1) / TOTAL)
            optimizer.zero_grad()
            error(module, next(batches)).backward()
            optimizer.step()
            course.look(module, reg)
    course.results, course.warned = reg.target_results(), said(caught)
    return course


def two_fits(schedule: Schedule) -> Course:
    """Fit, raise `max_epochs`, and fit again: the schedule is over when the first fit is."""
    first, last = 3, 5
    course, module = Course(first * NUM_BATCHES), Client()
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = trainer(regularize, Look(course, regularize), max_epochs=first)
        fits.fit(module, loader())
        fits.fit_loop.max_epochs = last
        fits.fit(module, loader())
    assert len(course.lams) == last * NUM_BATCHES
    course.results, course.warned = regularize.target_results, said(caught)
    return course


def resumed(schedule: Schedule, folder: Path) -> Course:
    """Go on from a checkpoint in the middle, and compare with the run that was never stopped."""
    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    whole = lightning(schedule, keep, enable_checkpointing=True)
    regularize = RegularizerCallback(L1(LAM), schedule=schedule)
    course = copy.deepcopy(whole)
    half = 3 * NUM_BATCHES
    course.weights, course.lams = course.weights[:half], course.lams[:half]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fits = trainer(regularize, Look(course, regularize), max_epochs=NUM_EPOCHS)
        fits.fit(Client(), loader(), ckpt_path=str(folder / "epoch=2.ckpt"))
    assert course.lams == whole.lams
    for ours, theirs in zip(course.weights[-1][0], whole.weights[-1][0], strict=True):
        assert torch.equal(ours, theirs)
    course.results, course.warned = regularize.target_results, said(caught)
    return course


def unfrozen(schedule: Schedule) -> Course:
    def keep_lr(epoch: int) -> float:
        return 1.0

    wake = BackboneFinetuning(1, lambda_func=keep_lr, backbone_initial_lr=LR, initial_denom_lr=1.0)
    return lightning(schedule, wake)


WAYS: dict[str, Callable[[Schedule, Path], Course]] = {
    "plain, steps": lambda s, _: plain(replace(s, num_steps=TOTAL), told=False),
    "plain, told": lambda s, _: plain(s, told=True),
    "automatic": lambda s, _: lightning(s),
    "max_steps": lambda s, _: lightning(s, max_epochs=-1, max_steps=TOTAL),
    "by hand": lambda s, _: lightning(s, module=ByHand),
    "accumulation": lambda s, _: lightning(s, accumulate_grad_batches=4),
    "scheduled accumulation": lambda s, _: lightning(
        s, GradientAccumulationScheduler({0: 2, 2: 3})
    ),
    "pair": lambda s, _: lightning(s, module=Pair),
    "pair, max_steps": lambda s, _: lightning(
        s, module=Pair, max_epochs=-1, max_steps=TOTAL * (EVERY + 1) // EVERY
    ),
    "two fits": lambda s, _: two_fits(s),
    "resumed": resumed,
    "unfrozen": lambda s, _: unfrozen(s),
    "lora": lambda s, _: lightning(s, module=LoRA),
}


def assert_target(course: Course) -> None:
    """Weights can be zeroed one by one, so that nothing excuses a miss."""
    densities = course.densities()
    assert densities == pytest.approx([0.3] * len(densities), abs=0.02)
    assert course.warned == []
    assert [r.density for r in course.results] == pytest.approx(densities)
    assert all(r.is_met for r in course.results)


def assert_ramp(course: Course) -> None:
    """By hand: a cubic rise over the first half, at the progress before the step."""
    first = course.strengths(0)[0][0]
    assert all(a <= b for a, b in zip(course.lams[first:], course.lams[first + 1 :], strict=False))
    assert course.lams[-1] == LAM
    stride = (EVERY + 1) / course.length
    for which in range(len(course.weights[-1])):
        steps = course.strengths(which)
        assert steps[-1][1] == pytest.approx(LAM, rel=0.01)
        for i, strength in steps:
            share = (i + 1) / course.length
            low, high = (LAM * (1 - (1 - min(max(s, 0.0) / 0.5, 1.0)) ** 3)
                         for s in (share - stride, share))  # fmt: skip
            assert low * 0.99 - 1e-5 <= strength <= high * 1.01 + 1e-5


def assert_debiased(course: Course) -> None:
    assert course.lams[-1] == 0.0
    begin = course.last_before(0.8)
    stride = EVERY + 1
    for which, then in enumerate(course.weights[begin]):
        assert_zeros_stay([held[which] for held in course.weights[begin:]])
        seen = dict(course.strengths(which))
        assert all(s == pytest.approx(LAM, rel=0.01) for i, s in seen.items() if i <= begin)
        late = [s for i, s in seen.items() if i > begin + stride]
        assert late
        assert late == [0.0] * len(late)
        for before, after in zip(then, course.weights[-1][which], strict=True):
            alive = before != 0
            alive[:, 0] &= before[:, 0] != IDLE
            assert not torch.equal(before[alive], after[alive])


def assert_settled(course: Course) -> None:
    assert course.lams[-1] == LAM
    begin = course.last_before(0.8)
    for which in range(len(course.weights[-1])):
        assert_zeros_stay([held[which] for held in course.weights[begin:]])
        steps = course.strengths(which)
        assert steps[-1][1] == pytest.approx(LAM, rel=0.01)


def assert_zeros_stay(held: Sequence[Sequence[Tensor]]) -> None:
    for before, after in zip(held, held[1:], strict=False):
        for p, q in zip(before, after, strict=True):
            assert 0 < int((p == 0).sum()) < p.numel()
            assert not ((p == 0) & (q != 0)).any()


ASKED: dict[str, tuple[Schedule, Callable[[Course], None]]] = {
    "target": (Schedule(target_density=0.3), assert_target),
    "ramp": (Schedule(ramp="cubic", ramp_until=0.5), assert_ramp),
    "debias": (Schedule(debias=0.8), assert_debiased),
    "settle": (Schedule(settle=0.8), assert_settled),
}


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_asked_for_is_there_whatever_the_way(way: str, asked: str, tmp_path: Path):
    schedule, holds = ASKED[asked]
    course = WAYS[way](schedule, tmp_path)
    assert course.warned == []
    holds(course)
