"""The step of a prox as a tensor beside the values it acts on."""

from jaxtyping import Float
from torch import Tensor


def as_tensor(step: float | Float[Tensor, "..."], like: Float[Tensor, "..."]) -> Tensor:
    """Return `step` on the device and in the dtype of `like`, in its own shape.

    A number is filled in on the device: no copy from the host, which would wait for it.
    """
    if isinstance(step, Tensor) and step.device == like.device:
        return step.to(like.dtype)
    return (step * like.new_ones(())).to(like.dtype)
