"""The strength from which on zero is a fixed point of the proximal step."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.penalties import WeightPenalty
from regkit.regularizer.bound_penalty import BoundPenalty

PRECISION = 1e-6  # relative
# Of zero weights: short of the scales of concave penalties, far above the rounding of float64.
MOVE = 1e-6
# A strength this many times the rows over the step does not make them zero: none does.
BEYOND = 1e12


def critical(bound: BoundPenalty, gradients: Mapping[nn.Parameter, Tensor]) -> float:
    """Return the smallest strength at which zero is a fixed point, for gradients at zero weights.

    min { lam : prox(-t g; t, lam) = 0 }  for a step t so small that it is the limit. For L1 that is
    max |g|, for the group lasso max ||g_g|| / sqrt(n_g), for the nuclear norm the spectral norm.
    Where the loss is convex, zero weights then minimise F; elsewhere they are stationary.

    gradients: of the loss, by parameter, where the bound's weights are zero; those of a group of
        which some have none count as zero.
    Raises: InputError when gradients are not finite, when no strength makes all weights zero (L2),
        or when any does (L0: zero is a local minimum whatever the gradient).
    """
    most = 0.0
    scale = max((float(g.abs().max()) for g in gradients.values() if g.numel()), default=0.0)
    if not math.isfinite(scale):
        raise InputError(
            f"critical got gradients for {bound.name!r} that are not finite; check the data, "
            "lower the learning rate, or compute them in float32."
        )
    step = MOVE / max(scale, 1.0)
    for part in bound.parts:
        penalty, group_set = part.penalty, part.group_set
        if penalty.lam == 0:  # a factor of 0: left alone
            continue
        rows = group_set.rows(lambda p: gradients.get(p, torch.zeros_like(p))).detach().double()
        scaled = penalty.lam / bound.penalty.lam
        found = smallest(penalty, -step * rows, step, most * scaled)
        if found > most * scaled:
            _check_limit(bound.name, penalty, rows, step, found)
        most = max(most, found / scaled)
    return most


def smallest(
    penalty: WeightPenalty,
    rows: Float[Tensor, "groups size"],
    step: float | Float[Tensor, "..."],
    least: float = 0.0,
) -> float:
    """Return the smallest strength, `least` or more, at which the prox makes all rows zero.

    By bisection, to a relative precision of 1e-6, and from above: at the strength that is returned
    all rows are zero.

    rows: in float64.
    step: as for `prox`; of the shape of `rows` where it is no number.
    Raises: InputError when no strength does.
    """
    rows, step = _alive(penalty, rows, step, least)
    if rows.numel() == 0:
        return least
    shortest = float(step.min()) if isinstance(step, Tensor) else step
    unit = float(rows.abs().max()) / shortest if shortest > 0 else math.inf
    low, high = least, max(unit, least)
    while (survivors := _alive(penalty, rows, step, high))[0].numel():
        rows, step = survivors
        low, high = high, 2 * high
        if not high < BEYOND * unit:
            raise InputError(
                f"{type(penalty).__name__} leaves weights that are not zero at any strength; it "
                "has no critical one. Give lam as a number."
            )
    while high - low > PRECISION * high:
        middle = (low + high) / 2 if low > high / 16 else math.sqrt(max(low, high / BEYOND) * high)
        survivors = _alive(penalty, rows, step, middle)
        if survivors[0].numel():
            low, (rows, step) = middle, survivors
        else:
            high = middle
        if high < unit / BEYOND:
            return high
    return high


def _alive(
    penalty: WeightPenalty, rows: Tensor, step: float | Tensor, lam: float
) -> tuple[Tensor, float | Tensor]:
    """Return the rows that are not zero at a strength, and their steps.

    What is zero at some strength is so at any larger one: the search goes on with the others.
    """
    kept = replace(penalty, lam=lam).prox(rows, step) != 0
    if penalty.joint:
        return (rows if kept.any() else rows[:0]), step
    alive = kept if penalty.layout == "entries" else kept.any(1)
    return rows[alive], step[alive] if isinstance(step, Tensor) and step.ndim else step


def _check_limit(
    name: str, penalty: WeightPenalty, rows: Tensor, step: float, found: float
) -> None:
    """Refuse penalties for which zero is a local minimum at any strength: they jump."""
    shorter = step / 16
    if smallest(penalty, -shorter * rows, shorter) < found * 0.99:
        raise InputError(
            f"{name}: under {type(penalty).__name__} zero weights are a local minimum at any "
            "strength, for its slope at zero is infinite; there is no critical one. Use the "
            "budget, or give lam as a number."
        )
