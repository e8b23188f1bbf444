"""The one-standard-error rule: the least model that is as good as the best, as far as we know."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Within:
    """Places among candidates, the best and the smallest one within its standard error.

    limit: of the losses that were allowed.
    num: how many candidates are within it, the best included.
    """

    best: int
    chosen: int
    limit: float
    num: int


def within_one_error(
    losses: Sequence[float],
    errors: Sequence[float],
    sizes: Sequence[Any],
    rounding: float = 1e-12,
) -> Within:
    """Find the smallest candidate whose loss is at most one standard error above the least.

    errors: standard error of each loss; 0 where nothing is known of it.
    sizes: what is least for the smallest model; of equal losses the smallest is the best.
    rounding: by this share of the limit, losses that are equal may differ.
    Source: Breiman, Friedman, Olshen and Stone, Classification and Regression Trees (1984), section
    3.4.3; Hastie, Tibshirani and Friedman, The Elements of Statistical Learning (2009), 7.10.1.
    """
    order = sorted(range(len(losses)), key=lambda place: (losses[place], sizes[place]))
    best = order[0]
    limit = losses[best] + errors[best]
    within = [place for place in order if losses[place] <= limit + rounding * abs(limit)]
    return Within(best, min(within, key=lambda place: sizes[place]), limit, len(within))


def share_error(share: float, num: int) -> float:
    """Return the standard error of a share of so many, such as an accuracy."""
    share = min(max(share, 0.0), 1.0)
    return math.sqrt(share * (1 - share) / max(num, 1))
