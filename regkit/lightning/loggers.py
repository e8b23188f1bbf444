"""Where curves go: the loggers of configs/logger, and pictures for those that take any.

A logger of one's own is a function beside these, in YAML of its own: it takes `folder`, `name`,
`stage` and `first_step` by name, and whatever options its YAML has.

folder: of the run. name: of the run. stage: "" for the run itself, "debias" for what follows it.
first_step: whatever was logged from there on is logged again; None where a run begins.
"""

import uuid
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from jaxtyping import UInt8
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from regkit.errors import InputError


def tensorboard(
    folder: Path, name: str, stage: str, first_step: int | None, **options: Any
) -> TensorBoardLogger:
    """Log to TensorBoard's files in the run's folder."""
    return TensorBoardLogger(
        str(folder),
        name=stage,
        version="",
        default_hp_metric=False,
        purge_step=first_step,
        **options,
    )


def csv(folder: Path, name: str, stage: str, first_step: int | None, **options: Any) -> CSVLogger:
    """Log to csv/version_<n>/metrics.csv in the run's folder; a run that goes on begins another."""
    return CSVLogger(str(folder / stage), name="csv", **options)


def wandb(
    folder: Path, name: str, stage: str, first_step: int | None, **options: Any
) -> WandbLogger:
    """Log to Weights & Biases, as one run of that name, also where it goes on.

    Ends the run of this process that was logged before, as one of a sweep.
    Raises: InputError when the package is missing.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]  # an extra
    except ModuleNotFoundError as error:
        raise _missing("wandb") from error
    if not stage:
        wandb.finish()
    key = _kept(folder / "wandb_id.txt", uuid.uuid4().hex[:12])
    return WandbLogger(name, str(folder), version=key, resume="allow", prefix=stage, **options)


def mlflow(
    folder: Path, name: str, stage: str, first_step: int | None, **options: Any
) -> MLFlowLogger:
    """Log to MLflow, as one run of that name, also where it goes on.

    Raises: InputError when the package is missing.
    """
    path = folder / "mlflow_id.txt"
    run_id = path.read_text() if path.is_file() else None
    try:
        logger = MLFlowLogger(run_name=name, run_id=run_id, prefix=stage, **options)
    except ModuleNotFoundError as error:
        raise _missing("mlflow") from error
    if logger.run_id is not None:  # of other ranks it is
        _kept(path, logger.run_id)
    return logger


def show(trainer: pl.Trainer, tag: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Give a picture to every logger that takes pictures."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(tag, [picture], trainer.global_step)
        elif isinstance(logger, MLFlowLogger):
            place = f"{tag}/{trainer.global_step}.png"
            logger.experiment.log_image(logger.run_id, picture, place)


def takes_pictures(logger: Logger) -> bool:
    """Say whether `show` gives pictures to a logger."""
    return isinstance(logger, TensorBoardLogger | WandbLogger | MLFlowLogger)


def _kept(path: Path, made: str) -> str:
    """Return what a file holds; what was made, kept there, if there is none."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made)
    return path.read_text()


def _missing(package: str) -> InputError:
    return InputError(
        f'logger={package} needs {package}, which is not installed. pip install "regkit[{package}]"'
    )
