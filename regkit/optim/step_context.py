"""What is known of a step before the optimizer moves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from regkit.optim.density_control import Bounds, Factors


@dataclass(frozen=True)
class StepContext:
    """What is known of a step before the optimizer moves.

    progress: after the step; stride: what it adds to it.
    bounds: densities that it shall end with. keeps_zeros: zeros stay zero.
    skip: on a GPU, not 0 where a loss scaler skips the step; is_skipped: it does, and we know.
    before: weights before the move, where something is computed from them.
    nonzero: 1 for each weight that is not zero, else 0, where zeros are kept.
    gates: before the step, where it is to be said what flips in it; else None.
    """

    progress: float
    stride: float
    factors: Factors
    bounds: Bounds | None
    keeps_zeros: bool
    skip: Tensor | None
    is_skipped: bool
    before: Mapping[nn.Parameter, Tensor]
    nonzero: Mapping[nn.Parameter, Tensor]
    gates: Sequence[Tensor] | None

    @property
    def is_last(self) -> bool:
        """Say whether training ends with the step."""
        return self.progress >= 1.0 and self.stride > 0
