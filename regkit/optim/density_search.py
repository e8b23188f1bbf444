"""The strengths that leave as many non-zeros as wanted."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regkit.ranks import local, summed

# How often a step is tried.
NUM_TRIALS = 12


def meet(
    bounds: Mapping[str, tuple[float, float]],
    strengths: Mapping[str, float],
    attempt: Callable[[Mapping[str, float]], Mapping[str, float]],
) -> tuple[dict[str, float], bool]:
    """Attempt a step until it ends with densities within bounds, or as near as they come.

    A stronger penalty leaves fewer: the logarithm of each strength is bracketed, then halved. Each
    acts on its own weights alone, so that all are searched for at once.

    bounds: of the density, by the name of what has a strength; what is not named may have any.
    attempt: takes the step at these strengths, from the same start each time, and returns the
        densities.
    Returns: the strengths of the last attempt, and whether the first one was not it.
    """
    searches = {name: _Search(*bounds[name], strengths[name]) for name in bounds}
    now = dict(strengths)
    for _ in range(NUM_TRIALS):
        shares = attempt(now)
        for name, search in searches.items():
            search.saw(shares[name])
        if all(search.met for search in searches.values()):
            break
        now |= {name: search.proposal() for name, search in searches.items()}
    else:
        now |= {name: search.found for name, search in searches.items()}
        attempt(now)
    found = {name: search.found for name, search in searches.items()}
    missed = any(search.best > 0 for search in searches.values())
    return dict(strengths) | found, missed or any(found[n] != strengths[n] for n in found)


@dataclass
class _Search:
    """One strength that is searched for: where it lies, and the nearest so far."""

    low: float
    high: float
    strength: float
    weak: float = 0.0
    strong: float = math.inf
    best: float = math.inf
    found: float = math.nan

    @property
    def met(self) -> bool:
        return self.best <= self.low / 1000

    def saw(self, share: float) -> None:
        """Take in what the present strength leaves."""
        excess = max(share - self.high, 0.0) + min(share - self.low, 0.0)
        if abs(excess) < self.best:
            self.best, self.found = abs(excess), self.strength
        if excess > 0:
            self.weak = self.strength
        else:
            self.strong = self.strength

    def proposal(self) -> float:
        """Return what to try next; what has met its bounds stays."""
        if self.met:
            self.strength = self.found
        elif self.strong == math.inf:
            self.strength = 4 * self.strength
        elif self.weak > 0:
            self.strength = math.sqrt(self.weak * self.strong)
        else:
            self.strength = self.strength / 4
        return self.strength


def density(parameters: Sequence[Tensor], tallies: Sequence[Tensor] = ()) -> float:
    """Return the share of entries that are not zero (a collective).

    tallies: what passes over all of the parameters have counted, if they have.
    """
    if tallies:
        nonzero = torch.cat(list(tallies))[:, 0].double()
    else:
        counts = torch.stack([(local(p) != 0).sum() for p in parameters])
        nonzero = summed(counts, parameters)
    return float(nonzero.sum()) / sum(p.numel() for p in parameters)
