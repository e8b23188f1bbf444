"""Neighbours drawn together along the last axis: exactly, in a diagonal metric, row by row.

In both, `step` is >= 0 and broadcasts to `v`; an entry of step 0 stays where it is and still draws
its neighbours. Columns are worked through one after the other, for all rows at once: the number of
operations depends on the shape alone.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from regkit.ops.steps import as_tensor

Columns = list[Tensor]


def fuse(
    v: Float[Tensor, "rows size"], step: float | Float[Tensor, "..."]
) -> Float[Tensor, "rows size"]:
    """Make neighbours equal where their difference does not pay.

    argmin_x  sum_t (x_t - v_t)^2 / (2 step_t)  +  sum_t |x_t+1 - x_t|

    Let F_t(x) be the least cost of entries 1 to t with x_t = x. Its slope is
    F_t' = (x - v_t)/step_t + clip(F_t-1', -1, 1), and the minimiser runs backwards: x_t is x_t+1,
    clipped to where F_t' is -1 and +1. Those roots need no search: the root of a minimum of
    increasing functions is the maximum of their roots, and the clip is a minimum of a maximum.
    Source: Johnson, JCGS 22 (2013), 246-260, section 2 (the recursion); the closed form of its
    roots follows as said.
    """
    if v.shape[-1] < 2:
        return v
    values = list(v.unbind(-1))
    steps = list(as_tensor(step, v).expand_as(v).unbind(-1))
    means, spans = _runs(values, steps, len(values) - 1)
    x = _root(means, spans, 0)
    out = [x]
    for t in range(len(values) - 2, -1, -1):
        means, spans = _runs(values, steps, t)
        x = _clip(x, _root(means, spans, -1), _root(means, spans, 1))
        out.append(x)
    return torch.stack(out[::-1], -1)


def smooth(
    v: Float[Tensor, "rows size"], step: float | Float[Tensor, "..."]
) -> Float[Tensor, "rows size"]:
    """Draw neighbours towards each other in proportion to their difference.

    argmin_x  sum_t (x_t - v_t)^2 / (2 step_t)  +  1/2 sum_t (x_t+1 - x_t)^2

    Elimination in a tridiagonal system, x_t = pull_t x_t+1 + rest_t, with 1 - pull_t carried
    along, which would cancel at large steps.
    """
    if v.shape[-1] < 2:
        return v
    values = list(v.unbind(-1))
    steps = list(as_tensor(step, v).expand_as(v).unbind(-1))
    rest = slack = torch.zeros_like(values[0])
    pulls: Columns = []
    rests: Columns = []
    for value, s in zip(values[:-1], steps[:-1], strict=True):
        own = 1 + s * slack
        pull, slack = s / (own + s), own / (own + s)
        rest = value / (own + s) + pull * rest
        pulls.append(pull)
        rests.append(rest)
    own = 1 + steps[-1] * slack
    x = values[-1] / own + steps[-1] / own * rest
    out = [x]
    for pull, rest in zip(pulls[::-1], rests[::-1], strict=True):
        x = pull * x + rest
        out.append(x)
    return torch.stack(out[::-1], -1)


def _runs(values: Columns, steps: Columns, end: int) -> tuple[Columns, Columns]:
    """Return mean and span of every run that ends at `end`, the longest first.

    The mean is weighted by 1/step, the span is 1 / (sum of 1/step).
    """
    mean, span = values[end], steps[end]
    means, spans = [mean], [span]
    tiny = torch.finfo(mean.dtype).tiny
    for value, step in zip(values[:end][::-1], steps[:end][::-1], strict=True):
        share = span / (span + step).clamp_min(tiny)
        mean, span = mean + (value - mean) * share, step * share
        means.append(mean)
        spans.append(span)
    return means[::-1], spans[::-1]


def _root(means: Columns, spans: Columns, slope: int) -> Tensor:
    """Return where F' of the last entry of the runs equals `slope`."""
    x = means[0] + slope * spans[0]
    for mean, span in zip(means[1:], spans[1:], strict=True):
        x = _clip(x, mean + (slope - 1) * span, mean + (slope + 1) * span)
    return x


def _clip(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Clip; on a CPU far faster than `clamp` where the outcome differs from entry to entry."""
    return torch.minimum(torch.maximum(x, low), high)
