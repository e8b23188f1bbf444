"""L1: single weights become exactly zero."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import Formula, formula, soft
from regkit.ops.threshold import soft_threshold
from regkit.penalties.penalty import Step, WeightPenalty


@formula
def _l1(v, step, lam):
    return soft(v, step * lam)


@dataclass(frozen=True)
class L1(WeightPenalty):
    """Charge the sum of absolute weights; small weights become exactly zero.

    value = lam ||w||_1,    prox = sign(v) max(|v| - step lam, 0)

    Source: Tibshirani, JRSS B 58 (1996), 267-288 (lasso); Donoho (1995) for the prox.
    """

    composes: ClassVar[bool] = True
    kernel: ClassVar[Formula | None] = _l1

    def slope_at_zero(self, size: int) -> tuple[float, float] | None:
        """Return that of lam |w|."""
        return self.lam, 0.0

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam ||rows||_1."""
        return self.lam * rows.abs().sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Soft-threshold at step * lam."""
        return soft_threshold(rows, step * self.lam)
