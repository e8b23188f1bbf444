"""Group L0: a price for every group that is not zero."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import KEEP, Coefficients, Formula
from regkit.penalties.penalty import GroupPenalty, Step


@dataclass(frozen=True)
class GroupL0(GroupPenalty):
    """Charge every group that is not zero by its number of weights; groups are left or removed.

    value = lam sum_g n_g [w_g != 0]
    prox  : v_g where sum_i v_i^2 / (2 step_i) >= lam n_g, else zero

    Geometry: the prox shrinks nothing; it is a threshold on the mean of v^2 / (2 step).
    Use it to finish what a convex penalty has begun: from dense weights it has no gradient to
    follow. The factor n_g makes it L0 for groups that are all or nothing, and, as sqrt(n_g) does
    in the group lasso, lets groups of any size die at the same root mean square, sqrt(2 step lam).
    Source: Blumensath and Davies, JFAA 14 (2008), 629-654, equation 2.3 (L0), for groups.
    """

    convex: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = KEEP

    def coefficients(self, size: int) -> Coefficients:
        """Return the price of a group."""
        return (self.lam * size,)

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return lam sum_g n_g [w_g != 0]."""
        return self.lam * rows.shape[1] * (rows != 0).any(1).sum().to(rows.dtype)

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Keep the groups that are dearer to lose than to keep."""
        return KEEP(rows, step, *self.coefficients(rows.shape[1]))
