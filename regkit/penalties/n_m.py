"""N:M sparsity: at most n of each m consecutive weights are not zero."""

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.n_m import keep_n_of_m
from regkit.penalties.penalty import Step, WeightPenalty


@dataclass(frozen=True)
class NMSparsity(WeightPenalty):
    """Keep at most n of each m consecutive weights along the input axis; 2:4 by default.

    value = 0 where every block of m has at most n non-zeros, else infinity
    prox  = the n entries of each block with the largest v^2 / step (metric!), the others 0

    The pattern that sparse tensor cores run at up to twice the speed. It is no convex set, and the
    support can lock in early: turn it on after some training. Rows whose length m does not divide
    keep a dense end.

    lam: any number > 0 turns it on; 0 turns it off.
    Raises: InputError unless 1 <= n <= m.
    Source: Mishra et al., arXiv 2104.08378 (2021), section 2 (2:4); Zhou et al., ICLR 2021.
    """

    n: int = 2
    m: int = 4

    layout: ClassVar[str] = "fiber"
    constraint: ClassVar[bool] = True
    sparsifies: ClassVar[bool] = False
    convex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(isinstance(k, int) and not isinstance(k, bool) for k in (self.n, self.m))
        if not whole or not 1 <= self.n <= self.m:
            raise InputError(
                f"NMSparsity got n={self.n!r} and m={self.m!r}; give whole numbers with "
                "1 <= n <= m."
            )

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return 0 where every block of m has at most n non-zeros, else infinity."""
        whole = rows.shape[1] - rows.shape[1] % self.m
        counts = (rows[:, :whole] != 0).unflatten(1, (-1, self.m)).sum(-1)
        over = (counts > self.n).any()
        return rows.new_zeros(()).masked_fill(over, math.inf if self.lam > 0 else 0.0)

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Keep the n dearest entries of each block."""
        return rows if self.lam == 0 else keep_n_of_m(rows, step, self.n, self.m)
