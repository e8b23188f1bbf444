"""Singular values of a weight matrix, and the threshold on them.

Both go through the small Gram matrix in float64: its eigenvalues are the squares, so that singular
values are right to 1e-8 of the largest one, below what float32 weights resolve. For a wide matrix
that is several times faster than a float32 SVD, and closer.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from regkit.ops.broadcast import as_tensor

# Singular values below this share of the largest are what float32 makes of zero.
RESOLUTION = 1e-6


def singular_values(matrix: Float[Tensor, "out rest"]) -> Float[Tensor, " rank"]:
    """Return the singular values, smallest first; all NaN where the matrix is not finite."""
    if matrix.numel() == 0:
        return matrix.new_zeros(0)
    values, _, scale = _spectrum(matrix)
    return (values * scale).to(matrix.dtype)


def shrink_singular_values(
    matrix: Float[Tensor, "out rest"], threshold: float | Float[Tensor, ""]
) -> Float[Tensor, "out rest"]:
    """Soft-threshold the singular values: the rank falls, and what is left shrinks.

    argmin_X  ||X - matrix||_F^2 / 2  +  threshold ||X||_*  =  U max(S - threshold, 0) V'

    It is written U max(1 - threshold/S, 0) U' matrix, with nothing of the lost directions.
    threshold: >= 0; 0 changes nothing. A matrix that is not finite becomes NaN altogether.
    The eigenvalue solver waits for the device.
    Source: Cai, Candes and Shen, SIAM J. Optim. 20 (2010), 1956-1982, theorem 2.1.
    """
    if matrix.numel() == 0:
        return matrix
    threshold = as_tensor(threshold, matrix)
    values, vectors, scale = _spectrum(matrix)
    limit = threshold.double() / scale
    share = torch.where(values <= limit, 0.0, 1 - limit / values)
    keep = ((vectors * share) @ vectors.mT).to(matrix.dtype)
    shrunk = keep @ matrix if matrix.shape[0] <= matrix.shape[1] else matrix @ keep
    return torch.where(threshold > 0, shrunk, matrix)


def numerical_rank(matrix: Float[Tensor, "out rest"]) -> Int[Tensor, ""]:
    """Count the singular values above RESOLUTION times the largest; 0 where it is not finite."""
    values = singular_values(matrix)
    if not len(values):
        return values.new_zeros((), dtype=torch.long)
    return (values > RESOLUTION * values.max()).sum()


def truncate_rank(
    matrix: Float[Tensor, "out rest"], rank: int, step: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "out rest"]:
    """Return the nearest matrix of at most this rank: the largest singular values alone.

    step: 0 changes nothing. A matrix of that rank is returned as it is, one that is not finite
    becomes NaN altogether. The eigenvalue solver waits for the device.
    Source: Eckart and Young, Psychometrika 1 (1936), 211-218.
    """
    if rank >= min(matrix.shape):
        return matrix
    values, vectors, _ = _spectrum(matrix)
    fits = (values > RESOLUTION * values.max()).sum() <= rank
    fits = (fits & values.isfinite().all()) | (as_tensor(step, matrix) == 0)
    top = vectors[:, len(values) - rank :]
    keep = (top @ top.mT + torch.where(values.isfinite().all(), 0.0, torch.nan)).to(matrix.dtype)
    cut = keep @ matrix if matrix.shape[0] <= matrix.shape[1] else matrix @ keep
    return torch.where(fits, matrix, cut)


def _spectrum(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular values over `scale`, the vectors of the short side, and `scale`.

    scale: the largest entry, which keeps the squares in range. The solver is never given a NaN,
    for which it would raise: what is not finite comes back as NaN values.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    wide = wide.double()
    scale = wide.abs().amax()
    scale = torch.where(scale == 0, 1.0, scale)
    wide = wide / scale
    gram = wide @ wide.mT
    finite = gram.isfinite().all()
    squares, vectors = torch.linalg.eigh(torch.where(finite, gram, 0.0))
    values = squares.clamp_min(0.0).sqrt()
    return torch.where(finite, values, torch.nan), vectors, scale
