"""One run: train, test, train on without bias, and sum up."""

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
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
from regkit.training.callbacks import callbacks, cost_of_zeros, warn_of_chance, was_pruned
from regkit.training.checkpoints import read, start_from
from regkit.training.config import check, make, make_penalties, recipe_of
from regkit.training.keep import KeepCheckpoints, Place
from regkit.training.loggers import log_end, log_start, make_loggers
from regkit.training.progress import is_first, progress, shows_bar
from regkit.training.resolve_lam import resolve_auto_lam
from regkit.training.runs import GONE_S, SUMMARY, RunFolder, adopt
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
    with held.owned(-1.0 if _is_swept() else GONE_S) if is_first() else nullcontext():
        return _fit(config, held)


def _fit(config: DictConfig, held: RunFolder) -> dict[str, Any]:
    stages = ["test", *["debias"] * (config.debias_epochs > 0), *["shrink"] * config.shrink]
    old = held.read_stages()
    if old is not None:
        adopt(config, old)
        if held.is_of(recipe_of(config)) and all(map(held.has, stages)):
            held.finish()
            print(f"{config.name}: done already, {held.path / SUMMARY}", flush=True)
            return held.summary()
    checkpoint = held.checkpoint()
    if old is None and checkpoint is not None:
        adopt(config, checkpoint["hyper_parameters"]["recipe"])
    held.begin()
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = make(config.data).ready()
    _refuse_without_validation(config, data)
    model = _model(config, data)
    resolve_auto_lam(config, model, data)
    recipe = model.hparams["recipe"] = recipe_of(config)
    held.forget_others(recipe)
    if not held.has("test"):
        first_step = None if checkpoint is None else checkpoint["global_step"] + 1
        loggers = make_loggers(config, held.path, first_step=first_step)
        held.add("test", _train_and_test(config, held, model, data, loggers), recipe)
    if "debias" in stages and not held.has("debias"):
        _take_weights(model, held.path, config.test_checkpoint)
        held.add("debias", debias(config, held.path, model, data), recipe)
    if "shrink" in stages and not held.has("shrink"):
        _take_weights(
            model, held.path, "debiased" if "debias" in stages else config.test_checkpoint
        )
        whole = held.summary().get("debiased_accuracy", held.summary()["test_accuracy"])
        held.add("shrink", shrink_stage(config, held.path, model, data, whole), recipe)
    held.finish()
    return held.summary()


def _take_weights(model: VideoClassifier, folder: Path, name: str) -> None:
    """Take those that an earlier stage has left."""
    model.load_state_dict(read(folder / "checkpoints" / f"{name}.ckpt")["state_dict"])


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
) -> dict[str, Any]:
    penalties = make_penalties(recipe_of(config)["penalty"])
    regularize = RegularizerCallback(
        penalties, example=data.example(), schedule=Schedule(**config.strength)
    )
    pace = DataWaitMonitor(cached=config.data.get("cache", "none") != "none")
    num_val = len(data.known_splits().val)

    def conclude(keep: KeepCheckpoints, place: Place) -> dict[str, Any]:
        reg = regularize.regularizer
        assert reg is not None
        regularize.conclude()
        return {
            **sums.trained(config, trainer, model, reg, keep.measures, place.epochs),
            **sums.targets(regularize),
            **sums.support(regularize),
            **cost_of_zeros(trainer, num_val),
            "train_s": round(keep.seconds, 2),
            "data_share": pace.data_share,
            "num_val": num_val,
            "pruned": was_pruned(trainer),
        }

    monitor, every = "val/acc" if num_val else None, config.save_every_n_steps
    keep = KeepCheckpoints(held.path / "checkpoints", "last", conclude, monitor, every)
    others = callbacks(config, held.path, regularize, num_val > 0)
    bar = shows_bar(config.trainer)
    trainer = make(
        config.trainer,
        logger=loggers,
        callbacks=[regularize, pace, *others, *progress(regularize, bar), keep],
        enable_progress_bar=bar,
    )
    _refuse_scripted_sweep(trainer)
    log_start(loggers, config, held.path)
    trainer.fit(model, datamodule=data, ckpt_path=held.start)
    assert regularize.regularizer is not None
    assert keep.results is not None
    _take_weights(model, held.path, config.test_checkpoint)
    tested = _test(trainer, model, data, regularize.regularizer, held.path)
    log_end(loggers)
    warn_of_chance(tested["test_accuracy"], data.num_classes, len(data.known_splits().test))
    return {**keep.results, **tested}


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


def _is_swept() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _refuse_scripted_sweep(trainer: pl.Trainer) -> None:
    """Ranks that are started as scripts would each run the whole sweep again."""
    launcher = trainer.strategy.launcher
    if _is_swept() and launcher is not None and not launcher.is_interactive_compatible:
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
