"""Where a run logs to, and what the loggers are told of it."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig

from regkit.lightning import loggers as plugs
from regkit.lightning.monitors import scalars
from regkit.training.config import key_value, leading_penalty, make, only_watches, recipe_of
from regkit.training.progress import tell


def make_loggers(
    config: DictConfig, folder: Path, *, stage: str = "", first_step: int | None = None
) -> list[Logger]:
    """Make the loggers that the configuration asks for (`regkit.lightning.loggers`).

    Raises: InputError when one needs a package that is not installed.
    """
    place = {"folder": folder, "name": config.name, "stage": stage, "first_step": first_step}
    return [make(options, **place) for options in config.logger.values()]


def log_start(loggers: list[Logger], config: DictConfig, folder: Path) -> None:
    """Tell the loggers what run this is, and TensorBoard how its curves are sorted.

    What a logger cannot show is said.
    """
    values = hparams(config)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            scalars.log_hparams(logger, values)
            scalars.log_layout(logger)
        else:
            logger.log_hyperparams({**values, "config": recipe_of(config)})
        if not plugs.takes_pictures(logger):
            tell(f"{type(logger).__name__} takes no pictures; they are files in {folder}.")
    if not any(isinstance(logger, TensorBoardLogger) for logger in loggers):
        tell("Curves by topic, and those of `regkit report`, are left out: add logger=tensorboard.")


def log_end(loggers: list[Logger]) -> None:
    """Tell TensorBoard that the run is complete."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            scalars.log_end(logger)


def hparams(config: DictConfig) -> dict[str, Any]:
    """Return what tells runs apart: five words of every run, and whatever a sweep was asked for."""
    leading = leading_penalty(config.penalty, config.lam)
    values: dict[str, Any] = {
        "penalty": "+".join(config.penalty) or "none",
        "lam": 0.0 if leading is None else float(config.penalty[leading].get("lam", config.lam)),
        "seed": config.seed,
        "model": config.model._target_.rpartition(".")[2],
        "optimizer": config.optimizer._target_.rpartition(".")[2],
    }
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return values
    for word in HydraConfig.get().overrides.task:
        key, value = key_value(word)
        if not only_watches(key) and key not in ("name", f"penalty.{leading}.lam"):
            values.setdefault(key, _number(value.strip("'\"")))
    return values


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
