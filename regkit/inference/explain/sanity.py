"""Whether an explanation says something of the weights: that of an untrained net must differ."""

import copy

import numpy as np
import torch
from jaxtyping import Float
from torch import nn


def reinitialised(net: nn.Module, seed: int) -> nn.Module:
    """Return a copy whose layers have first weights again.

    Parameters of modules without `reset_parameters` (position tables of transformers) stay.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, 2018, section 3.
    """
    fresh = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh.eval()


def agreement(
    one: Float[np.ndarray, " places"], other: Float[np.ndarray, " places"]
) -> float | None:
    """Return Spearman's rank correlation; None where one of the two is flat.

    Near 1 for a trained and an untrained net: the curve shows the clip, not what was learned.
    """
    ranks = [_ranks(values) for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Float[np.ndarray, " places"]) -> Float[np.ndarray, " places"]:
    """Return ranks; equal values share the mean of theirs."""
    below, equal = values < values[:, None], values == values[:, None]
    return below.sum(1) + equal.sum(1) / 2
