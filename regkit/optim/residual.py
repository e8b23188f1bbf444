"""How far weights are from a stationary point of the stated objective."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regkit.groups import Bundle
from regkit.optim.plan import Chain
from regkit.optim.torch_backend import at_strength
from regkit.penalties.penalty import WeightPenalty
from regkit.ranks import buckets, gathered, local, parameters_of, put_back, summed

# Small enough for the limit, large enough for float64.
STEP = 1e-6


@torch.no_grad()
def kkt_residual(
    gradients: Mapping[nn.Parameter, Tensor],
    chains: Mapping[nn.Parameter, Chain],
    bundles: Sequence[tuple[WeightPenalty, Bundle]],
    strength: float | None = 1.0,
) -> Float[Tensor, ""]:
    """Return the length of the shortest subgradient of F.

    || w - prox(w - s g) || / s  for a step s so small that it is the limit; zero exactly where F
    is stationary. In the Euclidean metric, over all parameters that have a gradient.

    gradients: of the loss, by parameter.
    strength: what every lam is multiplied by; None: penalties are off, and zeros stay zero.
    Source: Nesterov, Math. Program. 140 (2013), 125-161, equation 2.12 (gradient mapping).
    """
    moved = {p: p.detach().double() - STEP * g.double() for p, g in gradients.items()}
    for p, chain in chains.items():
        if p in moved:
            for penalty in at_strength(chain, strength):
                if not penalty.decoupled:
                    moved[p] = penalty.prox(moved[p], STEP)
    whole = [part for part in bundles if all(p.parameter in moved for p in part[1].pieces)]
    for bucket in buckets(whole):
        parameters = parameters_of(bucket)
        found = gathered([moved[p] for p in parameters])
        seen = dict(zip(parameters, found, strict=True))
        for penalty, bundle in bucket:
            for now in at_strength((penalty,), strength):
                bundle.write(now.prox(bundle.rows(seen.__getitem__), STEP), seen.__getitem__)
        put_back(seen, moved)
    off = {p: p.detach().double() - x for p, x in moved.items()}
    if strength is None:
        penalised = {*chains, *(piece.parameter for _, b in bundles for piece in b.pieces)}
        off = {p: x * (p != 0) if p in penalised else x for p, x in off.items()}
    if not off:
        return torch.zeros(())
    squares = torch.stack([local(x).square().sum() for x in off.values()])
    return summed(squares, list(off.values())).sum().sqrt() / STEP
