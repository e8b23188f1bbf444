"""SCAD: L1 for small weights, nothing for large ones."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.concave import scad_threshold
from regkit.ops.formula import STEEP, Formula, formula, maximum, minimum, sqrt, where, within
from regkit.penalties.penalty import Step, WeightPenalty, check_number


@formula
def _scad(v, step, lam, a):
    size = abs(v)
    start = minimum(sqrt(maximum(step, a + 1)) * sqrt(a + 1), step + 1)
    start = minimum(start, (step + (a + 1)) * 0.5) * lam
    slope = 1 / maximum(1 - step * (1 / (a - 1)), 1 / STEEP)
    line = (size - start) * slope + where(step < a - 1, lam, 0)
    return within(v, maximum(line, size - step * lam))


@dataclass(frozen=True)
class SCAD(WeightPenalty):
    """Charge weights up to lam like L1, larger ones ever less, those from a lam on all the same.

    value = sum over w of  lam |w|                                     up to lam
                           (2 a lam |w| - w^2 - lam^2) / (2 (a - 1))   up to a lam
                           lam^2 (a + 1) / 2                           from there on
    prox  = soft threshold by step lam up to (1 + step) lam, v from a lam on, linear between; where
            step >= a - 1 it jumps from the soft threshold to v (the global minimiser)

    Like `MCP`, with a stretch of plain L1 before it bends.

    a: where it turns flat, in units of lam, >= 2.
    Source: Fan and Li, JASA 96 (2001), 1348-1360, equations 2.7 and 2.8.
    """

    a: float = 3.7

    convex: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _scad

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "a", check_number(self, "a", 2.0))

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return the sum of the L1 part up to lam and of the bend up to a lam."""
        size = rows.abs()
        end = self.a * self.lam
        bend = (size.clamp(self.lam, end) - self.lam) / (end - self.lam if self.lam else 1.0)
        # The slope falls from lam to 0 along the bend, which is (a - 1) lam long.
        bent = self.lam * (end - self.lam) * bend * (1 - bend / 2)
        return (self.lam * size.clamp_max(self.lam) + bent).sum()

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Soft-threshold the small entries, leave the large ones."""
        return scad_threshold(rows, step, self.lam, self.a)
