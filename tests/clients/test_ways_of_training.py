"""Every schedule in every way in which people train: a matrix."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_courses import ASKED, Course, Look
from client_nets import (
    EVERY,
    LAM,
    LR,
    NUM_BATCHES,
    NUM_EPOCHS,
    QUIET,
    TOTAL,
    Client,
    Pair,
    error,
    idle_weights,
    loader,
    said,
    trainer,
)
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from torch import Tensor, nn

from regkit import Regularizer, RegularizerCallback, Schedule
from regkit.penalties import L1

pytestmark = QUIET


class LowRank(nn.Module):
    """A frozen layer and what LoRA trains beside it."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.down = nn.Linear(num_inputs, 20, bias=False)
        self.up = nn.Linear(20, num_outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.up(self.down(x))


class LoRA(Client):
    """Low-rank updates of a frozen net; the optimizer holds them alone."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(LowRank(20, 24), nn.ReLU())
        self.head = LowRank(24, 20)
        idle_weights(self.backbone[0].down)

    def trained(self) -> list[list[Any]]:
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
        batches = [batch for _ in range(NUM_EPOCHS) for batch in loader()]
        for i, batch in enumerate(batches):
            if told:
                reg.set_progress((i + 1) / TOTAL)
            optimizer.zero_grad()
            error(module, batch).backward()
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


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("way", WAYS)
def test_what_was_asked_for_is_there_whatever_the_way(way: str, asked: str, tmp_path: Path):
    schedule, holds = ASKED[asked]
    course = WAYS[way](schedule, tmp_path)
    assert all(p.isfinite().all() for held in course.weights[-1] for p in held)
    assert course.warned == []
    holds(course)


def test_a_ramp_is_at_zero_before_the_first_step():
    """What is logged then must not be the full strength."""
    module = Client()
    reg = Regularizer(module, L1(LAM), schedule=Schedule(ramp="cubic", num_steps=10))
    reg.attach(module.configure_optimizers())
    assert reg.current_lams() == {"l1": 0.0}
    assert float(reg.value()) == 0.0
