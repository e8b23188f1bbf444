"""Temporal kernel: the taps of 3-D kernels, smooth or piecewise constant over time."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.total_variation import fuse, smooth
from regkit.penalties.penalty import Step, WeightPenalty

NORMS = ("squared", "absolute")


@dataclass(frozen=True)
class TemporalKernel(WeightPenalty):
    """Charge the change of a 3-D kernel from one time step (tap) to the next.

    value = lam/2 sum (w[t+1] - w[t])^2   or   lam sum |w[t+1] - w[t]|
    prox  = a tridiagonal solve           or   exact fusing, tap by tap; both in any metric

    Every place of a kernel in space has its own row of taps. "squared" makes slow filters;
    "absolute" makes taps equal, and a kernel with all taps equal averages over time: it can be
    replaced by a 2-D one on the mean frame.

    norm: "squared" or "absolute" (total variation).
    Source: Land and Friedman, Stanford technical report (1997), equation 2 (variable fusion);
    Tibshirani et al., JRSS B 67 (2005), 91-108, equation 3 (fused lasso).
    """

    norm: str = "squared"

    layout: ClassVar[str] = "time"
    sparsifies: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in NORMS:
            raise InputError(
                f"TemporalKernel got norm={self.norm!r}; norm is one of {', '.join(NORMS)}."
            )

    def value(self, rows: Float[Tensor, "groups taps"]) -> Float[Tensor, ""]:
        """Return lam times the squared (halved) or absolute change from tap to tap."""
        change = rows.diff(dim=1)
        total = change.square().sum() / 2 if self.norm == "squared" else change.abs().sum()
        return self.lam * total

    def prox(self, rows: Float[Tensor, "groups taps"], step: Step) -> Float[Tensor, "groups taps"]:
        """Smooth or fuse each row."""
        return (smooth if self.norm == "squared" else fuse)(rows, step * self.lam)
