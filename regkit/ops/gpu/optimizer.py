"""What an optimizer does to one entry, in registers, and the step of the prox that follows it."""

import triton.language as tl

from regkit.ops.gpu.arithmetic import maximum, one_less_exp
from regkit.ops.gpu.jit import jit
from regkit.ops.kernel_args import Param

_RATE = tl.constexpr(int(Param.RATE))
_LR = tl.constexpr(int(Param.LR))
_EPS = tl.constexpr(int(Param.EPS))
_LOG_BETA1 = tl.constexpr(int(Param.LOG_BETA1))
_LOG_BETA2 = tl.constexpr(int(Param.LOG_BETA2))
_REST1 = tl.constexpr(int(Param.REST1))
_REST2 = tl.constexpr(int(Param.REST2))
_DECAY = tl.constexpr(int(Param.DECAY))
_NESTEROV = tl.constexpr(int(Param.NESTEROV))


@jit
def rates(param, count, counted: tl.constexpr):
    """Load a param: rate, lr, eps, inverse bias corrections (the second under a root), the rest.

    count: address of the number of steps taken.
    """
    rate, lr, eps = tl.load(param + _RATE), tl.load(param + _LR), tl.load(param + _EPS)
    rest1, rest2 = tl.load(param + _REST1), tl.load(param + _REST2)
    first = 1.0
    second = 1.0
    if counted:
        num = tl.load(count.to(tl.pointer_type(tl.float32)))
        first = 1.0 / one_less_exp(num * tl.load(param + _LOG_BETA1))
        second = 1.0 / tl.sqrt(one_less_exp(num * tl.load(param + _LOG_BETA2)))
    decay, nesterov = tl.load(param + _DECAY), tl.load(param + _NESTEROV)
    return rate, lr, eps, first, second, rest1, rest2, decay, nesterov


@jit
def moved(x, g, first, second, most, r, update: tl.constexpr, states: tl.constexpr):
    """Return the entry after the update, and its states.

    r: from `rates`; states: how many of first, second and most the optimizer keeps.
    """
    if update == "sgd":
        g = g + r[7] * x
        if states > 0:
            first = (1.0 - r[5]) * first + r[6] * g
            g = tl.where(r[8] != 0.0, g + (1.0 - r[5]) * first, first)
        x = x - r[1] * g
    if update == "adamw":
        first = _between(first, g, r[5])
        second = _between(second, g * g, r[6])
        if states > 2:
            most = maximum(most, second)
            over = inverse_scale(most, r)
        else:
            over = inverse_scale(second, r)
        x = x * (1.0 - r[1] * r[7]) - r[1] * r[3] * first * over
    return x, first, second, most


@jit
def inverse_scale(second, r):
    """Return 1 / (sqrt(second) / sqrt(1 - beta2^count) + eps)."""
    return 1.0 / (tl.sqrt(second) * r[4] + r[2])


@jit
def _between(old, new, share):
    """Go from old to new by this share, exactly where it is 0 or 1."""
    near = tl.where(share < 0.5, old, new)
    return near + tl.where(share < 0.5, share, share - 1.0) * (new - old)
