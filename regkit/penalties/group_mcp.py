"""Group MCP: weak groups become zero, strong groups are not shrunk at all."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import FOLD, Coefficients, Formula
from regkit.penalties.penalty import GroupPenalty, Step, check_number


@dataclass(frozen=True)
class GroupMCP(GroupPenalty):
    """Charge the length of a group less and less, and from a certain length on no more.

    value = sum_g P(||w_g||), with t = lam sqrt(n_g):
            P(s) = t s - s^2 / (2 gamma)   for s <= gamma t,   gamma t^2 / 2   beyond
    prox  : v_g where its length is to be gamma t or more; else v_i / (1 + step_i mu) with
            ||w_g|| = t / (mu + 1/gamma), or zero; the least objective of the three, at any step

    Geometry: group lasso near zero, flat far out: no bias on the groups that stay.
    Use it where the group lasso has to shrink good groups to be rid of the bad ones.
    gamma: the larger, the closer to the group lasso. A root mean square of gamma lam is free.
    Source: Zhang, Annals of Statistics 38 (2010), 894-942, equation 2.6; for groups: Huang, Breheny
    and Ma, Statistical Science 27 (2012), 481-499, section 3.1.
    """

    gamma: float = 3.0
    convex: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = FOLD

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "gamma", check_number(self, "gamma", 1e-12))

    def coefficients(self, size: int) -> Coefficients:
        """Return the slope at zero, and gamma."""
        return self.lam * math.sqrt(size), self.gamma

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return sum_g P(||w_g||)."""
        slope = self.lam * math.sqrt(rows.shape[1])
        length = torch.linalg.vector_norm(rows, dim=1).clamp_max(self.gamma * slope)
        return (slope * length - length.square() / (2 * self.gamma)).sum()

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Leave long groups, shorten the others."""
        return FOLD(rows, step, *self.coefficients(rows.shape[1]))
