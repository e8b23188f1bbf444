"""Threshold operators: what an element-wise penalty does to a number."""

from jaxtyping import Float
from torch import Tensor


def soft_threshold(
    v: Float[Tensor, "*shape"], threshold: float | Float[Tensor, "..."]
) -> Float[Tensor, "*shape"]:
    """Move every entry towards zero by `threshold`; what would cross zero becomes exactly zero.

    argmin_x  (x - v)^2 / 2  +  threshold |x|  =  sign(v) max(|v| - threshold, 0)

    threshold: >= 0, broadcasts to `v`. NaN stays NaN.
    """
    # clamp takes numbers and tensors; its stub wants both bounds declared alike.
    return v - v.clamp(-threshold, threshold)  # pyright: ignore[reportCallIssue, reportArgumentType]
