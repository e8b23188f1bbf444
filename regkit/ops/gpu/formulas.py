"""The proxes of `regkit.ops.formulas` for kernels: the same mathematics, in registers.

step: a number where the metric is flat, or one for each entry. Every formula leaves x, bit for bit,
where its strength or the step is 0.
"""

import triton.language as tl

from regkit.ops.concave import HALF_END, HALF_START, STEEP
from regkit.ops.gpu.arithmetic import log_one_more, maximum, minimum, soft, within
from regkit.ops.gpu.jit import jit
from regkit.ops.kernel_args import NUM_COEFFICIENTS as COEFFICIENTS
from regkit.ops.kernel_args import Param

_FIRST = tl.constexpr(int(Param.FIRST))
_NUM = tl.constexpr(COEFFICIENTS)
_STEEP = tl.constexpr(STEEP)
_TINY = tl.constexpr(2.0**-126)
_LARGEST = tl.constexpr(3.4028234663852886e38)
_INFINITY = tl.constexpr(float("inf"))
_HALF_END = tl.constexpr(HALF_END)
_HALF1 = tl.constexpr(HALF_START[0])
_HALF2 = tl.constexpr(HALF_START[1])
_HALF3 = tl.constexpr(HALF_START[2])
_HALF4 = tl.constexpr(HALF_START[3])


@jit
def coefficients(rule, place: tl.constexpr):
    """Load the five of the formula at this place of the chain."""
    begin = rule + _FIRST + place * _NUM
    s0, s1, s2 = tl.load(begin), tl.load(begin + 1), tl.load(begin + 2)
    return s0, s1, s2, tl.load(begin + 3), tl.load(begin + 4)


@jit
def prox(x, step, lr, c, formula: tl.constexpr):
    """Apply one formula to entries."""
    if formula == "elastic":
        x = soft(x, step * c[0]) * (1.0 / (1.0 + step * c[1]))
    elif formula == "decay":
        x = x * (1.0 - lr * c[3])
    elif formula == "mcp":
        x = _mcp(x, step, c[0], c[3])
    elif formula == "scad":
        x = _scad(x, step, c[0], c[3])
    elif formula == "hard":
        x = within(x, (tl.abs(x) - tl.sqrt(2.0 * c[0] * step)) * _STEEP)
    elif formula == "half":
        x = _half(x, c[0] * step)
    elif formula == "log_sum":
        x = _log_sum(x, step * c[0], c[3])
    elif formula == "box":
        x = tl.where(step > 0.0, minimum(maximum(x, c[3]), c[4]), x)
    return x


@jit
def value(x, c, formula: tl.constexpr):
    """Return what each entry adds to F."""
    size = tl.abs(x)
    found = 0.0 * x
    if formula == "elastic":
        found = c[0] * size + c[1] * 0.5 * x * x
    elif formula == "mcp":
        size = minimum(size, c[3] * c[0])
        found = size * (c[0] - size * (0.5 / c[3]))
    elif formula == "scad":
        end = c[3] * c[0]
        bend = minimum(maximum(size, c[0]), end) - c[0]
        bend = bend * (1.0 / tl.maximum(end - c[0], _TINY))
        found = c[0] * minimum(size, c[0]) + c[0] * (end - c[0]) * bend * (1.0 - bend * 0.5)
    elif formula == "hard":
        found = tl.where(x != 0.0, c[0], 0.0)
    elif formula == "half":
        found = c[0] * tl.sqrt(size)
    elif formula == "log_sum":
        found = c[0] * c[3] * log_one_more(size * (1.0 / c[3]))
    return found


@jit
def _mcp(x, step, lam, gamma):
    # Without strength the bound is infinite: the slope, a hair too flat, must not show.
    shift = tl.where(lam > 0.0, 0.0, _INFINITY)
    zero = minimum(tl.sqrt(step * gamma), step) * lam - shift
    slope = 1.0 / maximum(1.0 - step * (1.0 / gamma), 1.0 / _STEEP)
    return within(x, (tl.abs(x) - zero) * slope)


@jit
def _scad(x, step, lam, a):
    size = tl.abs(x)
    start = tl.sqrt(maximum(step, a + 1.0) * (a + 1.0))
    start = minimum(minimum(start, step + 1.0), (step + a + 1.0) * 0.5) * lam
    slope = 1.0 / maximum(1.0 - step * (1.0 / (a - 1.0)), 1.0 / _STEEP)
    line = (size - start) * slope + tl.where(step < a - 1.0, lam, 0.0)
    return within(x, maximum(line, size - step * lam))


@jit
def _half(x, threshold):
    root = tl.rsqrt(maximum(tl.abs(x), _TINY))
    q = minimum(threshold * 0.5 * root * root * root, _HALF_END + 1e-3)
    y = 1.0 + q * (_HALF1 + q * (_HALF2 + q * (_HALF3 + q * _HALF4)))
    square = y * y
    y = (2.0 * square * y - q) / (3.0 * square - 1.0)
    y = minimum(y, maximum((_HALF_END - q) * _STEEP, 0.0))
    return x * (y * y)


@jit
def _log_sum(x, threshold, eps):
    size = tl.abs(x)
    bend = tl.sqrt(threshold) * (2.0 * tl.sqrt(eps))
    root = tl.sqrt(maximum(size - bend + eps, 0.0) * (size + bend + eps)) + size + eps
    least = maximum(size - threshold / root * (2.0 * eps), 0.0)
    share = minimum(maximum(least * (1.0 / eps), _TINY), _LARGEST)
    start = log_one_more(share) / share * threshold + least * 0.5
    return within(x, minimum((size - start) * _STEEP, least))
