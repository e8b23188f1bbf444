"""Weight decay: AdamW's shrinkage, decoupled from the gradient and its metric."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import Formula, formula
from regkit.penalties.penalty import Step, WeightPenalty


@formula
def _weight_decay(v, lr, lam):
    return v * (1 - lr * lam)


@dataclass(frozen=True)
class WeightDecay(WeightPenalty):
    """Shrink all weights by the same factor at every step: w *= 1 - lr lam.

    Here `prox` is that shrinkage, taken after the update with the learning rate itself as its
    step (torch's AdamW takes it before; the two differ by lr lam times the update). It is the
    ridge's step to first order under plain SGD, but under Adam it belongs to no fixed penalty:
    it is therefore left out of the objective F. Where F matters use `L2`.

    Source: Loshchilov and Hutter, ICLR 2019, algorithm 2, line 12.
    """

    decoupled: ClassVar[bool] = True
    sparsifies: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _weight_decay

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam/2 ||rows||^2, the ridge it resembles under plain SGD."""
        return self.lam / 2 * rows.square().sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Multiply by 1 - step * lam."""
        return rows * (1 - step * self.lam)
