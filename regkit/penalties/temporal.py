"""Temporal smoothness of frame embeddings."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.errors import InputError
from regkit.ops.temporal import differences, spread
from regkit.penalties.penalty import ActivationPenalty

POWERS = {"squared": 2, "absolute": 1}


@dataclass(frozen=True)
class TemporalSmoothness(ActivationPenalty):
    """Charge the change of the frame embeddings z from frame to frame.

    value = lam mean |D z|^p,  D z = z[t+1] - z[t]  or  z[t+2] - 2 z[t+1] + z[t]

    The mean runs over clips, time steps and dimensions, so `lam` keeps its meaning when any of
    them changes. With `relative` it is divided by mean |z - mean z|^p: otherwise the cheapest way
    to be smooth is to shrink the embeddings.

    order: 1 favours constant, 2 favours uniformly changing embeddings.
    norm: "squared" (p = 2; a little everywhere) or "absolute" (p = 1; total variation: few jumps).
    Source: Wiskott and Sejnowski, Neural Computation 14 (2002), 715-770, equation 1 (slowness,
    squared and relative); Rudin, Osher, Fatemi, Physica D 60 (1992), 259-268 (total variation).
    """

    order: int = 1
    norm: str = "squared"
    relative: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise InputError(f"TemporalSmoothness got order={self.order!r}; order is 1 or 2.")
        if self.norm not in POWERS:
            raise InputError(
                f"TemporalSmoothness got norm={self.norm!r}; norm is one of {', '.join(POWERS)}."
            )

    @property
    def least_frames(self) -> int:
        """One more than the order."""
        return self.order + 1

    def value(self, frames: Float[Tensor, "batch frames dim"]) -> Float[Tensor, ""]:
        """Return lam times the mean change, relative to the spread where asked for."""
        power = POWERS[self.norm]
        change = differences(frames, self.order).abs().pow(power).mean()
        if self.relative:
            change = change / spread(frames, power).clamp_min(torch.finfo(frames.dtype).tiny)
        return self.lam * change
