"""Elastic net: the zeros of L1, the shared weight of L2 among correlated inputs."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.ops.formula import Coefficients, Formula, formula, soft
from regkit.ops.threshold import soft_threshold
from regkit.penalties.penalty import Step, WeightPenalty, check_number


@formula
def _elastic_net(v, step, lam, l1_ratio, l2_ratio):
    return soft(v, step * lam * l1_ratio) / (1 + step * lam * l2_ratio)


@dataclass(frozen=True)
class ElasticNet(WeightPenalty):
    """Charge a mix of absolute and squared weights, in scikit-learn's convention.

    value = lam (l1_ratio ||w||_1 + (1 - l1_ratio)/2 ||w||^2)
    prox  = soft(v, step lam l1_ratio) / (1 + step lam (1 - l1_ratio))

    l1_ratio: share of L1 in the mix, from 0 (ridge) to 1 (lasso).
    Source: Zou and Hastie, JRSS B 67 (2005), 301-320, equation 3 (without its rescaling).
    """

    l1_ratio: float = 0.5

    kernel: ClassVar[Formula | None] = _elastic_net

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "l1_ratio", check_number(self, "l1_ratio", 0.0, 1.0))

    @property
    def sparsifies(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Say whether there is L1 in the mix."""
        return self.l1_ratio > 0

    def coefficients(self, size: int) -> Coefficients:
        """Return lam and both shares: 1 - l1_ratio would lose digits in float32."""
        return self.lam, self.l1_ratio, 1 - self.l1_ratio

    def slope_at_zero(self, size: int) -> tuple[float, float] | None:
        """Return that of the L1 of the mix."""
        return self.lam * self.l1_ratio, 0.0

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return lam (l1_ratio ||rows||_1 + (1 - l1_ratio)/2 ||rows||^2)."""
        l2_half = (1 - self.l1_ratio) / 2 * rows.square().sum()
        return self.lam * (self.l1_ratio * rows.abs().sum() + l2_half)

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Soft-threshold, then shrink."""
        strength = step * self.lam
        shrunk = soft_threshold(rows, strength * self.l1_ratio)
        return shrunk / (1 + strength * (1 - self.l1_ratio))
