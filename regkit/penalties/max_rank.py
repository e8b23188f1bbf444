"""Max rank: weight matrices of at most a rank; a budget and not a price."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.low_rank import numerical_rank, truncate_rank
from regkit.penalties.penalty import Step, WeightPenalty, check_number


@dataclass(frozen=True)
class MaxRank(WeightPenalty):
    """Keep each weight, seen as a matrix (out, all the rest), at a rank of at most r.

    value = 0 where the rank is at most r, else infinity
    prox  = the r largest singular values with their vectors, the others zero

    A constraint: what is minimised is the loss over nets of such a rank, whatever `lam` is. The
    nearest matrix is known in a scalar metric alone, so `prox` takes one step size for the whole
    matrix, as the nuclear norm's does, and the move is taken in that metric too; optimizers that
    cannot are refused. Under `Schedule(ramp="cubic")` the rank falls from full to r.

    lam: any number > 0 turns it on; 0 turns it off.
    rank: the most, >= 1. Singular values below a millionth of the largest are zero.
    tightness: how far on the way from the full rank to `rank`, 0 to 1; a ramp raises it.
    Raises: InputError unless `rank` is a whole number >= 1 and `tightness` a share.
    Source: Eckart and Young, Psychometrika 1 (1936), 211-218.
    """

    rank: int = 8
    tightness: float = 1.0

    layout: ClassVar[str] = "filter"
    joint: ClassVar[bool] = True
    constraint: ClassVar[bool] = True
    sparsifies: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False
    convex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise InputError(f"MaxRank got rank={self.rank!r}; rank is a whole number >= 1.")
        object.__setattr__(self, "tightness", check_number(self, "tightness", 0.0, 1.0))

    def scaled(self, strength: float) -> "MaxRank":
        """Return the constraint on its way: at strength 0 any rank is allowed, from 1 on `rank`."""
        return replace(self, tightness=self.tightness * min(strength, 1.0))

    def most(self, full: int) -> int:
        """Return the rank that a matrix of this full rank may have."""
        over = max(full - self.rank, 0)
        return full - math.ceil(self.tightness * over - 1e-9) if self.lam > 0 else full

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return 0 where the rank is allowed, else infinity."""
        over = numerical_rank(rows) > self.most(min(rows.shape))
        return rows.new_zeros(()).masked_fill(over, math.inf)

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Keep the r largest singular values.

        step: a number or a tensor of no axes.
        """
        assert not isinstance(step, Tensor) or step.ndim == 0, "a rank needs one step"
        return truncate_rank(rows, self.most(min(rows.shape)), step)
