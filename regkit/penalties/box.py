"""Box: weights within bounds, for instance not negative."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.broadcast import as_tensor
from regkit.ops.formula import Coefficients, Formula, formula, maximum, minimum, where
from regkit.penalties.penalty import Step, WeightPenalty


@formula
def _box(v, step, lam, low, high):
    return where(step > 0, minimum(maximum(v, low), high), v)


@dataclass(frozen=True)
class Box(WeightPenalty):
    """Keep every weight within [low, high].

    value = 0 inside, infinity outside,    prox = v clipped to [low, high], in any metric

    low=0 with high=None are non-negative weights; before a group penalty this is its
    non-negative form, exactly. Two bounds limit what one weight can do.

    lam: any number > 0 turns it on; 0 turns it off.
    low, high: bounds, low <= 0 <= high, for zeros have to stay allowed; None is no bound.
    Raises: InputError when 0 is outside.
    Source: Parikh and Boyd, Foundations and Trends in Optimization 1 (2014), section 6.2.4.
    """

    low: float | None = -1.0
    high: float | None = 1.0

    constraint: ClassVar[bool] = True
    sparsifies: ClassVar[bool] = False
    kernel: ClassVar[Formula | None] = _box

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None:
                sign = 1 if name == "high" else -1
                if not isinstance(bound, int | float) or not 0 <= sign * bound < math.inf:
                    raise InputError(
                        f"Box got {name}={bound!r}; zeros have to stay allowed: give numbers with "
                        "low <= 0 <= high, or None for no bound."
                    )
                object.__setattr__(self, name, float(bound))

    @property
    def composes(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Say whether the set is a cone (each bound 0 or none): then other proxes may follow."""
        return self.low in (None, 0.0) and self.high in (None, 0.0)

    @property
    def _bounds(self) -> tuple[float, float]:
        low = -math.inf if self.low is None else self.low
        return low, math.inf if self.high is None else self.high

    def coefficients(self, size: int) -> Coefficients:
        """Return lam and the bounds."""
        return (self.lam, *self._bounds)

    def value(self, rows: Float[Tensor, "..."]) -> Float[Tensor, ""]:
        """Return 0 where all entries are inside, else infinity."""
        low, high = self._bounds
        inside = ((rows >= low) & (rows <= high)).all()
        return rows.new_zeros(()).masked_fill(~inside, math.inf if self.lam > 0 else 0.0)

    def prox(self, rows: Float[Tensor, "*shape"], step: Step) -> Float[Tensor, "*shape"]:
        """Clip, where the step is not 0."""
        if self.lam == 0:
            return rows
        return torch.where(as_tensor(step, rows) > 0, rows.clamp(*self._bounds), rows)
