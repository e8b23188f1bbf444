"""What a run is summed up to: summary.json and groups.npz."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from omegaconf import DictConfig

from regkit.errors import InputError
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.video_classifier import VideoClassifier
from regkit.pruning.density import density
from regkit.pruning.remaining import remaining
from regkit.regularizer.regularizer import Regularizer
from regkit.structure.distributed import full_tensor
from regkit.training.config import leading_penalty

log = logging.getLogger(__name__)


def trained(
    config: DictConfig, trainer: pl.Trainer, model: VideoClassifier, reg: Regularizer
) -> dict[str, Any]:
    """Sum up the weights that training ended with."""
    measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
    loss = measured["train/loss"]
    leading = leading_penalty(config.penalty, config.lam)
    with torch.no_grad():
        penalties = float(reg.value() + sum(reg.last_activation_terms.values()))
    return {
        "name": config.name,
        "penalty": "+".join(reg.penalties) or "none",
        "lam": 0.0 if leading is None else reg.acted_lams()[leading],
        "lams": reg.current_lams(),
        "seed": config.seed,
        "optimizer": config.optimizer._target_.rpartition(".")[2],
        "lr": config.optimizer.get("lr"),
        "loss": loss,
        "objective": loss + penalties,
        "val_accuracy": measured.get("val/acc"),
        "val_loss": measured.get("val/loss"),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "steps": trainer.global_step,
        "epochs": trainer.current_epoch,
    }


def targets(regularize: RegularizerCallback) -> dict[str, Any]:
    """Say whether the density that was asked for is there; null where it is not known any more."""
    target = regularize.schedule.target_density
    if target is None:
        return {}
    results = regularize.target_results
    met = all(result.is_met for result in results) if results else None
    return {"target_density": target, "target_met": met}


def support(regularize: RegularizerCallback) -> dict[str, Any]:
    """Say whether the zeros are settled; nothing where no penalty makes any, or training was short.

    The shares are those of `regkit.optim.support_report.SupportReport`.
    """
    found = regularize.support_report
    return {} if found is None else {"settled": found.is_settled, **found._asdict()}


def left(reg: Regularizer) -> dict[str, Any]:
    """Count what is not zero."""
    measured = density(reg.counted_parameters())
    return {
        "density": measured.total,
        "live_groups": measured.live_groups,
        "num_groups": measured.num_groups,
        "layers": measured.layers,
    }


def tested(results: dict[str, Any], model: VideoClassifier) -> dict[str, Any]:
    """Sum up a test."""
    return {
        "test_accuracy": results["test/acc"],
        "test_macro_accuracy": results["test/acc_macro"],
        "test_top5_accuracy": results.get("test/acc_top5"),
        "views": model.test_views,
        "roughness": results.get("test/roughness"),
    }


def without_dead_channels(model: VideoClassifier, example: torch.Tensor) -> dict[str, Any]:
    """Say how large the net would be without the channels that are zero."""
    try:
        rest = remaining(model.net, example)
    except InputError as error:  # a net that cannot be copied is no reason to lose the summary
        log.warning("no count of what would remain: %s", error)
        return {"remaining_parameters": None, "remaining_flops": None, "flops": None}
    return {
        "remaining_parameters": rest.parameters,
        "remaining_flops": rest.flops,
        "flops": rest.all_flops,
    }


@torch.no_grad()
def write_groups(reg: Regularizer, path: Path, write: bool) -> None:
    """Write the length of each output row of each weight; 0 is a dead filter or unit.

    write: on one rank; all of them have to ask, where the weights are spread.
    """
    whole = {name: full_tensor(w) for name, w in reg.counted_parameters().items() if w.ndim > 1}
    norms = {
        name: torch.linalg.vector_norm(w.float().flatten(1), dim=1).cpu().numpy()
        for name, w in whole.items()
    }
    if write:
        np.savez_compressed(path, **norms)
