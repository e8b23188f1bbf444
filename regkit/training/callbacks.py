"""What watches a run: checkpoints, curves, pictures, and when it is stopped."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from omegaconf import DictConfig

from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.monitors.pictures import Pictures
from regkit.lightning.predictions import Predictions
from regkit.lightning.stop_dominated import StopDominated
from regkit.pruning.density import density
from regkit.training.config import make
from regkit.training.cost import CostOfZeros


def callbacks(
    config: DictConfig, folder: Path, regularize: RegularizerCallback, validated: bool
) -> list[pl.Callback]:
    """Make what the configuration asks for.

    validated: whether there are videos for it.
    Raises: InputError when one of `callbacks` is none of Lightning's.
    """
    checkpoint = partial(
        ModelCheckpoint,
        folder / "checkpoints",
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    made: list[pl.Callback] = [
        LearningRateMonitor("step"),
        Predictions(folder),
        Pictures(folder, config.pictures_every_n_epochs),
        checkpoint(filename="last"),
    ]
    if validated:
        made.append(CostOfZeros(lambda: _density(regularize)))
        made.append(checkpoint(filename="best", monitor="val/acc", mode="max"))
    if config.save_every_n_steps is not None:
        made.append(checkpoint(filename="last", every_n_train_steps=config.save_every_n_steps))
    if config.stop_dominated is not None:
        made.append(StopDominated(folder, lambda: _density(regularize)))
    return made + [_own(str(name), options) for name, options in config.callbacks.items()]


def cost_of_zeros(trainer: pl.Trainer, num_videos: int) -> dict[str, Any]:
    """Return what zeros have cost in validation accuracy and its noise, where that was seen."""
    every: list[Any] = getattr(trainer, "callbacks")  # noqa: B009  # unseen by type checkers
    watch = next((one for one in every if isinstance(one, CostOfZeros)), None)
    found = None if watch is None else watch.cost(num_videos)
    if found is None:
        return {}
    known = {"zeros_cost": found.accuracy, "zeros_cost_noise": found.noise}
    return known | {"zeros_cost_is_noise": found.is_noise}


def was_pruned(trainer: pl.Trainer) -> bool:
    """Say whether the run was stopped because others left it behind."""
    every: list[Any] = getattr(trainer, "callbacks")  # noqa: B009  # unseen by type checkers
    return any(isinstance(one, StopDominated) and one.pruned for one in every)


def _own(name: str, options: DictConfig) -> pl.Callback:
    made = make(options)
    if not isinstance(made, pl.Callback):
        raise InputError(
            f"callbacks.{name} makes a {type(made).__name__}; a callback inherits from "
            "lightning.pytorch.Callback."
        )
    return made


def _density(regularize: RegularizerCallback) -> float:
    assert regularize.regularizer is not None
    return density(regularize.regularizer.counted_parameters()).total
