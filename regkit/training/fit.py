"""One run: train, test, train on without bias, and sum up."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch.distributed import is_available, is_torchelastic_launched

from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.data_wait import DataWaitMonitor
from regkit.lightning.video_classifier import VideoClassifier
from regkit.optim.schedule import Schedule
from regkit.regularizer.regularizer import Regularizer
from regkit.training import summary as sums
from regkit.training.callbacks import callbacks, cost_of_zeros, was_pruned
from regkit.training.checkpoints import start_from
from regkit.training.config import check, make, make_penalties, recipe_of
from regkit.training.loggers import log_end, log_start, make_loggers
from regkit.training.progress import progress, shows_bar
from regkit.training.resolve_lam import resolve_auto_lam
from regkit.training.runs import RunFolder, adopt
from regkit.training.stages import debias, shrink_stage

# Processes that the CPU of any machine may run: two ranks are tried out on a single core.
ALWAYS = 2


def fit(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Train, test and sum up one run; everything it leaves goes into `folder`.

    A run that was stopped goes on where it was, and one that is done returns its summary.
    Raises: InputError when an option is wrong, or `folder` holds a run of another configuration.
    """
    check(config)
    refuse_missing_devices(config.trainer)
    held = RunFolder(folder, config.ckpt_path)
    if (checkpoint := held.held()) is not None:
        old = checkpoint["hyper_parameters"]["recipe"]
        adopt(config, old)
        if (done := held.summary(recipe_of(config), old)) is not None:
            print(f"{config.name}: done already, {folder / 'summary.json'}", flush=True)
            return done
    held.begin()
    first_step = None if checkpoint is None else checkpoint["global_step"] + 1
    loggers = make_loggers(config, folder, first_step=first_step)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = make(config.data).ready()
    _refuse_without_validation(config, data)
    model = _model(config, data)
    resolve_auto_lam(config, model, data)
    model.hparams["recipe"] = recipe_of(config)
    summary = held.tested(recipe_of(config))
    if summary is None:
        trainer, summary = _train_and_test(config, held, model, data, loggers, checkpoint)
        if trainer.is_global_zero:
            held.keep_tested(summary, recipe_of(config))
    else:
        assert checkpoint is not None
        model.load_state_dict(checkpoint["state_dict"])
        trainer = None
    if config.debias_epochs:
        summary |= debias(config, folder, model, data)
    if config.shrink:
        whole = summary.get("debiased_accuracy", summary["test_accuracy"])
        summary |= shrink_stage(config, folder, model, data, whole)
    if trainer is None or trainer.is_global_zero:
        held.finish(summary)
    return summary


def _model(config: DictConfig, data: VideoData) -> VideoClassifier:
    model = VideoClassifier(
        make(config.model, num_classes=data.num_classes),
        data.classes,
        make(config.optimizer),
        make(config.scheduler) if config.scheduler is not None else None,
        config.seed,
    )
    if config.warm_start is not None:
        start_from(model, Path(config.warm_start).expanduser())
    return model


def _refuse_without_validation(config: DictConfig, data: VideoData) -> None:
    if data.known_splits().val:
        return
    watching = config.callbacks.items()
    wanted = [f"callbacks.{n}" for n, o in watching if str(o.get("monitor")).startswith("val/")]
    wanted += ["stop_dominated"] if config.stop_dominated is not None else []
    wanted += ["test_checkpoint=best"] if config.test_checkpoint == "best" else []
    if wanted:
        raise InputError(f"{', '.join(wanted)} asks for validation, and there are no such videos.")


