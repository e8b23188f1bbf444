"""What a run is summed up to: summary.json, its fields and what they mean, and groups.npz."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from omegaconf import DictConfig

from regkit.files import replacing
from regkit.lightning.callback import RegularizerCallback
from regkit.lightning.video_classifier import VideoClassifier
from regkit.pruning.density import density
from regkit.pruning.remaining import remaining
from regkit.regularizer.regularizer import Regularizer
from regkit.structure.distributed import full_tensor
from regkit.training.config import leading_penalty

log = logging.getLogger(__name__)

# Every field of summary.json, and what it means. Some are there only where they were asked for.
# Accuracies and shares lie between 0 and 1; times are of the wall clock.
SUMMARY_FIELDS: dict[str, str] = {
    # What was trained
    "name": "the run's own name, by what tells it apart",
    "penalty": "names of the penalties, joined by +, or none",
    "lam": "strength of the leading penalty at the last step at which it was on",
    "lams": "strength of each penalty at the last step, by name; 0 while debiasing",
    "seed": "of first weights, order of the videos and dropout",
    "optimizer": "class of the optimizer",
    "lr": "learning rate that was asked for",
    # What training ended with
    "loss": "training loss, mean over the last epoch",
    "objective": "F: that loss and the value of all penalties",
    "val_accuracy": "of the validation videos, after the last epoch; null without any",
    "val_loss": "of the same",
    "num_val": "number of validation videos",
    "num_parameters": "of the net, zeros among them",
    "steps": "steps of the optimizer",
    "epochs": "epochs that were trained",
    "train_s": "seconds that training took, validation among them",
    "data_share": "share of that in which training waited for videos; null where unknown",
    "pruned": "whether stop_dominated stopped the run",
    # What was asked of the density
    "target_density": "share of weights that was to be not zero (strength.target_density)",
    "target_flops": "share of the FLOPs, or above 1 FLOPs, that were to be left",
    "target_parameters": "share of the parameters, or above 1 parameters, that were to be left",
    "target_latency": "share of the time, or above 1 milliseconds, that were to be left",
    "target_met": "whether it is; null where a run that went on does not know",
    "target_share": "of a budget: what was asked for as a share of the whole net",
    "reached_share": "what the net without its dead channels takes, counted or measured",
    # How settled the zeros are, over about the last 200 steps
    "settled": "whether zeros stay: the next two are within their limits",
    "flips": "share of weights that go to zero or come back in one step",
    "jaccard": "overlap of the weights that are not zero with those of ten steps before",
    "should_wake": "share of the zeros that the averaged gradient says to be none",
    "zeros_cost": "best validation accuracy of this run while it was denser, less that of the end",
    "zeros_cost_noise": "standard error of that difference",
    "zeros_cost_is_noise": "whether the difference is no more than two of them",
    # What is left
    "density": "share of the penalised weights that are not zero",
    "layers": "the same by the name of the weight",
    "live_groups": "output rows (filters, units) with a weight that is not zero",
    "num_groups": "all output rows",
    "remaining_parameters": "of the net without dead channels, low ranks split; null where unknown",
    "remaining_flops": "of one run of that net on one clip; null where it is not known",
    "flops": "of one run of the whole net on one clip; null where it is not known",
    # The test, of the weights that test_checkpoint names
    "test_accuracy": "share of the test videos whose class is right",
    "test_macro_accuracy": "mean of the accuracies of the classes",
    "test_top5_accuracy": "share of videos with their class among five; null with few classes",
    "views": "clips of each test video whose scores are averaged",
    "roughness": "change of frame embeddings from frame to frame: 0 constant, 2 unrelated",
    "files_skipped": "videos that could not be read",
    # debias_epochs
    "debiased_accuracy": "test accuracy after training what is left without penalty",
    "debiased_val_accuracy": "validation accuracy then",
    "debiased_val_loss": "validation loss then",
    "debias_s": "seconds that this took",
    # shrink
    "shrunk_accuracy": "test accuracy of the net that was cut out",
    "shrunk_parameters": "its parameters",
    "shrunk_flops": "of one run of it on one clip",
    "shrink_difference": "largest difference between its outputs and those of the whole net",
    "whole_latency_ms": "of one run of the whole net on one clip, median in milliseconds",
    "shrunk_latency_ms": "the same of the net that was cut out",
}


def trained(
    config: DictConfig,
    trainer: pl.Trainer,
    model: VideoClassifier,
    reg: Regularizer,
    measured: Mapping[str, float],
    epochs: int,
) -> dict[str, Any]:
    """Sum up the weights that training ends with, in the hook that ends its last epoch.

    measured: the latest measures, by name.
    epochs: that were trained.
    """
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
        "epochs": epochs,
    }


def targets(regularize: RegularizerCallback) -> dict[str, Any]:
    """Say whether the target that was asked for is there; null where it is not known any more."""
    target = regularize.schedule.target
    if target is None:
        return {}
    results = regularize.target_results
    met = all(result.is_met for result in results) if results else None
    found = {target.name: target.value, "target_met": met}
    if target.is_budget and results:
        found |= {"target_share": results[0].target, "reached_share": results[0].reached}
    return found


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
    except Exception as error:  # whatever a net does to its count is no reason to lose the summary
        log.warning("what would remain is not known, because %s: %s", type(error).__name__, error)
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
        with replacing(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, **norms)
