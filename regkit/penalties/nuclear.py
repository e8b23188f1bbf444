"""Nuclear norm: weight matrices of low rank."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.low_rank import shrink_singular_values, singular_values
from regkit.penalties.penalty import Step, WeightPenalty


@dataclass(frozen=True)
class Nuclear(WeightPenalty):
    """Charge the singular values of each weight, seen as a matrix (out, all the rest).

    value = lam sum of singular values,    prox = U max(S - step lam, 0) V'

    L1 on the singular values: the rank falls, and the layer can be split into two thin ones. There
    is no closed form in a diagonal metric, so `prox` takes one step size for the whole matrix.

    every: take the prox at every k-th step, k times as strong, and at the last one, where
        `Schedule.num_steps` or the callback says which that is; its eigenvalue problem is dear.
    Raises: InputError unless `every` is a whole number >= 1.
    Source: Cai, Candes and Shen, SIAM J. Optim. 20 (2010), 1956-1982, theorem 2.1.
    """

    every: int = 1

    layout: ClassVar[str] = "filter"
    joint: ClassVar[bool] = True
    sparsifies: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise InputError(f"Nuclear got every={self.every!r}; every is a whole number >= 1.")

    def value(self, rows: Float[Tensor, "groups size"]) -> Float[Tensor, ""]:
        """Return lam times the sum of singular values."""
        return self.lam * singular_values(rows).sum()

    def prox(self, rows: Float[Tensor, "groups size"], step: Step) -> Float[Tensor, "groups size"]:
        """Soft-threshold the singular values at step * lam.

        step: a number or a tensor of no axes.
        """
        assert not isinstance(step, Tensor) or step.ndim == 0, "the nuclear norm needs one step"
        return rows if self.lam == 0 else shrink_singular_values(rows, step * self.lam)
