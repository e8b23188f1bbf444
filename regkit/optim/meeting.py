"""The strength that leaves as many non-zeros as wanted."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from regkit.ranks import local, summed

# How often a step is tried.
NUM_TRIALS = 12


def meet(
    bounds: tuple[float, float], strength: float, attempt: Callable[[float], float]
) -> tuple[float, bool]:
    """Attempt a step until it ends with a density within bounds, or as near as it comes.

    A stronger penalty leaves fewer: the logarithm of the strength is bracketed, then halved.

    attempt: takes the step at a strength, from the same start each time, and returns the density.
    Returns: the strength of the last attempt, and whether the first one was not it.
    """
    weak, strong = 0.0, math.inf
    first, best, found = strength, math.inf, strength
    for _ in range(NUM_TRIALS):
        share = attempt(strength)
        excess = max(share - bounds[1], 0.0) + min(share - bounds[0], 0.0)
        if abs(excess) < best:
            best, found = abs(excess), strength
        if best <= bounds[0] / 1000:
            break
        weak, strong = (strength, strong) if excess > 0 else (weak, strength)
        if strong == math.inf:
            strength = 4 * strength
        else:
            strength = math.sqrt(weak * strong) if weak > 0 else strength / 4
    else:
        attempt(found)
    return found, found != first or best > 0


def density(parameters: Sequence[Tensor]) -> float:
    """Return the share of entries that are not zero (a collective)."""
    nonzero = torch.stack([(local(p) != 0).sum() for p in parameters])
    return float(summed(nonzero, parameters).sum()) / sum(p.numel() for p in parameters)
