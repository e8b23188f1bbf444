"""Warm starts: begin with what another run has learned."""

from pathlib import Path

import lightning.pytorch as pl
import torch

from regkit.errors import InputError
from regkit.module import VideoClassifier

_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # what Adam, AdamW and ProxAdamW keep of a parameter


def start_from(model: VideoClassifier, path: Path) -> None:
    """Take the weights of another run's checkpoint.

    Raises: InputError when it is none, or of another model.
    """
    if not path.is_file():
        raise InputError(f"warm_start={path} was given, and there is no such file.")
    try:
        model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    except Exception as error:
        raise InputError(
            f"warm_start={path} does not fit this model ({' '.join(str(error).split())[:300]}). "
            "Give a checkpoint that train.py made of the same model and classes."
        ) from error


class Moments(pl.Callback):
    """Take the moments of Adam from another run's checkpoint, where both runs have them.

    Without them the metric of the first steps is that of a single batch: where its gradient happens
    to be small the proximal step is long, and takes weights that are needed.

    path: of the checkpoint that `start_from` took the weights of.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the optimizer its moments, unless the run goes on from a checkpoint of its own."""
        if trainer.global_step > 0 or len(trainer.optimizers) != 1:
            return
        (optimizer,) = trainer.optimizers
        saved = torch.load(self._path, map_location="cpu", weights_only=True)["optimizer_states"]
        states = saved[0]["state"] if len(saved) == 1 else {}
        kept = set.intersection(*map(set, states.values())) if states else set()
        if kept == _MOMENTS and "betas" in optimizer.defaults:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
