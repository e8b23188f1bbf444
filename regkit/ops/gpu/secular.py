"""The secular equation of `regkit.ops.secular` for kernels: what is done once for each group.

Kernels hand in sums over a group's entries z (in units of the largest), and take mu in return:
x_i = z_i / (1 + mu step_i). They go over the entries a few times, with three sums each.
"""

import triton.language as tl

from regkit.ops import secular
from regkit.ops.gpu.arithmetic import log_one_more, one_less_exp
from regkit.ops.gpu.jit import jit

_EPS = tl.constexpr(2.0**-23)
_TINY = tl.constexpr(2.0**-126)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_WIDE = tl.constexpr(secular.WIDE)
_LEAST_SHARE = tl.constexpr(secular.LEAST_SHARE)


@jit
def factor(length, step, tau):
    """Return what a group is multiplied by where all its steps are one; 0 where it dies."""
    share = 1.0 - step * tau / tl.maximum(length, _TINY)
    share = tl.where(share <= 8 * _EPS, 0.0, share)
    return tl.where(length == length, share, length)


@jit
def start(norm, between, inverse):
    """Return the root's first guess, its lower and upper bound.

    From ||z||, sum z^2 / c and ||z / c||, with c = tau step.
    """
    ratio = tl.minimum(between / tl.maximum(norm * inverse, _TINY), 1.0)
    power = 1.0 - tl.log(tl.maximum(ratio, _TINY))
    alive = tl.maximum(inverse, 1.0)
    share = tl.maximum(one_less_exp(-log_one_more(alive - 1.0) / power), _TINY)
    upper = tl.maximum(norm - norm / alive, _EPS / 8)
    guess = norm * tl.exp(power * tl.log(share))
    s = tl.maximum(tl.minimum(guess, upper), _EPS / 8)
    return s, 0.0 * s, upper


@jit
def multiplier(s, tau):
    """Return mu = tau / s."""
    return tl.minimum(tl.maximum(tau / s, 0.0), _LARGEST)


@jit
def closer(s, lower, upper, m0, m1, m2):
    """Narrow the bracket and move s within it; m: sums of (z / u)^2 / u^k, k = 0, 1, 2."""
    over = 1.0 / (s * s)
    m0 = m0 * over
    m1 = tl.maximum(m1 * over, _TINY)
    m2 = tl.maximum(m2 * over, _TINY)
    low = _root_of_model(s, m0 / m1, m0, m1)
    near = _root_of_model(s, m1 / m2, m0, m1)
    high = _root_of_model(s, 1.0, m0, m1)
    lower = tl.maximum(tl.maximum(lower, low), tl.minimum(s, near))
    upper = tl.maximum(tl.minimum(tl.minimum(upper, high), tl.maximum(s, near)), lower)
    near = tl.minimum(tl.maximum(near, lower), upper)
    middle = tl.sqrt(tl.maximum(lower, upper * _LEAST_SHARE) * upper)
    return tl.where(upper > lower * _WIDE, middle, near), lower, upper


@jit
def shrunk(x, step, mu, dead):
    """Return x / (1 + mu step), 0 in a dead group; what has no step stays there too."""
    divisor = 1.0 + step * tl.where(dead, _LARGEST, mu) * tl.where(dead, _LARGEST, 1.0)
    return x / divisor


@jit
def _root_of_model(s, pole, m0, m1):
    excess = m0 - 1.0
    ratio = excess / tl.maximum(pole * m1 - excess, 1e-12)
    return s + pole * ratio * s / (tl.sqrt(ratio + 1.0) + 1.0)
