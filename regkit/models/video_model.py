"""What every video model of regkit promises."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn


class VideoModel(nn.Module, ABC):
    """A clip classifier that says where its frame embeddings are.

    frame_embeddings: name (as in `named_modules`) of the submodule whose output still has a time
    axis, `(batch, frames, dim)` or `(batch, dim, frames, height, width)`. Penalties on frame
    embeddings look there unless they are told another name.
    """

    frame_embeddings: ClassVar[str]

    @abstractmethod
    def forward(
        self, clip: Float[Tensor, "batch channels frames height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Return the class scores (logits)."""
