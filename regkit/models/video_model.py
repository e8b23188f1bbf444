"""What every video model of regkit promises, and its last layer."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regkit.errors import InputError


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


def check_head(model: str, num_classes: int, dropout: float) -> None:
    """Refuse a head that cannot classify.

    Raises: InputError when num_classes < 2 or dropout is outside [0, 1).
    """
    if num_classes < 2:
        raise InputError(
            f"{model} got num_classes={num_classes}; allowed: 2 or more. "
            "Give the number of classes in the data; check the labels if there is only one."
        )
    if not 0 <= dropout < 1:
        raise InputError(
            f"{model} got dropout={dropout}; allowed: 0 <= dropout < 1, "
            "the share of features dropped in training. Use 0 for none."
        )


def make_head(model: str, dim: int, num_classes: int, dropout: float) -> nn.Sequential:
    """Return dropout and a linear layer from dim features to class scores."""
    check_head(model, num_classes, dropout)
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, num_classes))
