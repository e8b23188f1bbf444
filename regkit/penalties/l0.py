"""L0: the number of weights that are not zero."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.concave import hard_threshold
from regkit.ops.formula import STEEP, Formula, formula, sqrt, within
from regkit.penalties.penalty import Step, WeightPenalty


@formula
def _l0(v, step, lam):
    return within(v, (abs(v) - sqrt(2 * lam * step)) * STEEP)


@dataclass(frozen=True)
class L0(WeightPenalty):
    """Charge lam for every weight that is not zero; small ones go at once, none shrinks.

    value = lam #{w != 0},    prox = v where |v| > sqrt(2 step lam), else 0

    A zero weight returns only by a jump over that threshold, so start `lam` late or raise it
    slowly. Note the units: lam is in units of the loss, not of the loss per weight.

    Source: Blumensath and Davies, J. Fourier Anal. Appl. 14 (2008), 629-654, equation 2.2.
    """

    convex: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _l0

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam times the number of non-zeros."""
        return self.lam * (rows != 0).to(rows.dtype).sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Hard-threshold at sqrt(2 step lam)."""
        return hard_threshold(rows, (2 * self.lam * step) ** 0.5)
