"""Log-sum: L1 that eases off as a weight grows."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.concave import log_sum_threshold
from regkit.ops.formula import (
    LARGEST,
    Formula,
    formula,
    log1p_share,
    maximum,
    minimum,
    sqrt,
    where,
    within,
)
from regkit.penalties.penalty import Step, WeightPenalty, check_number


@formula
def _log_sum(v, step, lam, eps):
    size = abs(v)
    threshold = minimum(step * lam, LARGEST)
    bend = sqrt(threshold) * (2 * sqrt(eps))
    root = sqrt(maximum(size - bend + eps, 0) * (size + bend + eps)) + size + eps
    x = maximum(size - threshold / root * (2 * eps), 0)
    start = log1p_share(x * (1 / eps)) * threshold + x * 0.5
    return within(v, where(size < start, 0, x))


@dataclass(frozen=True)
class LogSum(WeightPenalty):
    """Charge the logarithm of the weights: reweighted L1, without the reweighting.

    value = lam eps sum log(1 + |w| / eps),  whose slope is lam / (1 + |w| / eps)
    prox  = the larger root of (x - |v|)(x + eps) + step lam eps = 0, or 0, whichever costs less

    The slope at 0 is lam, as for `L1`, `MCP` and `SCAD`: strengths compare, and eps = infinity is
    L1. (Some write lam log(1 + |w| / eps): their lam is this one times eps.)

    eps: size from which a weight counts as large, in units of the weights.
    Source: Candes, Wakin and Boyd, J. Fourier Anal. Appl. 14 (2008), 877-905, equation 2.3.
    """

    eps: float = 0.01

    convex: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _log_sum

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eps", check_number(self, "eps", 1e-12))

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam eps times the sum of log(1 + |w| / eps)."""
        return self.lam * self.eps * torch.log1p(rows.abs() / self.eps).sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Shrink by the slope at where the entry ends, small entries to zero."""
        return log_sum_threshold(rows, step, self.lam, self.eps)
