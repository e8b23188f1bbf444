"""Memory that an operator works in."""

from jaxtyping import Float
from torch import Tensor


def workspace(like: Float[Tensor, "*shape"], count: int) -> tuple[Tensor, ...]:
    """Return `count` tensors like `like`, of any content, in one allocation.

    The C library hands freed memory back to the system, to be paged in anew at every call, unless
    it is little in comparison with the largest block freed so far: one block stays, several go.
    """
    return like.new_empty((count, *like.shape)).unbind(0)
