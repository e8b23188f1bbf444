"""Top k: of the groups of each layer, the largest stay; a budget and not a price."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.top_rows import keep_top_rows
from regkit.penalties.penalty import GroupPenalty, Step, check_number


@dataclass(frozen=True)
class TopK(GroupPenalty):
    """Keep a share of the groups of each layer (or set of channels), and set the others to zero.

    value = 0 where at most k groups of the layer are not zero, else infinity
    prox  = the k groups with the largest sum of v^2 / step (metric!), the others zero

    A constraint: what is minimised is the loss over nets of at most k groups a layer, whatever
    `lam` is. From dense weights it cuts at once; under `Schedule(ramp="cubic")` the share that
    stays falls from 1 to `keep` over `ramp_until`. A group that was cut comes back when one step
    of the optimizer makes it larger than the smallest that stayed, which is rare.

    lam: any number > 0 turns it on; 0 turns it off.
    keep: share of the groups that stays, in [0, 1], rounded down; one stays at least.
    tightness: how far on the way from all groups to `keep`, 0 to 1; a ramp raises it.
    Raises: InputError when `keep` or `tightness` is no share.
    Source: Blumensath and Davies, J. Fourier Anal. Appl. 14 (2008), 629-654, equation 3.3; for the
        ramp Zhu and Gupta, ICLR 2018 workshop, equation 1.
    """

    keep: float = 0.5
    tightness: float = 1.0

    ranks: ClassVar[bool] = True
    constraint: ClassVar[bool] = True
    sparsifies: ClassVar[bool] = False
    convex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "tightness"):
            object.__setattr__(self, name, check_number(self, name, 0.0, 1.0))

    def scaled(self, strength: float) -> "TopK":
        """Return the constraint on its way: at strength 0 all groups stay, from 1 on `keep`."""
        return replace(self, tightness=self.tightness * min(strength, 1.0))

    def most(self, num_groups: int) -> int:
        """Return how many of `num_groups` groups stay."""
        share = 1 - self.tightness * (1 - self.keep)
        return max(math.floor(share * num_groups + 1e-9), 1) if self.lam > 0 else num_groups

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return 0 where at most k rows are not zero, else infinity."""
        over = (rows != 0).any(1).sum() > self.most(len(rows))
        return rows.new_zeros(()).masked_fill(over, math.inf)

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Keep the k dearest rows."""
        return keep_top_rows(rows, step, self.most(len(rows)))
