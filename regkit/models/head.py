"""The last layer of a classifier, checked before it is built."""

from torch import nn

from regkit.errors import InputError


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
