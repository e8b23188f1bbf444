"""L2: the coupled ridge, exact in the optimizer's metric."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import Formula, formula
from regkit.penalties.penalty import Step, WeightPenalty


@formula
def _l2(v, step, lam):
    return v / (1 + step * lam)


@dataclass(frozen=True)
class L2(WeightPenalty):
    """Charge half the squared weights; all weights shrink, none becomes zero.

    value = lam/2 ||w||^2,    prox = v / (1 + step lam)

    It is part of F, so its minimiser does not depend on the optimizer. `WeightDecay` is not:
    under Adam it shrinks every weight at the same rate, whatever its gradients.

    Source: Hoerl and Kennard, Technometrics 12 (1970), 55-67.
    """

    sparsifies: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _l2

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam/2 ||rows||^2."""
        return self.lam / 2 * rows.square().sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Divide by 1 + step * lam."""
        return rows / (1 + step * self.lam)
