"""Train a video classifier: python train.py penalty=l1 lam=1e-4."""

import json
import logging
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

# Threads that wait should sleep: spinning, they take the core from the one they wait for as soon as
# anything else runs (measured on 2 cores with one busy neighbour: 234 ms a step, 44 ms without).
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import hydra
import lightning.pytorch as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard.summary import hparams

from regkit import InputError, Regularize, density, remaining
from regkit.config import (
    check,
    check_overrides,
    check_unchanged,
    make,
    make_penalties,
    quote_paths,
    register,
)
from regkit.module import VideoClassifier
from regkit.pace import Pace
from regkit.predictions import Predictions

CONFIGS = Path(__file__).parent / "configs"
log = logging.getLogger("regkit")


def run(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Train, test and sum up one run; everything it leaves goes into `folder`."""
    check(config)
    recipe = OmegaConf.to_container(config, resolve=True)
    assert isinstance(recipe, dict)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    started = _checkpoint(config.ckpt_path, recipe)

    data = make(config.data)
    data.prepare_data()
    data.setup()
    model = VideoClassifier(
        make(config.model, num_classes=data.num_classes),
        data.classes,
        make(config.optimizer),
        make(config.scheduler) if config.scheduler is not None else None,
        config.seed,
        {str(key): value for key, value in recipe.items()},
    )
    regularize = Regularize(
        make_penalties(recipe["penalty"]), example=data.example(), **recipe["strength"]
    )
    logger = TensorBoardLogger(
        str(folder),
        name="",
        version="",
        default_hp_metric=False,
        purge_step=started["global_step"] + 1 if started else None,
    )
    pace = Pace(cached=config.data.get("cache", "none") != "none")
    callbacks = _callbacks(config, folder, regularize, pace)
    trainer = make(config.trainer, logger=logger, callbacks=callbacks)
    _refuse_scripted_sweep(trainer)
    _log_hparams(logger, config)

    began = time.perf_counter()
    trainer.fit(model, datamodule=data, ckpt_path=config.ckpt_path)
    train_s = time.perf_counter() - began
    summary = _summary(config, trainer, model, regularize) | {"train_s": round(train_s, 2)}
    summary["data_share"] = pace.data_share
    if config.evaluate == "best":
        best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
        model.load_state_dict(best["state_dict"])
        summary |= _left(regularize)
    tested = trainer.test(model, datamodule=data, verbose=False)[0]
    summary |= {
        "test_accuracy": tested["test/acc"],
        "test_macro_accuracy": tested["test/acc_macro"],
        "test_top5_accuracy": tested.get("test/acc_top5"),
        "views": model.test_views,
        "roughness": tested.get("test/roughness"),
        "files_skipped": len(data.all_skipped()),
    }
    if trainer.is_global_zero:
        summary |= _without_dead_channels(model, data.example())
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        _report(summary, folder)
    return summary


def _checkpoint(path: str | None, recipe: dict[Any, Any]) -> dict[str, Any] | None:
    """Read the checkpoint to continue from and hold its recipe against this one."""
    if path is None:
        return None
    if not Path(path).expanduser().is_file():
        raise InputError(f"ckpt_path={path} was given, and there is no such file.")
    try:
        checkpoint = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
        old = checkpoint["hyper_parameters"]["recipe"]
    except Exception as error:
        raise InputError(
            f"ckpt_path={path} is no checkpoint of train.py ({type(error).__name__}); give the "
            "file checkpoints/last.ckpt of a run folder."
        ) from error
    check_unchanged(old, recipe)
    return checkpoint


def _callbacks(
    config: DictConfig, folder: Path, regularize: Regularize, pace: Pace
) -> list[pl.Callback]:
    checkpoint = partial(
        ModelCheckpoint,
        folder / "checkpoints",
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    callbacks: list[pl.Callback] = [
        regularize,
        pace,
        LearningRateMonitor("step"),
        Predictions(folder),
        checkpoint(filename="best", monitor="val/acc", mode="max"),
        checkpoint(filename="last"),
    ]
    if config.save_every_n_steps is not None:
        callbacks.append(checkpoint(filename="last", every_n_train_steps=config.save_every_n_steps))
    if config.patience is not None:
        callbacks.append(EarlyStopping("val/acc", mode="max", patience=config.patience))
    return callbacks


def _refuse_scripted_sweep(trainer: pl.Trainer) -> None:
    """Ranks that are started as scripts would each run the whole sweep again."""
    swept = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    launcher = trainer.strategy.launcher
    if swept and launcher is not None and not launcher.is_interactive_compatible:
        raise InputError(
            "-m (a sweep) was given together with a strategy that starts train.py once a rank. "
            "Use one device a job, or trainer.strategy=ddp_fork."
        )


@rank_zero_only
def _log_hparams(logger: TensorBoardLogger, config: DictConfig) -> None:
    """Fill TensorBoard's HPARAMS table: one row a run, with the last value of each curve."""
    values = {
        "penalty": "+".join(config.penalty) or "none",
        "lam": config.lam if config.penalty else 0.0,
        "seed": config.seed,
        "model": config.model._target_.rpartition(".")[2],
        "data": config.data._target_.rpartition(".")[2],
        "optimizer": config.optimizer._target_.rpartition(".")[2],
    }
    tags = ("test/acc", "val/acc", "density/total", "test/roughness", "objective/total")
    writer = logger.experiment.file_writer
    for part in hparams(values, dict.fromkeys(tags)):
        writer.add_summary(part)


def _summary(
    config: DictConfig, trainer: pl.Trainer, model: VideoClassifier, regularize: Regularize
) -> dict[str, Any]:
    """Sum up the weights that training ended with."""
    reg = regularize.regularizer
    assert reg is not None
    loss = float(trainer.callback_metrics["train/loss"])
    with torch.no_grad():
        penalties = float(reg.value() + sum(reg.latest.values()))
    return {
        "name": config.name,
        "penalty": "+".join(reg.penalties) or "none",
        "lam": config.lam if reg.penalties else 0.0,
        "lams": reg.lams(),
        "seed": config.seed,
        "optimizer": config.optimizer._target_.rpartition(".")[2],
        "lr": config.optimizer.get("lr"),
        "loss": loss,
        "objective": loss + penalties,
        "val_accuracy": float(trainer.callback_metrics["val/acc"]),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
    } | _left(regularize)


def _left(regularize: Regularize) -> dict[str, Any]:
    assert regularize.regularizer is not None
    left = density(regularize.regularizer.chosen())
    return {"density": left.total, "live_groups": left.live_groups, "num_groups": left.num_groups}


def _without_dead_channels(model: VideoClassifier, example: torch.Tensor) -> dict[str, Any]:
    """Say how large the net would be without the channels that are zero."""
    try:
        left = remaining(model.net, example)
    except InputError as error:  # a net that cannot be copied is no reason to lose the summary
        log.warning("no count of what would remain: %s", error)
        return {"remaining_parameters": None, "remaining_flops": None, "flops": None}
    return {
        "remaining_parameters": left.parameters,
        "remaining_flops": left.flops,
        "flops": left.all_flops,
    }


def _report(summary: dict[str, Any], folder: Path) -> None:
    keys = ("test_accuracy", "val_accuracy", "density", "objective", "roughness", "train_s")
    shown = "  ".join(f"{k} {summary[k]:.4g}" for k in keys if summary[k] is not None)
    print(f"\n{summary['name']}: {shown}")
    print(f"curves: tensorboard --logdir '{folder.parent}'\n", flush=True)


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(config: DictConfig) -> float:
    """Run one job."""
    try:
        return run(config, Path(HydraConfig.get().runtime.output_dir))["test_accuracy"]
    except InputError as error:
        sys.exit(f"train.py: {error}")


if __name__ == "__main__":
    register()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec).*")  # not the user's
    sys.argv[1:] = quote_paths(sys.argv[1:])
    try:
        check_overrides(sys.argv[1:], CONFIGS)
    except InputError as error:
        sys.exit(f"train.py: {error}")
    main()
