"""Group lasso: whole groups become exactly zero."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import SHRINK, Coefficients, Formula
from regkit.ops.secular import shrink_rows
from regkit.penalties.penalty import GroupPenalty, Step


@dataclass(frozen=True)
class GroupLasso(GroupPenalty):
    """Charge the length of every group; short groups become exactly zero, as a whole.

    value = lam sum_g sqrt(n_g) ||w_g||        (n_g: entries of group g)
    prox  : w_i = v_i s / (s + step_i lam sqrt(n_g)), s = ||w_g||; zero where
            ||v_g / step|| <= lam sqrt(n_g)

    Geometry: every group moves straight towards zero, shorter by the same root mean square.
    Use it to remove filters, channels or heads. The factor sqrt(n_g) lets groups of any size die
    at the same root mean square, step lam.
    Source: Yuan and Lin, JRSS B 68 (2006), 49-67, equation 2.1; the prox in a diagonal metric is
    the secular equation of `regkit.ops.secular`.
    """

    kernel: ClassVar[Formula | None] = SHRINK

    def coefficients(self, size: int) -> Coefficients:
        """Return those of SHRINK for groups of this size."""
        return 0.0, self.lam * math.sqrt(size), 0.0

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return lam sum_g sqrt(n_g) ||w_g||."""
        strength = self.lam * math.sqrt(rows.shape[1])
        return strength * torch.linalg.vector_norm(rows, dim=1).sum()

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Shorten every group by step * lam * sqrt(n_g)."""
        return shrink_rows(rows, step, self.lam * math.sqrt(rows.shape[1]))