def _train_and_test(
    config: DictConfig,
    held: RunFolder,
    model: VideoClassifier,
    data: VideoData,
    loggers: list[Logger],
    checkpoint: dict[str, Any] | None,
) -> tuple[pl.Trainer, dict[str, Any]]:
    penalties = make_penalties(recipe_of(config)["penalty"])
    regularize = RegularizerCallback(
        penalties, example=data.example(), schedule=Schedule(**config.strength)
    )
    pace = DataWaitMonitor(cached=config.data.get("cache", "none") != "none")
    others = callbacks(config, held.path, regularize, bool(data.known_splits().val))
    bar = shows_bar(config.trainer)
    trainer = make(
        config.trainer,
        logger=loggers,
        callbacks=[regularize, pace, *others, *progress(regularize, bar)],
        enable_progress_bar=bar,
    )
    _refuse_scripted_sweep(trainer)
    log_start(loggers, config, held.path)
    began = time.perf_counter()
    start = held.checkpoint if checkpoint is not None else None
    trainer.fit(model, datamodule=data, ckpt_path=start)
    reg = regularize.regularizer
    assert reg is not None
    summary = sums.trained(config, trainer, model, reg) | sums.targets(regularize)
    summary |= sums.support(regularize)
    summary |= cost_of_zeros(trainer, len(data.known_splits().val))
    summary["train_s"] = round(time.perf_counter() - began, 2)
    summary["data_share"] = pace.data_share
    summary["num_val"] = len(data.known_splits().val)
    summary["pruned"] = was_pruned(trainer)
    if config.test_checkpoint == "best":
        best = torch.load(held.path / "checkpoints" / "best.ckpt", weights_only=True)
        model.load_state_dict(best["state_dict"])
    summary |= _test(trainer, model, data, reg, held.path)
    log_end(loggers)
    return trainer, summary


def _test(
    trainer: pl.Trainer, model: VideoClassifier, data: VideoData, reg: Regularizer, folder: Path
) -> dict[str, Any]:
    results = sums.left(reg)
    sums.write_groups(reg, folder / "groups.npz", trainer.is_global_zero)
    measured = trainer.test(model, datamodule=data, verbose=False)[0]
    results |= sums.tested(dict(measured), model)
    results["files_skipped"] = len(data.all_skipped())
    if trainer.is_global_zero:
        results |= sums.without_dead_channels(model, data.example())
    return results


def _refuse_scripted_sweep(trainer: pl.Trainer) -> None:
    """Ranks that are started as scripts would each run the whole sweep again."""
    swept = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    launcher = trainer.strategy.launcher
    if swept and launcher is not None and not launcher.is_interactive_compatible:
        raise InputError(
            "-m (a sweep) was given together with a strategy that starts train.py once a rank. "
            "Use one device a job, or trainer.strategy=ddp_fork."
        )


def refuse_missing_devices(trainer: Mapping[str, Any]) -> None:
    """Refuse more devices than there are: Lightning would start a process for each, and hang.

    trainer: the options of Lightning's Trainer.
    Raises: InputError. Other accelerators than CPU and GPU are left to Lightning.
    """
    devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
    num_gpus = torch.cuda.device_count() or int(torch.backends.mps.is_available())
    if accelerator in ("gpu", "cuda", "mps") or (accelerator == "auto" and num_gpus > 0):
        # Whoever starts the ranks may let each see its own GPU alone.
        one_each = num_gpus == 1 and is_available() and is_torchelastic_launched()
        there = None if one_each else num_gpus
        says = "there is no GPU" if num_gpus == 0 else f"GPUs there are: {num_gpus}"
    elif accelerator in ("cpu", "auto"):
        there = max(ALWAYS, os.cpu_count() or 1)
        says = f"on this CPU there is room for {there} processes"
    else:
        return
    if there is None or _num_wanted(devices) <= there:
        return
    ways = [f"trainer.devices={there} or less"] if there > 0 else []
    ways += ["trainer.accelerator=cpu"] if there == num_gpus else []
    raise InputError(
        f"trainer.devices={devices} was given with trainer.accelerator={accelerator}, and {says}. "
        f"Give {' or '.join(ways)}."
    )


def _num_wanted(devices: Any) -> int:
    """Return how many devices there have to be, 0 where Lightning is to find out."""
    if isinstance(devices, str) and "," in devices:
        devices = [part.strip() for part in devices.split(",") if part.strip()]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return 1 + max((_num_wanted(index) for index in devices), default=-1)
    return int(devices) if str(devices).strip().isdigit() else 0
