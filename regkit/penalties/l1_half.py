"""L1/2: sparser than L1 at the same error."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.concave import half_threshold
from regkit.ops.formulas import Coefficients
from regkit.penalties.penalty import Step, WeightPenalty


@dataclass(frozen=True)
class L1Half(WeightPenalty):
    """Charge the square root of the weights: an infinite slope at zero, little on large ones.

    value = lam sum |w|^(1/2)
    prox  = 0 up to 3/2 (step lam)^(2/3), else
            2/3 v (1 + cos(2 pi/3 - 2/3 phi)),  phi = arccos((step lam / 4) (|v| / 3)^(-3/2))

    Between `L1` and `L0`, with a threshold in closed form.

    Source: Xu, Chang, Xu and Zhang, IEEE TNNLS 23 (2012), 1013-1027, equations 12 and 13.
    """

    convex: ClassVar[bool] = False
    formula: ClassVar[str | None] = "half"

    def coefficients(self, size: int) -> Coefficients:
        """Return the coefficients of the formula."""
        return (self.lam, 0.0, 0.0, 0.0, 0.0)

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam times the sum of |w|^(1/2)."""
        return self.lam * rows.abs().sqrt().sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Threshold, then shrink by the root of the cubic."""
        return half_threshold(rows, step * self.lam)
