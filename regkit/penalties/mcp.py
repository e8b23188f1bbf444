"""MCP: zeros like L1, without its bias on large weights."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.concave import mcp_threshold
from regkit.ops.formula import STEEP, Formula, formula, maximum, minimum, sqrt, within
from regkit.penalties.penalty import Step, WeightPenalty, check_number


@formula
def _mcp(v, step, lam, gamma):
    zero = minimum(sqrt(step) * sqrt(gamma), step) * lam
    slope = 1 / maximum(1 - step * (1 / gamma), 1 / STEEP)
    return within(v, (abs(v) - zero) * slope)


@dataclass(frozen=True)
class MCP(WeightPenalty):
    """Charge small weights like L1 and large ones all the same, so that these do not shrink.

    value = sum lam |w| - w^2 / (2 gamma) up to |w| = gamma lam, gamma lam^2 / 2 from there on
    prox  = 0 up to step lam, v from gamma lam on, linear between; where step >= gamma: 0 up to
            lam sqrt(step gamma), v beyond (the global minimiser, entry by entry)

    Use it where L1 finds the right zeros but costs accuracy by shrinking the rest.

    gamma: where it turns flat, in units of lam; infinity is L1, 0 is L0.
    Source: Zhang, Annals of Statistics 38 (2010), 894-942, equation 2.6.
    """

    gamma: float = 3.0

    convex: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _mcp

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "gamma", check_number(self, "gamma", 1e-12))

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return the sum of lam |w| - w^2 / (2 gamma), |w| cut at gamma lam."""
        size = rows.abs().clamp_max(self.gamma * self.lam)
        return (size * (self.lam - size / (2 * self.gamma))).sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Threshold firmly, or hard where the step reaches gamma."""
        return mcp_threshold(rows, step, self.lam, self.gamma)
