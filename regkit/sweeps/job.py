"""One job of Hydra: a run, or a path; alone, or one of a sweep."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from regkit.errors import InputError
from regkit.sweeps.path import follow
from regkit.training.fit import fit
from regkit.training.folder import RunFolder


def run_job(config: DictConfig, folder: Path) -> float | None:
    """Run one job, and leave word in its folder when it fails.

    Returns the test accuracy; of a path, none. A mistake in the input ends the program with one
    line, and in a sweep this job alone.
    """
    swept = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if config.path is not None:
            follow(config, folder)
            return None
        summary = fit(config, folder)
    except Exception as error:
        RunFolder(folder).fail(error)
        if isinstance(error, InputError) and not swept:
            sys.exit(f"train.py: {error}")
        raise
    print_summary(summary, folder)
    return summary["test_accuracy"]


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print what a user looks for first."""
    keys = ("test_accuracy", "val_accuracy", "debiased_accuracy", "density", "objective")
    known = {key: summary.get(key) for key in (*keys, "roughness", "train_s")}
    shown = "  ".join(f"{key} {value:.4g}" for key, value in known.items() if value is not None)
    print(f"\n{summary['name']}: {shown}")
    print(f"curves: tensorboard --logdir '{folder.parent}'\n", flush=True)
