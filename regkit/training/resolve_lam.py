"""Strengths that are to be found: lam=auto and lam=path."""

import json
import math

import torch
from omegaconf import DictConfig, OmegaConf

from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.lightning.video_classifier import VideoClassifier
from regkit.penalties import ActivationPenalty
from regkit.regularizer.regularizer import Regularizer
from regkit.selection.bounds import budget, zero_loss
from regkit.selection.grid import log_grid, two_digits
from regkit.training.config import AUTO, PATH, make, make_penalties, recipe_of

# Of the budget: a mild strength, and where the grid begins. Accuracy fell apart between 0.5 and 8
# times the budget: made videos, two nets, L1, elastic net and group lasso, 8 and 24 epochs.
AUTO_SHARE, GRID_SHARE = 0.1, 4.0

# A training of fewer optimizer steps is over before that mild strength has zeroed much: of tiny3d's
# weights (made videos, AdamW) L1 left 0.89, 0.78, 0.62, 0.50 after 64, 128, 256, 512 steps; group
# lasso left all after 256.
FEW_STEPS = 200

_found: dict[str, list[float]] = {}


def resolve_auto_lam(config: DictConfig, model: VideoClassifier, data: VideoData) -> None:
    """Put a number in the place of every strength that is `auto`, and say where it is from.

    Says too when training is so short that it does little.
    """
    steps = _num_steps(config, data)
    for name in [n for n, options in config.penalty.items() if options.get("lam") == AUTO]:
        top = _budget(config, str(name), model, data)
        lam = two_digits(AUTO_SHARE * top)
        config.penalty[name].lam = lam
        print(
            f"lam=auto: {name} takes lam={lam:g}, a tenth of {top:.3g}, at which the first weights "
            f"cost as much as knowing nothing (ln {data.num_classes})",
            flush=True,
        )
        if steps is not None and steps < FEW_STEPS:
            print(
                f"lam=auto does little in {steps} steps: it knows nothing of their number. Train "
                "longer, give a larger lam, or ask for strength.target_density, which finds "
                "the strength.",
                flush=True,
            )
    if config.lam == AUTO:
        config.lam = next((options.lam for options in config.penalty.values()), 0.0)


def _num_steps(config: DictConfig, data: VideoData) -> int | None:
    """Return how many optimizer steps training has at most; None where only time ends it."""
    trainer, devices = config.trainer, config.trainer.get("devices", 1)
    ranks = devices if isinstance(devices, int) and devices > 0 else 1
    batches = math.ceil(len(data.known_splits().train) / (config.data.batch_size * ranks))
    an_epoch = math.ceil(batches / trainer.get("accumulate_grad_batches", 1))
    ends = [an_epoch * (trainer.get("max_epochs") or -1), trainer.get("max_steps", -1)]
    return min((end for end in ends if end > 0), default=None)


def grid(config: DictConfig) -> list[float]:
    """Return the strengths that lam=path stands for, the largest first.

    The same for every seed and fold: the budget is that of the first weights of seed 0.
    Raises: InputError when an option of `grid` is out of range, or no strength follows from F.
    """
    options = config.grid
    if options.high is not None:
        return log_grid(options.high, options.lam_min_ratio, options.num)
    parts = OmegaConf.to_container(
        OmegaConf.create({key: config[key] for key in ("model", "penalty", "data", "grid")}),
        resolve=False,
    )
    key = json.dumps(parts, sort_keys=True, default=str)
    if key not in _found:
        _found[key] = _grid(config)
    return _found[key]


def _grid(config: DictConfig) -> list[float]:
    data = make(config.data).ready()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make(config.model, num_classes=data.num_classes)
    model = VideoClassifier(net, data.classes, make(config.optimizer))
    shared = [str(name) for name, options in config.penalty.items() if options.get("lam") == PATH]
    if not shared:
        raise InputError(
            "lam=path was given, and there is no penalty whose strength it could be. Give "
            "penalty=..., or take lam out."
        )
    top = min(_budget(config, name, model, data) for name in shared)
    lams = log_grid(GRID_SHARE * top, config.grid.lam_min_ratio, config.grid.num)
    listed = ", ".join(f"{lam:g}" for lam in lams)
    print(
        f"lam=path: {listed} for {'+'.join(shared)}; at {top:.3g} the first "
        f"weights cost as much as knowing nothing (ln {data.num_classes})",
        flush=True,
    )
    return lams


def _budget(config: DictConfig, name: str, model: VideoClassifier, data: VideoData) -> float:
    penalties = make_penalties({name: recipe_of(config.penalty[name]) | {"lam": 1.0}})
    if isinstance(penalties[name], ActivationPenalty):
        raise InputError(
            f"lam={AUTO} and lam={PATH} are for penalties on weights; what an untrained net "
            f"computes does not tell how strong {name} should be. Give penalty.{name}.lam as a "
            "number."
        )
    regularizer = Regularizer(model, penalties, example=data.example())
    try:
        return budget(regularizer, zero_loss(data.num_classes))
    finally:
        regularizer.detach()
