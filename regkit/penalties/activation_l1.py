"""Activation L1: few active units for each clip."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from regkit.errors import InputError
from regkit.penalties.penalty import ActivationPenalty


@dataclass(frozen=True)
class ActivationL1(ActivationPenalty):
    """Charge the mean absolute activation of a module, so that few of them are active at a time.

    value = lam mean |z|

    The mean runs over clips, time, channels and places in space, each activation by itself, so
    `lam` keeps its meaning when any of these numbers changes. After a ReLU the zeros are exact.

    module: any that returns a tensor, whatever its axes; there is no `layout` to tell.
    Raises: InputError when `layout` is given.
    Source: Glorot, Bordes and Bengio, AISTATS 2011, section 4; Georgiadis, CVPR 2019, equation 3.
    """

    pooled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout is not None:
            raise InputError(
                f"ActivationL1 got layout={self.layout!r}; every activation counts by itself, "
                "whatever the axes: leave layout out."
            )

    @property
    def least_frames(self) -> int:
        """One: a clip need not have a time axis."""
        return 1

    def value(self, frames: Float[Tensor, "batch frames dim"]) -> Float[Tensor, ""]:
        """Return lam times the mean absolute activation."""
        return self.lam * frames.abs().mean()
