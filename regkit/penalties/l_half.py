"""L1/2: sparser than L1 at the same error."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.concave import HALF_END, HALF_START, half_threshold
from regkit.ops.formula import STEEP, TINY, Formula, formula, maximum, minimum, rsqrt
from regkit.penalties.penalty import Step, WeightPenalty

# One Newton step from the start of `half_threshold` is exact to 6e-9.
_START1, _START2, _START3, _START4 = HALF_START


@formula
def _l_half(v, step, lam):
    root = rsqrt(maximum(abs(v), TINY))
    q = minimum(lam * step * 0.5 * root * root * root, HALF_END + 1e-3)
    y = (((q * _START4 + _START3) * q + _START2) * q + _START1) * q + 1
    square = y * y
    y = (2 * square * y - q) / (3 * square - 1)
    y = minimum(y, maximum((HALF_END - q) * STEEP, 0))
    return v * (y * y)


@dataclass(frozen=True)
class LHalf(WeightPenalty):
    """Charge the square root of the weights: an infinite slope at zero, little on large ones.

    value = lam sum |w|^(1/2)
    prox  = 0 up to 3/2 (step lam)^(2/3), else
            2/3 v (1 + cos(2 pi/3 - 2/3 phi)),  phi = arccos((step lam / 4) (|v| / 3)^(-3/2))

    Between `L1` and `L0`, with a threshold in closed form.

    Source: Xu, Chang, Xu and Zhang, IEEE TNNLS 23 (2012), 1013-1027, equations 12 and 13.
    """

    convex: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _l_half

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam times the sum of |w|^(1/2)."""
        return self.lam * rows.abs().sqrt().sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Threshold, then shrink by the root of the cubic."""
        return half_threshold(rows, step * self.lam)
