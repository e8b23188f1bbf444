"""How far weights are from a stationary point of the stated objective."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regkit.optim.parts import Chain, Part
from regkit.penalties.penalty import WeightPenalty
from regkit.structure.distributed import (
    all_reduce_counts,
    buckets,
    gathered,
    local,
    parameters_of,
    scatter_back,
)

# Small enough for the limit, large enough for float64.
STEP = 1e-6


@torch.no_grad()
def kkt_residual(
    gradients: Mapping[nn.Parameter, Tensor],
    chains: Mapping[nn.Parameter, Chain],
    parts: Sequence[Part],
    scale: Callable[[Part], WeightPenalty | None],
) -> Float[Tensor, ""]:
    """Return the length of the shortest subgradient of F.

    || w - prox(w - s g) || / s  for a step s so small that it is the limit; zero exactly where F
    is stationary. In the Euclidean metric, over all parameters that have a gradient.

    gradients: of the loss, by parameter.
    scale: gives the penalty of a part at its strength; None: it is off, and zeros stay zero.
    Source: Nesterov, Math. Program. 140 (2013), 125-161, equation 2.12 (gradient mapping).
    """
    moved = {p: p.detach().double() - STEP * g.double() for p, g in gradients.items()}
    fixed: set[nn.Parameter] = set()
    for p, chain in chains.items():
        if p not in moved:
            continue
        for part in chain:
            penalty = scale(part)
            if penalty is None:
                fixed.add(p)
            elif not penalty.decoupled:
                moved[p] = penalty.prox(moved[p], STEP)
    whole = [(part, part.group_set) for part in parts if all(p in moved for p in part.parameters)]
    for bucket in buckets(whole):
        parameters = parameters_of(bucket)
        found = gathered([moved[p] for p in parameters])
        seen = dict(zip(parameters, found, strict=True))
        for part, group_set in bucket:
            penalty = scale(part)
            if penalty is None:
                fixed |= set(part.parameters)
            else:
                group_set.write(
                    penalty.prox(group_set.rows(seen.__getitem__), STEP), seen.__getitem__
                )
        scatter_back(seen, moved)
    off = {p: p.detach().double() - x for p, x in moved.items()}
    off = {p: x * (p != 0) if p in fixed else x for p, x in off.items()}
    if not off:
        return torch.zeros(())
    squares = torch.stack([local(x).square().sum() for x in off.values()])
    return all_reduce_counts(squares, list(off.values())).sum().sqrt() / STEP
