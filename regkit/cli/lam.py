"""The verb `lam`: from which strengths on a penalty wins, for the model and the videos at hand."""

import argparse
from collections.abc import Callable
from functools import partial

import lightning.pytorch as pl
from torch import Tensor

from regkit.data.video_data import VideoData
from regkit.errors import InputError
from regkit.lightning.video_classifier import VideoClassifier
from regkit.penalties import ActivationPenalty
from regkit.regularizer.regularizer import Regularizer
from regkit.selection.bounds import Bound, Bounds, budget, zero_loss
from regkit.selection.grid import log_grid, two_digits
from regkit.selection.layers import head_bound, layer_bounds, step_bound
from regkit.training.config import make, make_penalties, recipe_of
from regkit.training.overrides import composed
from regkit.training.resolve_lam import AUTO_SHARE, GRID_SHARE


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="penalty=... model=...",
        help="model, videos and penalty, in the words of regkit train",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=128,
        metavar="N",
        help="training clips that gradients are taken from (default: 128)",
    )


def run(args: argparse.Namespace) -> None:
    """Print the bounds of each penalty, what lam=auto takes, and what lam=path tries.

    Raises: InputError when an option is wrong.
    """
    if args.clips < 1:
        raise InputError(f"--clips got {args.clips}; give 1 or more.")
    config = composed(args.overrides, "lam", args.config_dir)
    settings = recipe_of(config.penalty)
    if not settings:
        raise InputError("lam got penalty=none, which has no strength. Give a penalty.")
    unit = {name: options | {"lam": 1.0} for name, options in settings.items()}
    data = make(config.data, num_workers=0).ready()
    pl.seed_everything(config.seed, verbose=False)
    model = VideoClassifier(
        make(config.model, num_classes=data.num_classes), data.classes, make(config.optimizer)
    )
    batches = _batches(data, args.clips)
    for name, penalty in make_penalties(unit).items():
        reg = Regularizer(model, {name: penalty}, example=data.example())
        try:
            found = Bounds(_bounds(reg, name, batches, make(config.optimizer), data.num_classes))
        finally:
            reg.detach()
        print(f"{name}, {sum(len(y) for _, y in batches)} clips:\n{found}")
        if isinstance(penalty, ActivationPenalty):
            continue  # of an untrained net, the budget says little
        for top in [bound.lam for bound in found if bound.kind == "budget" and bound.lam]:
            options = config.grid
            lams = log_grid(options.high or GRID_SHARE * top, options.lam_min_ratio, options.num)
            print(f"lam=auto: {two_digits(AUTO_SHARE * top):g}")
            print(f"lam=path: {', '.join(f'{lam:g}' for lam in lams)}\n")


def _batches(data: VideoData, num_clips: int) -> list[tuple[Tensor, Tensor]]:
    batches, count = [], 0
    for raw in data.train_dataloader():
        batch = data.finish(raw, training=True)
        batches.append((batch["clip"], batch["label"]))
        count += len(batch["label"])
        if count >= num_clips:
            break
    return batches


def _bounds(
    reg: Regularizer,
    name: str,
    batches: list[tuple[Tensor, Tensor]],
    optimizer: Callable,
    num_classes: int,
) -> list[Bound]:
    """Compute what can be computed; of the rest, say why not."""
    model = reg.model
    clip = batches[0][0]

    def cost() -> list[Bound]:
        lam = budget(reg, zero_loss(num_classes), clip=clip)
        why = f"the first weights cost more than knowing nothing (ln {num_classes})"
        return [Bound("budget", name, lam, why)]

    ways: list[tuple[str, Callable[[], list[Bound]]]] = [("budget", cost)]
    if not isinstance(reg.penalties[name], ActivationPenalty):
        bound = reg.bound[name]
        ways += [
            ("exact", lambda: [head_bound(model, bound, batches)]),
            ("per layer", partial(layer_bounds, model, bound, batches)),
            ("one step", lambda: [step_bound(model, bound, optimizer, batches)]),
        ]
    found = []
    for kind, compute in ways:
        try:
            found += compute()
        except InputError as error:
            found.append(Bound(kind, name, None, str(error)))
    return found
