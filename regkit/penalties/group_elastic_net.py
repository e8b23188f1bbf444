"""Group elastic net: whole groups become zero, and those that stay are kept small."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import SHRINK, Coefficients, Formula
from regkit.ops.secular import shrink_rows
from regkit.penalties.penalty import GroupPenalty, Step, check_number


@dataclass(frozen=True)
class GroupElasticNet(GroupPenalty):
    """Charge a mix of lengths of groups and squared weights.

    value = lam (l1_ratio sum_g sqrt(n_g) ||w_g|| + (1 - l1_ratio)/2 ||w||^2)
    prox  = the prox of the group part, of v / (1 + r), with step / (1 + r),
            r = step lam (1 - l1_ratio)

    Geometry: the group lasso, strictly convex.
    Use it where groups resemble each other, of which the group lasso would keep any one.
    l1_ratio: share of the lengths in the mix, from 0 (ridge) to 1 (group lasso).
    Source: Zou and Hastie, JRSS B 67 (2005), 301-320, equation 3, with lengths of groups for
    absolute weights.
    """

    l1_ratio: float = 0.5

    kernel: ClassVar[Formula | None] = SHRINK

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "l1_ratio", check_number(self, "l1_ratio", 0.0, 1.0))

    def coefficients(self, size: int) -> Coefficients:
        """Return those of SHRINK for groups of this size."""
        norm = self.lam * self.l1_ratio * math.sqrt(size)
        return 0.0, norm, self.lam * (1 - self.l1_ratio)

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return lam (l1_ratio sum_g sqrt(n_g) ||w_g|| + (1 - l1_ratio)/2 ||w||^2)."""
        lengths = math.sqrt(rows.shape[1]) * torch.linalg.vector_norm(rows, dim=1).sum()
        l2_half = (1 - self.l1_ratio) / 2 * rows.square().sum()
        return self.lam * (self.l1_ratio * lengths + l2_half)

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Shrink, then shorten every group in the metric that the ridge has stiffened."""
        divisor = 1 + step * (self.lam * (1 - self.l1_ratio))
        strength = self.lam * self.l1_ratio * math.sqrt(rows.shape[1])
        return shrink_rows(rows / divisor, step / divisor, strength)
