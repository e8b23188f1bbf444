"""Trainings that end before their schedule does: what is said, and how to finish."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from client_nets import (
    LAM,
    NUM_EPOCHS,
    QUIET,
    TOTAL,
    Client,
    Pair,
    density_of,
    error,
    loader,
    said,
    trainer,
)
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from regkit import RegularizerCallback, Schedule
from regkit.penalties import L1

pytestmark = QUIET


class Stop(pl.Callback):
    """Ends training early, as patience does."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            trainer.should_stop = True


class Patience(Client):
    """Logs a number that never gets better."""

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Any:
        self.log("watched", 1.0, on_step=False, on_epoch=True)
        return error(self, batch)


STOPS: dict[str, Callable[[], pl.Callback]] = {
    "should_stop": lambda: Stop(1),
    "patience": lambda: EarlyStopping("watched", patience=1, check_on_train_epoch_end=True),
}


def stopped(
    schedule: Schedule, stop: pl.Callback, module: type[Any] = Patience
) -> tuple[Any, RegularizerCallback, list[str]]:
    regularize, made = RegularizerCallback(L1(LAM), schedule=schedule), module()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(regularize, stop, max_epochs=NUM_EPOCHS).fit(made, loader())
    return made, regularize, said(caught)


@pytest.mark.parametrize("layerwise", [False, True])
@pytest.mark.parametrize("stop", STOPS)
def test_an_early_end_is_said_once_and_can_be_finished(stop: str, layerwise: bool):
    schedule = Schedule(target_density=0.3, ramp_until=0.8, layerwise=layerwise)
    module, regularize, warned = stopped(schedule, STOPS[stop]())
    assert len(warned) == 1
    assert "Regularizer.meet_target()" in warned[0]
    (result,) = regularize.target_results
    assert not result.is_met
    assert "training ended at 40%" in result.reason
    before = [p.detach().clone() for p in module.trained()[0]]
    assert regularize.regularizer is not None
    reached = regularize.regularizer.meet_target()
    assert reached == pytest.approx(0.3, abs=0.01)
    assert density_of(module.trained()[0]) == pytest.approx(reached)
    for p, q in zip(before, module.trained()[0], strict=True):
        assert torch.equal(q, p * (q != 0))
        assert not layerwise or density_of([q]) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("schedule", "module"),
    [
        (Schedule(target_density=0.3, debias=0.8), Client),
        (Schedule(target_density=0.3, ramp_until=0.8), Pair),
        (Schedule(target_density=0.3, ramp_until=0.8, num_steps=TOTAL), Client),
        (Schedule(ramp="cubic", ramp_until=0.5, settle=0.7, debias=0.8), Client),
        (Schedule(debias=0.8, num_steps=TOTAL), Client),
    ],
    ids=["and debias", "of a pair", "in steps", "before phases", "before phases in steps"],
)
def test_an_early_end_gives_one_warning(schedule: Schedule, module: type[Any]):
    _, _, warned = stopped(schedule, Stop(1), module)
    assert len(warned) == 1


def test_finishing_a_pair_brings_each_net_to_the_target():
    """Of one more is left than of the other; each has an optimizer, and so a target, of its own."""
    module, regularize, _ = stopped(Schedule(target_density=0.3), Stop(0), Pair)
    assert min(density_of(held) for held in module.trained()) > 0.4
    with torch.no_grad():
        module.two[0].weight.mul_(10.0)
        module.two[2].weight.mul_(10.0)
    assert regularize.regularizer is not None
    assert regularize.regularizer.meet_target() == pytest.approx(0.3, abs=0.01)
    found = [density_of(held) for held in module.trained()]
    assert found == pytest.approx([0.3, 0.3], abs=0.02)
