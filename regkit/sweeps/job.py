"""One job of Hydra: a run, or a path; alone, or one of a sweep."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from regkit.errors import InputError
from regkit.sweeps.path import follow
from regkit.training.fit import fit
from regkit.training.run_folder import RunFolder

# What the libraries below tell all their users, and ours need not hear.
_CHATTY = ("lightning.pytorch", "fontTools", "tensorboard")
_KNOWN = (
    "does not have many workers",
    "LeafSpec",
    "Checkpoint directory .* exists",  # a run that goes on
    "Total length of `ClipLoader` across ranks is zero",  # a refit has no validation videos
)


def run_job(config: DictConfig, folder: Path) -> float | None:
    """Run one job, and leave word in its folder when it fails.

    Returns the test accuracy; of a path, none. A mistake in the input ends the program with one
    line, and in a sweep this job alone.
    """
    quieten()
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


def quieten() -> None:
    """Silence what is not the user's to mend, in this process."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _KNOWN:
        warnings.filterwarnings("ignore", f".*{message}")


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Print what a user looks for first."""
    keys = ("test_accuracy", "val_accuracy", "debiased_accuracy", "density", "objective")
    known = {key: summary.get(key) for key in (*keys, "roughness", "train_s")}
    shown = "  ".join(f"{key} {value:.4g}" for key, value in known.items() if value is not None)
    if not summary.get("settled", True):
        shown += f"  (zeros not settled: {summary['flips']:.2%} flip in a step)"
    print(f"\n{summary['name']}: {shown}")
    print(f"curves: tensorboard --logdir '{folder.parent}'\n", flush=True)
