"""Float32 arithmetic that keeps NaN, and relative accuracy where the hardware loses it."""

import triton.language as tl

from regkit.ops.formula import LARGEST, TINY
from regkit.ops.gpu.jit import jit

_TINY = tl.constexpr(TINY)
_LARGEST = tl.constexpr(LARGEST)


@jit
def minimum(a, b):
    """Return the smaller one; NaN where one is."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@jit
def maximum(a, b):
    """Return the larger one; NaN where one is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@jit
def soft(x, threshold):
    """Move x towards zero by `threshold`, not beyond."""
    return x - minimum(maximum(x, -threshold), threshold)


@jit
def within(x, bound):
    """Clip x to a size of `bound`, to 0 where that is negative."""
    bound = maximum(bound, 0.0)
    return maximum(minimum(x, bound), -bound)


@jit
def one_less_exp(y):
    """Return 1 - exp(y) for y <= 0, as exact near 0 as far out.

    The Taylor series up to y^8 errs by 1e-8 of its value at -1/2.
    """
    series = 1.0 + y * (1 / 7.0) * (1.0 + y * (1 / 8.0))
    series = 1.0 + y * (1 / 5.0) * (1.0 + y * (1 / 6.0) * series)
    series = 1.0 + y * (1 / 3.0) * (1.0 + y * (1 / 4.0) * series)
    return tl.where(y > -0.5, -y * (1.0 + y * 0.5 * series), 1.0 - tl.exp(y))


@jit
def log_one_more(x):
    """Return log(1 + x) for x >= 0: 2 artanh(x / (2 + x)), by its series up to x = 1/2."""
    z = x / (2.0 + x)
    square = z * z
    series = 1 / 7.0 + square * (1 / 9.0 + square * (1 / 11.0))
    series = 2.0 + 2.0 * square * (1 / 3.0 + square * (1 / 5.0 + square * series))
    return tl.where(x < 0.5, z * series, tl.log(1.0 + x))


@jit
def log1p_share(s):
    """Return log(1 + s) / s for s >= 0, which is 1 at 0."""
    s = minimum(maximum(s, _TINY), _LARGEST)
    return log_one_more(s) / s
