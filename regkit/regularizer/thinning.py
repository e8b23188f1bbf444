"""Zero what is missing to a target at once: what the penalties would zero first."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from regkit.optim.budget import Budget
from regkit.optim.density_control import Bracket
from regkit.optim.parts import Part
from regkit.structure.groups import Read

# How often a strength is tried.
NUM_TRIALS = 60


def meet_density(parts: Sequence[Part], target: float, layerwise: bool) -> None:
    """Zero entries and groups until this share of the entries is left, or of each layer's."""
    for some in _by_layer(parts) if layerwise else [parts]:
        _thin(some, target, partial(_density, some))


def meet_budget(parts: Sequence[Part], budget: Budget, layerwise: bool) -> float:
    """Zero groups until the budget is met, and return the share that is used then.

    layerwise: every part keeps a share of its own, as large as all may.
    """
    shares = budget.even_shares(budget.sets) if layerwise else {}
    for some in [[part] for part in parts] if shares else [parts]:
        wanted = shares[some[0].key] if shares else budget.share
        _thin(some, wanted, partial(_used, budget, some, bool(shares)))
    return _used(budget, parts, False)


def _by_layer(parts: Sequence[Part]) -> list[list[Part]]:
    """Put together what acts on the same parameters."""
    layers: dict[frozenset[nn.Parameter], list[Part]] = {}
    for part in parts:
        layers.setdefault(frozenset(part.parameters), []).append(part)
    return list(layers.values())


def _density(parts: Sequence[Part], read: Read) -> float:
    """Return the share of entries that are not zero, of what these parts act on."""
    held = dict.fromkeys(p for part in parts for p in part.parameters)
    return sum(int(torch.count_nonzero(read(p))) for p in held) / sum(p.numel() for p in held)


def _used(
    budget: Budget, parts: Sequence[Part], of_channels: bool, read: Read = Tensor.detach
) -> float:
    """Return the share of a budget that is used, or of the channels of the first part."""
    alive = budget.alive((part.key, part.group_set.rows(read)) for part in parts)
    return budget.shares(alive)[parts[0].key] if of_channels else budget.used(alive)


def _thin(parts: Sequence[Part], target: float, share: Callable[[Read], float]) -> None:
    """Zero the entries and groups that the penalties zero first, until the target is met.

    share: gives what there is of weights that are read so.
    """
    held = dict.fromkeys(p for part in parts for p in part.parameters)

    def thinned(factor: float) -> dict[nn.Parameter, Tensor]:
        trial = {p: p.detach().clone() for p in held}
        for part in parts:
            rows = part.group_set.rows(trial.__getitem__)
            gone = replace(part.penalty, lam=part.penalty.lam * factor).prox(rows, 1.0) == 0
            part.group_set.write(rows.masked_fill(gone, 0.0), trial.__getitem__)
        return trial

    bracket, factor = Bracket(target, target, 1.0), 1.0
    for _ in range(NUM_TRIALS):
        bracket.update(share(thinned(factor).__getitem__))
        if bracket.is_met:
            break
        factor = bracket.next()
    for p, values in thinned(bracket.best).items():
        p.copy_(values)
