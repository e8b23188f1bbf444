"""A 3D-CNN that trains on two CPU cores in minutes."""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

from jaxtyping import Float
from torch import Tensor, nn

from regkit.errors import InputError
from regkit.models.video_model import VideoModel, make_head


@final
class Tiny3D(VideoModel):
    """Blocks of 3-D convolution, batch norm and ReLU, then the mean over time and space.

    Each block halves height and width. Only the second halves time, so that the features keep
    enough frames for penalties on frame embeddings.
    """

    frame_embeddings = "features"

    def __init__(
        self, *, num_classes: int, dropout: float = 0.0, channels: Sequence[int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise InputError(f"Tiny3D got channels={list(channels)}; give one or more, each >= 1.")
        self.features = nn.Sequential(
            *(
                _block(before, after, time_stride=2 if index == 1 else 1)
                for index, (before, after) in enumerate(pairwise((3, *channels)))
            )
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten())
        self.head = make_head("Tiny3D", channels[-1], num_classes, dropout)

    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
        return self.head(self.pool(self.features(clip)))


def _block(before: int, after: int, time_stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, 3, stride=(time_stride, 2, 2), padding=1, bias=False),
        nn.BatchNorm3d(after),
        nn.ReLU(),
    )
