"""What an optimizer has to be, for a proximal step to follow it: refusals and warnings."""

import warnings
from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from regkit.errors import InputError
from regkit.optim.fused_optimizers import FusedOptimizer
from regkit.optim.moves import held_by
from regkit.optim.parts import Part
from regkit.optim.step_size import StepSizeOf, learning_rate, step_size_of, warn_of_unknown


def check_optimizer(
    optimizer: Optimizer, members: Collection[nn.Parameter], parts: Sequence[Part]
) -> None:
    """Refuse an optimizer that no proximal step can follow; warn of weights in half precision.

    members: parameters that are penalised. parts: the penalties on groups.
    """
    held, who = held_by(optimizer), type(optimizer).__name__
    if held.isdisjoint(members) and all(p.requires_grad for p in members):
        raise InputError(
            f"attach got a {who} that holds none of the penalised parameters. Make it from the "
            "parameters of the very model that is penalised."
        )
    for part in parts:
        inside, outside = _inside_and_outside(part, held)
        if inside and outside:
            raise InputError(
                f"attach got a {who} that holds {inside[0]!r} but not {outside[0]!r}, which live "
                "and die together. Give them to one optimizer, or freeze the latter "
                "(requires_grad_(False))."
            )
    joint = [type(part.penalty).__name__ for part in parts if part.penalty.joint]
    if joint and hasattr(optimizer, "proximal_step") and not isinstance(optimizer, FusedOptimizer):
        raise InputError(
            f"{joint[0]} needs one step for a whole matrix, and {who} sums its steps over a "
            "stage. Use SGD, Adam or AdamW."
        )
    for group in optimizer.param_groups:
        if group.get("centered") and group.get("momentum", 0.0) > 0:
            raise InputError(
                f"attach got {who} with momentum={group['momentum']} and centered=True: the "
                "variance under its root vanishes where gradients settle, and what it then moves "
                "along depends on all steps before, so that no prox has the minimiser of the "
                "objective. Use one of the two options, or AdamW."
            )
    _warn_of_half_precision([p for p in members if p in held])


def _warn_of_half_precision(members: Sequence[nn.Parameter]) -> None:
    coarse = {p.dtype for p in members if p.dtype in (torch.bfloat16, torch.float16)}
    if coarse:
        warnings.warn(
            f"Penalised weights are stored in {', '.join(map(str, coarse))}: what a step moves "
            "them by is lost below a 256th (bfloat16) or 2048th (float16) of their size, and with "
            "it most of a penalty. Keep weights in float32 and compute in half precision "
            '(torch.autocast; Trainer(precision="bf16-mixed")).',
            stacklevel=5,
        )


def warn_of_split_groups(optimizer: Optimizer, parts: Sequence[Part]) -> None:
    """Warn of groups that are not penalised, since the optimizer has come to train them in part."""
    held = held_by(optimizer)
    for part in parts:
        inside, outside = _inside_and_outside(part, held)
        if inside and outside:
            warnings.warn(
                f"{type(part.penalty).__name__} leaves {part.group_set.name!r} alone: "
                f"{outside[0]!r} belongs to its groups, is trained, and no longer held by this "
                f"{type(optimizer).__name__}. Give all of them to one optimizer.",
                stacklevel=2,
            )
            return


def _inside_and_outside(part: Part, held: set[nn.Parameter]) -> tuple[list[str], list[str]]:
    """Return the names of trained parameters that are held, and of those that are not."""
    pieces = [piece for piece in part.group_set.pieces if piece.parameter.requires_grad]
    inside = [piece.name for piece in pieces if piece.parameter in held]
    return inside, [piece.name for piece in pieces if piece.parameter not in held]


def step_size_or_warning(optimizer: Optimizer) -> StepSizeOf:
    """Return the step size of an optimizer: where it is not known its learning rate, and warn."""
    known = step_size_of(optimizer)
    if known is None:
        warn_of_unknown(type(optimizer).__name__)
    return known or learning_rate
