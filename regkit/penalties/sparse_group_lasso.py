"""Sparse group lasso: whole groups become zero, and single weights in those that stay."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import SHRINK, Coefficients, Formula
from regkit.ops.secular import shrink_rows
from regkit.ops.threshold import soft_threshold
from regkit.penalties.penalty import GroupPenalty, Step, check_number


@dataclass(frozen=True)
class SparseGroupLasso(GroupPenalty):
    """Charge a mix of absolute weights and lengths of groups.

    value = lam (l1_ratio ||w||_1 + (1 - l1_ratio) sum_g sqrt(n_g) ||w_g||)
    prox  = the prox of the group part, of soft(v, step lam l1_ratio)

    Geometry: the ball of the group lasso, its round faces flattened towards the axes.
    Use it where groups should die and those that live may be thin.
    l1_ratio: share of L1 in the mix, from 0 (group lasso) to 1 (lasso).
    Source: Simon, Friedman, Hastie and Tibshirani, JCGS 22 (2013), 231-245, equation 3 (value);
    Yu, NeurIPS 2013, theorem 1 (the two steps, which hold in a diagonal metric too).
    """

    l1_ratio: float = 0.5

    kernel: ClassVar[Formula | None] = SHRINK

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "l1_ratio", check_number(self, "l1_ratio", 0.0, 1.0))

    def coefficients(self, size: int) -> Coefficients:
        """Return those of SHRINK for groups of this size."""
        norm = self.lam * (1 - self.l1_ratio) * math.sqrt(size)
        return self.lam * self.l1_ratio, norm, 0.0

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return lam (l1_ratio ||w||_1 + (1 - l1_ratio) sum_g sqrt(n_g) ||w_g||)."""
        lengths = math.sqrt(rows.shape[1]) * torch.linalg.vector_norm(rows, dim=1).sum()
        return self.lam * (self.l1_ratio * rows.abs().sum() + (1 - self.l1_ratio) * lengths)

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Soft-threshold, then shorten every group."""
        thinned = soft_threshold(rows, step * (self.lam * self.l1_ratio))
        strength = self.lam * (1 - self.l1_ratio) * math.sqrt(rows.shape[1])
        return shrink_rows(thinned, step, strength)
