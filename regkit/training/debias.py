"""Debiasing: train what is left without penalty, zeros stay zero."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR

from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.video_classifier import VideoClassifier
from regkit.optim.schedule import Schedule
from regkit.training.config import make, make_penalties
from regkit.training.loggers import make_loggers
from regkit.training.progress import progress, shows_bar

# Share of the learning rate that debiasing begins with; it falls linearly to END of that.
BEGIN, END = 0.3, 0.03


def debias(
    config: DictConfig, folder: Path, model: VideoClassifier, data: VideoData
) -> dict[str, Any]:
    """Train the model on for `debias_epochs`, and return what it reaches then.

    A penalty shrinks also the weights that it leaves; what the support is worth shows without that
    (Meinshausen, Relaxed Lasso, 2007). Weight penalties are off and zeros stay zero; constraints
    and activation penalties stay. Curves go to `folder`/debias, weights to
    `folder`/checkpoints/debiased.ckpt.
    """
    epochs = config.debias_epochs
    if config.optimizer.get("lr") is None:
        raise InputError("debias_epochs was given, and the optimizer has no lr. Give optimizer.lr.")
    model.make_optimizer = make(config.optimizer, lr=BEGIN * config.optimizer.lr)
    model.make_scheduler = lambda optimizer: _falling(optimizer, epochs)
    recipe = OmegaConf.to_container(config, resolve=True)
    assert isinstance(recipe, dict)
    regularize = RegularizerCallback(
        make_penalties(recipe["penalty"]), example=data.example(), schedule=Schedule(debias=0.0)
    )
    keep = ModelCheckpoint(
        folder / "checkpoints", filename="debiased", enable_version_counter=False
    )
    bar = shows_bar(config.trainer)
    trainer = make(
        config.trainer,
        logger=make_loggers(config, folder, stage="debias"),
        callbacks=[regularize, keep, *progress(regularize, bar, "debias")],
        enable_progress_bar=bar,
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
    )
    began = time.perf_counter()
    last = folder / "checkpoints" / "debiased.ckpt"
    trainer.fit(model, datamodule=data, ckpt_path=last if last.is_file() else None)
    if data.known_splits().val and "val/acc" not in trainer.callback_metrics:  # done before a stop
        trainer.validate(model, datamodule=data, verbose=False)
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    tested = trainer.test(model, datamodule=data, verbose=False)[0]
    return {
        "debiased_accuracy": tested["test/acc"],
        "debiased_val_accuracy": measured.get("val/acc"),
        "debiased_val_loss": measured.get("val/loss"),
        "debias_s": round(time.perf_counter() - began, 2),
    }


def _falling(optimizer: Optimizer, epochs: int) -> LinearLR:
    return LinearLR(optimizer, 1.0, END, total_iters=max(epochs - 1, 1))
