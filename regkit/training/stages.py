"""What may follow training: more of it without penalty, and cutting out what is superfluous."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim.lr_scheduler import LinearLR

from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.video_classifier import VideoClassifier
from regkit.optim.schedule import Schedule
from regkit.pruning.shrink import ShrinkReport, shrink
from regkit.training.callbacks import warn_of_a_cut
from regkit.training.checkpoints import one_line, read, save_checkpoint
from regkit.training.config import make, make_penalties, recipe_of
from regkit.training.keep import KeepCheckpoints, Place
from regkit.training.loggers import make_loggers
from regkit.training.progress import progress, shows_bar, tell

# Share of the learning rate that debiasing begins with; it falls linearly to END of that.
BEGIN, END = 0.3, 0.03
NUM_CLIPS = 32  # real ones that outputs are compared on


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
    falls = {"start_factor": 1.0, "end_factor": END, "total_iters": max(epochs - 1, 1)}
    model.make_scheduler = lambda optimizer: LinearLR(optimizer, **falls)
    penalties, off = make_penalties(recipe_of(config)["penalty"]), Schedule(debias=0.0)
    regularize = RegularizerCallback(penalties, example=data.example(), schedule=off)
    path = folder / "checkpoints" / "debiased.ckpt"
    keep = KeepCheckpoints(
        path.parent, path.stem, _debiased, every_n_steps=config.save_every_n_steps
    )
    first_step = _first_step(path)
    bar = shows_bar(config.trainer)
    trainer = make(
        config.trainer,
        logger=make_loggers(config, folder, stage="debias", first_step=first_step),
        callbacks=[regularize, keep, *progress(regularize, bar, "debias")],
        enable_progress_bar=bar,
        max_epochs=epochs,
        check_val_every_n_epoch=epochs,
    )
    trainer.fit(model, datamodule=data, ckpt_path=None if first_step is None else path)
    tested = trainer.test(model, datamodule=data, verbose=False)[0]
    assert keep.results is not None
    return {"debiased_accuracy": tested["test/acc"], **keep.results}


def _first_step(path: Path) -> int | None:
    """Return the step that a checkpoint goes on with; None where there is none that can be used."""
    if not path.is_file():
        return None
    try:
        return read(path)["global_step"] + 1
    except Exception as error:
        tell(f"{path} is damaged ({one_line(error)}); debiasing begins anew.")
        return None


def _debiased(keep: KeepCheckpoints, place: Place) -> dict[str, Any]:
    return {
        "debiased_val_accuracy": keep.measures.get("val/acc"),
        "debiased_val_loss": keep.measures.get("val/loss"),
        "debias_s": round(keep.seconds, 2),
    }


def shrink_stage(
    config: DictConfig,
    folder: Path,
    model: VideoClassifier,
    data: VideoData,
    whole: float | None = None,
) -> dict[str, Any]:
    """Shrink the net, keep it as `folder`/checkpoints/shrunk.ckpt, and return what it reaches.

    whole: test accuracy of the net as it is; a warning tells if the small one has less.
    """
    trainer = make(
        config.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    device = trainer.strategy.root_device
    device = device if device.type == "cuda" else torch.device("cpu")  # others lack float64
    inputs = (clip.to(device) for clip in clips(data))
    multiple = config.strength.multiple_of
    example = data.example().to(device)
    net, report = shrink(model.net.to(device), example, inputs=inputs, multiple_of=multiple)
    small = VideoClassifier(net, model.classes, make(config.optimizer))
    tested = trainer.test(small, datamodule=data, verbose=False)[0]
    if trainer.is_global_zero:
        path = folder / "checkpoints" / "shrunk.ckpt"
        save_checkpoint(net.cpu(), recipe_of(config), model.classes, path)
        print(f"shrunk: {path}\n{report}", flush=True)
    if whole is not None:
        warn_of_a_cut(whole, tested["test/acc"], len(data.known_splits().test))
    return {"shrunk_accuracy": tested["test/acc"], **_numbers(report)}


def clips(data: VideoData, count: int = NUM_CLIPS) -> Iterator[Tensor]:
    """Yield real clips of the validation or test videos, in batches, until there are `count`."""
    splits = data.known_splits()
    if not (splits.val or splits.test):
        return
    loader = data.val_dataloader() if splits.val else data.test_dataloader()
    for batch in loader:
        clip = data.finish(batch, training=False)["clip"][:count]
        count -= len(clip)
        if len(clip):
            yield clip
        if not count:
            return


def _numbers(report: ShrinkReport) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "shrunk_parameters": report.after.parameters,
        "shrunk_flops": report.after.flops,
        "shrink_difference": report.max_difference,
    }
    for key, sizes in (("whole", report.before), ("shrunk", report.after)):
        if sizes.latency_s is not None:
            numbers[f"{key}_latency_ms"] = round(1e3 * sizes.latency_s.median, 3)
    return numbers
